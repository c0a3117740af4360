"""The recipe's section chooses the kind, and the kind its files."""

import pytest
import torch

import tiny
from fedloom.adapters.build import adapt, save
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.contracts import Model


@pytest.mark.parametrize(
    "config, origin, files",
    [
        (LoraConfig(rank=2), "value", {"adapter_config.json", "adapter_model.safetensors"}),
        (FullConfig(), "difference", {"config.json", "model.safetensors"}),
    ],
    ids=["lora", "full"],
)
def test_kinds(tmp_path, config, origin, files):
    base = tiny.loaded(tiny.saved(tmp_path / "base", "llama"))
    adapted = adapt(base, config, 0)
    assert {leaf.origin for leaf in adapted.layout.leaves} == {origin}
    assert adapted.start.device == torch.device("cpu")
    assert tuple(adapted.start.shape) == (adapted.layout.size,)
    assert bool(adapted.start.any()) is (origin == "value")
    assert not adapted.read().any()  # nothing is loaded yet: the base as it is
    save(adapted, config, Model(adapted.start), adapted.layout, "base", tmp_path / "out")
    assert files <= {path.name for path in (tmp_path / "out").iterdir()}
