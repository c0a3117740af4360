"""Emulators as folders: every family against its own blocks by hand, what is in the bytes, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import tiny
from data.tiny_tokenizers import byte_tokenizer
from fedloom.errors import UserError
from fedloom.models.emulator import FACTS, Facts, check_base, cut_out, load, read, write
from fedloom.models.identity import kin
from fedloom.models.layers import find
from fedloom.models.load import load_model, load_skeleton, load_tokenizer
from fedloom.models.offsite import Plan, plan
from fedloom.models.offsite_config import OffsiteConfig
from models import tiny_classifiers as small

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
SIX = {
    "gpt2": {"n_layer": 6}, "bloom": {"n_layer": 6},
    "qwen2": {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6},
    "gemma3": {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3},
}  # fmt: skip
FAMILIES = ("llama", "tied", "qwen2", "gemma3", "gpt2", "opt", "bloom", "gpt_neox", "mistral")
PLAN = plan(OffsiteConfig(head_layers=1, tail_layers=2, drop_ratio=0.34), 6)


def owner(folder: Path, family: str) -> Path:
    """A random model of six blocks."""
    if family != "mistral":
        return tiny.saved(folder, family, **SIX.get(family, {"num_hidden_layers": 6}))
    settings = transformers.MistralConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=tiny.POSITIONS, sliding_window=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def built(whole: Path, folder: Path, chosen: Plan = PLAN) -> Facts:
    """An artefact of a model, as plainly as can be."""
    base = load_model(tiny.config(whole))
    facts = Facts(str(whole), kin(base.module), chosen, "drop", "", 0, base.parameters)
    cut_out(base.module, chosen)
    count = sum(p.numel() for p in base.module.parameters())
    facts = replace(facts, own=kin(base.module), parameters=count)
    return write(base.module, load_tokenizer(tiny.config(whole)), facts, folder)


def skipping(model, left_out):
    """The whole model, in which some blocks hand on what they are given."""
    _, blocks = find(model)
    for i in left_out:
        blocks[i].register_forward_hook(
            lambda _, args, kwargs, out: (
                (args[0] if args else kwargs["hidden_states"], *out[1:])
                if isinstance(out, tuple)
                else (args[0] if args else kwargs["hidden_states"])
            ),
            with_kwargs=True,
        )
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return owner(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def made(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "emulator"
    built(llama, folder)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "emulator"))


def test_the_plan_of_these_tests():
    assert Plan(6, 1, 2, (1, 3)) == PLAN
    assert PLAN.layers == (0, 1, 3, 4, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_its_blocks_say_by_hand(tmp_path, family):
    whole = owner(tmp_path / "whole", family)
    facts = built(whole, tmp_path / "emulator")
    assert read(tmp_path / "emulator") == facts
    base = load(tmp_path / "emulator", tiny.config(whole))
    with torch.no_grad():
        wanted = skipping(tiny.plain(whole), [2])(IDS).logits
        assert torch.allclose(base.module(IDS).logits, wanted, atol=1e-5)
        assert torch.allclose(tiny.plain(tmp_path / "emulator")(IDS).logits, wanted, atol=1e-5)
        assert not torch.allclose(tiny.plain(whole)(IDS).logits, wanted, atol=1e-3)
    check_base(facts, load_model(tiny.config(whole)).module, "whole")
    assert facts.parameters == base.parameters < facts.base_parameters
    cut = load_skeleton(tiny.config(whole)).module
    cut_out(cut, PLAN)
    assert {k: v.shape for k, v in cut.state_dict().items()} == {
        k: v.shape for k, v in base.module.state_dict().items()
    }


def test_loaded_in_another_format_it_is_still_itself(made, llama):
    base = load(made, tiny.config(llama, dtype="bfloat16"))
    assert base.dtype == torch.bfloat16
    assert base.name == str(made)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_left_out_are_in_no_byte(tmp_path, family):
    """Neither whole nor in pieces of 256 bytes, in the format of the file or the other one."""
    whole = owner(tmp_path / "whole", family)
    built(whole, tmp_path / "emulator")
    files = [path.read_bytes() for path in (tmp_path / "emulator").rglob("*") if path.is_file()]
    _, blocks = find(tiny.plain(whole))
    gone, there = pieces(blocks[2]), pieces(blocks[3])
    assert len(gone) > 100
    assert not [one for one in gone for text in files if one in text]
    same_format = [one for one in there if len(one) == 256]
    assert any(one in text for one in same_format for text in files)  # the search finds what is there


def pieces(block):
    """Numbers of a block as bytes, 64 of float32 or 128 of bfloat16 at a time; all-alike ones (biases, norms) aside."""
    found = []
    for tensor in block.state_dict().values():
        for dtype in (torch.float32, torch.bfloat16):
            text = tensor.to(dtype).contiguous().view(torch.uint8).reshape(-1).numpy().tobytes()
            found += [text[i : i + 256] for i in range(0, len(text) - 255, 256)]
    return [one for one in found if len(set(one)) > 8]


def test_a_folder_that_holds_something_is_left_alone(made, llama):
    before = sorted(path.name for path in made.iterdir())
    with pytest.raises(UserError, match="not empty; choose another folder"):
        built(llama, made)
    assert sorted(path.name for path in made.iterdir()) == before


def test_an_interrupted_build_leaves_nothing(llama, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("{")
            raise KeyboardInterrupt

    base = load_model(tiny.config(llama))
    cut_out(base.module, PLAN)
    with pytest.raises(KeyboardInterrupt):
        write(base.module, Broken(), Facts("x", "x", PLAN, "drop", "x", 0, 0), tmp_path / "emulator")
    assert not list(tmp_path.iterdir())


def test_another_base_is_refused_by_its_fingerprint(made, tmp_path):
    other = owner(tmp_path, "tied")
    module = load_model(tiny.config(other)).module
    with pytest.raises(UserError, match=r"model.name=mine is another model \(fingerprint .*name the model it was made"):
        check_base(read(made), module, "mine")


def test_fingerprints_tell_artefacts_apart(made, llama, tmp_path):
    same, other = built(llama, tmp_path / "same"), built(llama, tmp_path / "other", replace(PLAN, kept=(1, 2)))
    assert read(made).fingerprint == same.fingerprint != other.fingerprint
    assert same.own != other.own


# -- what cannot be read


def rewrite(folder: Path, **changes):
    said = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**said, **changes}))


def test_no_emulator(tmp_path, llama):
    for folder in (tmp_path, tmp_path / "nowhere", llama):
        with pytest.raises(UserError, match=r"holds no emulator: there is no emulator.json"):
            read(folder)


def test_damaged_files(copied):
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"is damaged: model.safetensors does not hold the bytes"):
        read(copied)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors"):
        load(copied, tiny.config(copied))
    assert read(copied, thorough=False)
    weights.unlink()
    with pytest.raises(UserError, match=r"is incomplete: model.safetensors missing"):
        read(copied, thorough=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 9}, "another version of fedloom .format 9, this version reads 1"),
        ({"plan": None}, "emulator.json cannot be read"),
        ({"own": 3}, "emulator.json cannot be read"),
        ({"files": {"../secret": "0"}}, "a file outside the folder"),
        ({"unknown": 3}, "emulator.json cannot be read"),
        ({"plan": {"blocks": 6, "head": 1, "tail": 2, "kept": [1]}}, "4 blocks, and its config.json says 5"),
        ({"plan": {"blocks": 6, "head": 1, "tail": 2, "kept": [3, 1]}}, "a plan that cannot be"),
        ({"plan": {"blocks": 6, "head": 1, "tail": 2, "kept": [1, 2, 3]}}, "a plan that cannot be"),
        ({"plan": {"blocks": 6, "head": 1, "tail": 2, "kept": [0, 3]}}, "a plan that cannot be"),
        ({"plan": {"blocks": 6, "head": 1, "tail": 2.0, "kept": [1, 3]}}, "emulator.json cannot be read"),
    ],
)
def test_facts_that_cannot_be(copied, changes, words):
    rewrite(copied, **changes)
    with pytest.raises(UserError, match=words):
        read(copied)


def test_no_json(copied):
    (copied / FACTS).write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read(copied)


def test_facts_of_other_weights(copied, llama):
    rewrite(copied, own="0" * 16)
    with pytest.raises(UserError, match="speaks of other weights"):
        load(copied, tiny.config(llama))


def test_a_family_whose_blocks_cannot_be_found(tmp_path):
    folder = small.saved(tmp_path, "albert")
    module = transformers.AutoModel.from_pretrained(str(folder))
    with pytest.raises(UserError, match=r"^offsite: the layers of a AlbertModel cannot be found .*leave offsite out"):
        cut_out(module, PLAN)


def test_a_family_whose_blocks_are_not_alike(tmp_path):
    folder = small.saved(tmp_path, "modernbert")
    module = transformers.AutoModel.from_pretrained(str(folder))
    with pytest.raises(UserError, match=r"^offsite: layers of a ModernBertModel differ by their place"):
        cut_out(module, Plan(3, 0, 1, (1,)))
