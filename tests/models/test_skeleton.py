"""A skeleton: all of the model that is no number, from its configuration alone."""

import json
import resource
import shutil

import pytest
import torch
import transformers

import tiny
from data.tiny_tokenizers import byte_tokenizer
from fedloom.errors import UserError
from fedloom.models import picking
from fedloom.models.load import NANO, fingerprint, load_model, load_skeleton, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def bare(folder, tmp_path):
    """A folder without weights."""
    return without_weights(folder, tmp_path / "bare")


def without_weights(folder, path):
    return shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors*"))


def outline(module):
    """Everything but numbers: modules, parameters and buffers in their order, and which names share a tensor."""
    every = list(module.named_parameters(remove_duplicate=False))
    first = {}
    shared = {name: first.setdefault(id(tensor), name) for name, tensor in every}
    return {
        "modules": repr(module),
        "names": [(name, type(part).__name__, part.training) for name, part in module.named_modules()],
        "parameters": [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters()],
        "buffers": [(name, tuple(b.shape), b.dtype) for name, b in module.named_buffers()],
        "state": [(name, tuple(t.shape), t.dtype) for name, t in module.state_dict().items()],
        "shared": shared,
    }


def everything_on_meta(module):
    return {t.device.type for t in [*module.parameters(), *module.buffers()]} == {"meta"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "nano"])
def test_every_family_is_the_loaded_one_without_numbers(family, dtype, tmp_path):
    path = NANO if family == "nano" else tiny.saved(tmp_path / "whole", family)
    loaded = tiny.loaded(path, dtype=dtype)
    before = tiny.randomness()
    skeleton = load_skeleton(tiny.config(without_weights(path, tmp_path / "bare"), dtype=dtype))
    assert tiny.randomness() == before
    assert outline(skeleton.module) == outline(loaded.module)
    assert everything_on_meta(skeleton.module)
    assert (skeleton.skeleton, loaded.skeleton) == (True, False)
    assert skeleton.device == torch.device("meta")
    for told in ("dtype", "parameters", "max_positions", "attention"):
        assert getattr(skeleton, told) == getattr(loaded, told)
    assert skeleton.module.config.use_cache is False


def test_tied_weights_are_tied_and_count_once(tmp_path):
    base = load_skeleton(tiny.config(without_weights(tiny.saved(tmp_path / "whole", "tied"), tmp_path / "bare")))
    module = base.module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    untied = load_skeleton(tiny.config(tiny.saved(tmp_path / "untied", "llama")))
    assert untied.parameters - base.parameters == tiny.VOCAB * 32


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("longest", [None, 16, 4096])
def test_what_auto_means_is_what_it_means_on_a_cpu(folder, whole, longest, monkeypatch):
    monkeypatch.setattr(picking, "fast_bfloat16", lambda device: True)
    config = tiny.config(folder, dtype="auto")
    loaded, skeleton = load_model(config, whole, longest), load_skeleton(config, whole, longest)
    assert (skeleton.dtype, skeleton.attention) == (loaded.dtype, loaded.attention)


def test_a_gpu_need_not_be_there(bare, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert everything_on_meta(load_skeleton(tiny.config(bare, device="cuda:3")).module)


def test_a_model_larger_than_this_machine_takes_no_memory(tmp_path):
    settings = transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=20,
        num_attention_heads=128, num_key_value_heads=8,
    )  # fmt: skip
    settings.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base = load_skeleton(tiny.config(tmp_path))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024  # bytes
    assert base.parameters > 60e9
    assert grown < 200e6


# -- folders


def test_a_folder_without_weights_is_complete_for_a_server_alone(bare):
    assert load_skeleton(tiny.config(bare)).parameters > 0
    assert len(load_tokenizer(tiny.config(bare), weights=False)) == tiny.VOCAB
    for loader in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=r"is incomplete: \*\.safetensors missing"):
            loader(tiny.config(bare))


def test_an_index_whose_files_are_elsewhere_is_not_looked_at(bare):
    (bare / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1-of-2.safetensors"}}))
    assert load_skeleton(tiny.config(bare)).parameters > 0
    assert load_tokenizer(tiny.config(bare), weights=False).pad_token_id == 0


def test_weights_are_never_opened(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "model")
    (path / "model.safetensors").write_bytes(b"no weights at all")
    assert outline(load_skeleton(tiny.config(path)).module) == outline(tiny.loaded(folder).module)


@pytest.mark.parametrize("gone", ["config.json", "tokenizer.json"])
def test_what_else_is_missing_is_named(bare, gone):
    for file in (gone, *(["tokenizer_config.json"] if gone == "tokenizer.json" else [])):
        (bare / file).unlink()
    with pytest.raises(UserError, match=f"is incomplete: {gone} missing"):
        load_skeleton(tiny.config(bare))


@pytest.mark.parametrize("text", ["{", '{"model_type": "no_such_architecture"}', '{"model_type": "t5"}'])
def test_a_configuration_of_nothing_known(bare, text):
    (bare / "config.json").write_text(text)
    with pytest.raises(UserError, match="the model cannot be laid out"):
        load_skeleton(tiny.config(bare))


@pytest.mark.parametrize("name", ["./nowhere", "nonsense"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(UserError, match="no such folder"):
        load_skeleton(tiny.config(name))


def test_a_hub_id_without_a_network(monkeypatch):
    with pytest.raises(UserError, match=r"model\.name=fedloom-tests/not-there"):
        load_skeleton(tiny.config("fedloom-tests/not-there"))


# -- recognising it


def test_its_fingerprint_tells_architectures_apart_and_is_never_a_loaded_one_s(folder, bare, tmp_path):
    config = tiny.config(folder)
    found = fingerprint(load_skeleton(config).module)
    assert found == fingerprint(load_skeleton(tiny.config(bare)).module)
    assert found != fingerprint(load_model(config).module)
    deeper = tiny.saved(tmp_path / "deeper", "llama", num_hidden_layers=3)
    assert found != fingerprint(load_skeleton(tiny.config(deeper)).module)
