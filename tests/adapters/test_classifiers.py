"""Tuned classifiers as files: plain peft, the lines of the README run as they stand, and put together again."""

import json
import re
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import tiny
from fedloom import lowrank
from fedloom.adapters.build import adapt, save
from fedloom.adapters.classifiers import is_classifier, load_classifier
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.adapters.saved import from_peft, peft_tensors
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models.heads import HeadSpec
from models import tiny_classifiers as small

BATCH = small.batch(small.TEXTS)
FAMILIES = ["bert", "roberta", "distilbert", "electra", "deberta", "llama", "gpt2"]
CASES = [
    (family, pooling)
    for family in FAMILIES
    for pooling in ("cls", "mean", "last")
    if not (family in small.DECODERS and pooling == "cls")
]
LABELS = ("bad", "good", "so so")
KEPT = [2, 0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: small.saved(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


def spec(pooling="auto", kind="linear", labels=LABELS):
    return HeadSpec(3, pooling, kind, 4, labels)


def tuned(folder, config, head, path, carried=0, **changes):
    """A model somewhere, and its folder."""
    full = isinstance(config, FullConfig)
    model = adapt(small.loaded(folder, head, full, **changes), config, 7)
    source = torch.Generator().manual_seed(1)
    x = model.start.clone() + 0.1 * torch.randn(model.layout.size, generator=source)
    carry = tiny.carried(model, carried) if carried else ()
    save(model, config, Model(x, carry), model.layout, str(folder), path)
    if full:
        tiny.byte_tokenizer().save_pretrained(path)
    model.load(x, carry=carry)
    with torch.no_grad():
        return model, model.module(*BATCH)


def lora(**settings):
    return LoraConfig(**{"rank": 4, "targets": "all-linear", **settings})


def by_readme(path, monkeypatch, text="abc"):
    """Scores of a text by the code in the folder's README, as it stands."""
    monkeypatch.chdir(path)
    (code,) = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL)
    space = {}
    with torch.no_grad():
        exec(code.replace("some text", text), space)
    return space


def expected(model, folder, text="abc"):
    ids = transformers.AutoTokenizer.from_pretrained(str(folder))(text)["input_ids"]
    with torch.no_grad():
        return model.module(torch.tensor([ids]), torch.ones(1, len(ids)))[0]


@pytest.mark.parametrize("settings", [{}, {"freeze": "A"}, {"sparse": 0.2}, {"targets": "auto"}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_on_a_plain_base(folders, family, settings, tmp_path, recwarn):
    model, _ = tuned(folders[family], lora(**settings), spec(), tmp_path, carried=2)
    recwarn.clear()
    loaded = peft.PeftModel.from_pretrained(small.plain(folders[family]), str(tmp_path)).eval()
    assert not [w for w in recwarn if "adapter" in str(w.message) or "exclude" in str(w.message)]
    longest = max(map(len, small.TEXTS))
    with torch.no_grad():
        found = loaded(*BATCH).last_hidden_state
        wanted = model.module.states(*BATCH)
    for row, text in enumerate(small.TEXTS):
        assert torch.allclose(found[row, : len(text)], wanted[row, : len(text)], rtol=1e-3, atol=1e-4)
    assert found.shape == (4, longest, 32)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("backbone" in name or "head" in name for name in names)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(("family", "pooling"), CASES)
def test_lora_put_together_again(folders, family, pooling, kind, tmp_path, monkeypatch):
    model, wanted = tuned(folders[family], lora(), spec(pooling, kind), tmp_path)
    again = load_classifier(tmp_path, "cpu")
    with torch.no_grad():
        assert torch.allclose(again(*BATCH), wanted, rtol=1e-4, atol=1e-4)
    assert again.spec.labels == LABELS
    assert (again.pooling, again.spec.kind) == (pooling, kind)
    found = by_readme(tmp_path, monkeypatch)["scores"]
    assert torch.allclose(found, expected(model, folders[family]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "pooling"), [case for case in CASES if case[0] not in ("electra", "deberta")])
def test_full_put_together_again(folders, family, pooling, tmp_path, monkeypatch):
    model, wanted = tuned(folders[family], FullConfig(), spec(pooling, "mlp"), tmp_path)
    again = load_classifier(tmp_path, "cpu")
    with torch.no_grad():
        assert torch.allclose(again(*BATCH), wanted, rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "adapter_config.json").exists()
    found = by_readme(tmp_path, monkeypatch)["scores"]
    assert torch.allclose(found, expected(model, tmp_path), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [lora(), FullConfig()], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "gpt2"])
def test_a_base_that_was_cut(folders, family, config, tmp_path, monkeypatch):
    model, wanted = tuned(folders[family], config, spec(), tmp_path, layers=KEPT)
    again = load_classifier(tmp_path, "cpu")
    with torch.no_grad():
        assert torch.allclose(again(*BATCH), wanted, rtol=1e-4, atol=1e-4)
    assert again.config.num_hidden_layers == 2
    name = folders[family] if isinstance(config, LoraConfig) else tmp_path
    found = by_readme(tmp_path, monkeypatch)["scores"]
    assert torch.allclose(found, expected(model, name), rtol=1e-4, atol=1e-4)


def test_what_a_head_says_of_itself(folders, tmp_path):
    model, _ = tuned(folders["bert"], lora(), spec("mean", "mlp"), tmp_path)
    said = json.loads((tmp_path / "head.json").read_text())
    assert said == {"pooling": "mean", "kind": "mlp", "classes": 3, "labels": list(LABELS)}
    head = load_file(tmp_path / "head.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {
        "dense.weight": (32, 32), "dense.bias": (32,), "out.weight": (3, 32), "out.bias": (3,),
    }  # fmt: skip
    assert torch.equal(head["out.weight"], model.module.head.out.weight)
    assert is_classifier(tmp_path)


def test_a_skeleton_writes_the_same_folder(folders, tmp_path):
    model, _ = tuned(folders["bert"], lora(), spec("cls"), tmp_path / "real", layers=KEPT)
    bones = adapt(small.skeleton(folders["bert"], spec("cls"), layers=KEPT), lora(), 7)
    bones.rest()
    save(bones, lora(), Model(model.read()), bones.layout, str(folders["bert"]), tmp_path / "bones")
    files = [{p.name: p.read_bytes() for p in (tmp_path / kind).iterdir()} for kind in ("real", "bones")]
    assert files[0] == files[1]
    assert set(files[0]) >= {"adapter_model.safetensors", "head.safetensors", "head.json", "README.md", "fedloom.json"}


def test_vectors_there_and_back(folders):
    model = adapt(small.loaded(folders["bert"], spec()), lora(), 7)
    x = lowrank.start(model.layout, 3) + 0.1
    tensors = peft_tensors(model, x)
    assert {"head.out.weight", "head.out.bias"} <= set(tensors)
    assert torch.equal(from_peft(model.layout, tensors), x)


# -- causal models out of some layers


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_cut_causal_model(tmp_path, family, monkeypatch):
    changes = {"n_layer": 3} if family == "gpt2" else {"num_hidden_layers": 3}
    folder, path = tiny.saved(tmp_path / "base", family, **changes), tmp_path / "adapter"
    rig = tiny.Rig(folder, layers=KEPT)
    x = rig.somewhere(1, 0.1)
    save(rig.adapted, rig.adapter, Model(x), rig.layout, str(folder), path)
    rig.adapted.load(x)
    loaded = by_readme(path, monkeypatch)["model"]
    with torch.no_grad():
        assert torch.allclose(loaded(BATCH[0]).logits, rig.adapted.module(BATCH[0]).logits, rtol=1e-4, atol=1e-4)
    assert json.loads((path / "fedloom.json").read_text()) == {"layers": KEPT}


def test_nothing_is_said_where_peft_is_right_alone(tmp_path):
    folder = tiny.saved(tmp_path / "base", "llama")
    rig = tiny.Rig(folder)
    save(rig.adapted, rig.adapter, Model(rig.somewhere(1)), rig.layout, str(folder), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


# -- the small real encoder


def test_a_real_encoder(tmp_path, monkeypatch):
    folder = small.minilm()
    model, _ = tuned(folder, LoraConfig(rank=4), HeadSpec(2, labels=("no", "yes")), tmp_path, layers=[0, 2, 4])
    text = "a gripping film, and never dull"
    wanted = expected(model, folder, text)
    assert torch.allclose(by_readme(tmp_path, monkeypatch, text)["scores"], wanted, rtol=1e-4, atol=1e-5)
    again = load_classifier(tmp_path, "cpu")
    assert torch.allclose(expected(SimpleNamespace(module=again), folder, text), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_is_complained_of_when_a_head_is_put_on(folders, tmp_path, recwarn, capfd):
    """Neither of the pooler that is let go, nor of one that the adapter need not leave out."""
    tuned(folders["bert"], lora(), spec("mean"), tmp_path)
    load_classifier(tmp_path, "cpu")
    assert not [str(w.message) for w in recwarn if "exclude" in str(w.message)]
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


# -- folders that are none


def test_folders_that_hold_no_classifier(folders, tmp_path):
    with pytest.raises(UserError, match=r"holds no classifier: head\.json is not there"):
        load_classifier(folders["bert"])
    assert not is_classifier(folders["bert"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("head.json", "{", r"head\.json is damaged"),
        ("head.json", '{"labels": null}', r"head\.json is damaged"),
        ("head.safetensors", "x", r"the head in .* cannot be read"),
        ("fedloom.json", '{"layers": "all"}', r"fedloom\.json is damaged"),
    ],
)
def test_damaged_files(folders, tmp_path, name, content, words):
    tuned(folders["bert"], lora(), spec(), tmp_path, layers=KEPT)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        load_classifier(tmp_path, "cpu")
