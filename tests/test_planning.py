"""Memory before anything is loaded: what a skeleton says it keeps is what the loaded model keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import tiny
from fedloom.adapters.build import adapt
from fedloom.adapters.config import AdapterConfig, FullConfig, LoraConfig
from fedloom.config import load
from fedloom.models.config import ModelConfig
from fedloom.models.load import load_model, load_skeleton
from fedloom.planning import kept, plan

ROWS, LENGTH = 3, 20


def really_kept(module: Any) -> int:
    known = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    held: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage
        return tensor

    module.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False)
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "opt"])
def test_a_skeleton_says_what_the_loaded_model_keeps(tmp_path: Any, family: str, dtype: str) -> None:
    config = ModelConfig(name=str(tiny.saved(tmp_path, family)), attention="eager", dtype=dtype)  # type: ignore[arg-type]
    kinds: list[AdapterConfig] = [LoraConfig(rank=3, targets="all-linear")]
    for adapter in [*kinds, FullConfig()] if dtype == "float32" else kinds:
        whole = isinstance(adapter, FullConfig)
        real, bones = (adapt(one(config, whole), adapter, 0) for one in (load_model, load_skeleton))
        real.parameters(None)
        wanted = really_kept(real.module)
        found = kept(bones, torch.float32 if dtype == "float32" else torch.bfloat16, ROWS, LENGTH)
        assert found == pytest.approx(wanted, rel=0.03), adapter.kind
        assert wanted > 0


def test_checkpointing_keeps_less() -> None:
    bones = adapt(load_skeleton(ModelConfig(name="nano")), LoraConfig(), 0)
    every, some = (kept(bones, torch.float32, 4, 32, checkpointing) for checkpointing in (False, True))
    assert some < 0.5 * every


def test_a_plan_of_the_quickstart() -> None:
    found = plan(load("quickstart"))
    assert found.slots == 8
    assert 0 < found.tokens <= 1024
    assert {item.name for item in found.items} >= {"base", "clients", "activations"}
    assert found.total == sum(item.bytes for item in found.items)
    assert found.fitting > 8
    less = plan(load("quickstart", ["engine.slots=2", "engine.tokens_per_step=256"]))
    assert less.total < found.total
    alone = plan(load("quickstart", ["adapter={kind: full}"]))
    assert alone.slots == 1


def test_a_plan_of_an_emulator_has_both_models() -> None:
    found = {item.name: item.bytes for item in plan(load("offsite-nano")).items}
    assert 0 < found["base"] < found["owner's model"]
    alone = plan(load("offsite-nano", ["offsite.evaluate=emulator"]))
    assert "owner's model" not in {item.name for item in alone.items}
