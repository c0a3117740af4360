"""A smaller model out of some layers of a larger one, against the layers run by hand in plain transformers."""

import pytest
import torch
import transformers

import tiny
from fedloom.config import load
from fedloom.errors import UserError
from fedloom.models.heads import HeadSpec
from fedloom.models.layers import cut, recipe
from fedloom.models.load import load_model, load_skeleton
from models import tiny_classifiers as small

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
PLACES = {
    "bert": "encoder.layer", "roberta": "encoder.layer", "distilbert": "transformer.layer", "electra": "encoder.layer",
    "deberta": "encoder.layer", "llama": "layers", "gpt2": "h", "opt": "decoder.layers", "gpt_neox": "layers",
}  # fmt: skip
"""Where models keep their blocks."""
KEPT = [2, 0]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {name: small.saved(tmp_path_factory.mktemp(name), name) for name in small.FAMILIES}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    changes = {"gpt2": {"n_layer": 3}}
    return {
        name: tiny.saved(tmp_path_factory.mktemp(name), name, **changes.get(name, {"num_hidden_layers": 3}))
        for name in ("llama", "gpt2", "opt", "gpt_neox")
    }


def by_hand(model, place, kept):
    """The plain model with its list of blocks replaced, and nothing else."""
    blocks = model.get_submodule(place)
    model.set_submodule(place, torch.nn.ModuleList([blocks[i] for i in kept]))
    model.config.num_hidden_layers = len(kept)
    model.config.use_cache = False  # the blocks keep their old numbers here
    return model


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "deberta", "llama", "gpt2"])
def test_hidden_states_of_the_kept_layers(encoders, family):
    model = small.loaded(encoders[family], HeadSpec(2), layers=KEPT).module
    mine = by_hand(small.plain(encoders[family]), PLACES[family], KEPT)
    with torch.no_grad():
        wanted = mine(IDS).last_hidden_state
        found = model.states(IDS, torch.ones_like(IDS))
        whole = small.plain(encoders[family])(IDS).last_hidden_state
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - whole).abs().max() > 0.01
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_causal_models(decoders, family, tmp_path):
    base = load_model(tiny.config(decoders[family], layers=KEPT))
    place = {"gpt2": "transformer.h", "opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
    mine = by_hand(tiny.plain(decoders[family]), place.get(family, "model.layers"), KEPT)
    with torch.no_grad():
        wanted = mine(IDS, use_cache=False).logits
        assert torch.allclose(base.module(IDS).logits, wanted, rtol=1e-4, atol=1e-5)
    assert base.layers == (2, 0)
    base.module.save_pretrained(tmp_path)
    again = tiny.plain(tmp_path)
    assert again.config.num_hidden_layers == 2
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, wanted, rtol=1e-4, atol=1e-5)
        written = again.generate(IDS, max_new_tokens=6, do_sample=False, min_new_tokens=6)
        assert torch.equal(base.module.generate(IDS, max_new_tokens=6, do_sample=False, min_new_tokens=6), written)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_skeletons_are_cut_the_same_way(encoders, family):
    real = small.loaded(encoders[family], HeadSpec(2), layers=KEPT)
    bones = small.skeleton(encoders[family], HeadSpec(2), layers=KEPT)
    facts = [[(n, tuple(t.shape)) for n, t in base.module.state_dict().items()] for base in (real, bones)]
    assert facts[0] == facts[1]
    assert bones.layers == (2, 0)
    assert bones.module.config.num_hidden_layers == 2


def test_causal_skeletons(decoders):
    for folder in decoders.values():
        real, bones = (make(tiny.config(folder, layers=[0, 2])) for make in (load_model, load_skeleton))
        assert list(real.module.state_dict()) == list(bones.module.state_dict())


def test_all_layers_in_their_order_change_nothing(encoders):
    ids = small.batch(small.TEXTS)
    with torch.no_grad():
        models = [small.loaded(encoders["bert"], HeadSpec(2), layers=kept).module(*ids) for kept in (None, [0, 1, 2])]
    assert torch.equal(*models)


def test_blocks_are_numbered_anew(decoders):
    module = load_model(tiny.config(decoders["llama"], layers=[1, 2])).module
    assert [block.self_attn.layer_idx for block in module.model.layers] == [0, 1]


def test_lists_with_an_entry_for_each_layer(tmp_path):
    """Gemma 3 says of every layer how far it looks back; the kept ones keep their kind."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    folder = tiny.saved(tmp_path / "whole", "gemma3", num_hidden_layers=4, layer_types=kinds)
    base = load_model(tiny.config(folder, layers=[2, 3]))
    assert base.module.config.layer_types == ["full_attention", "sliding_attention"]
    base.module.save_pretrained(tmp_path / "cut")
    long = torch.arange(2, 42)[None]
    with torch.no_grad():
        assert torch.allclose(tiny.plain(tmp_path / "cut")(long).logits, base.module(long).logits, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "gemma3"])
def test_lines_that_cut_the_same_way(tmp_path, family):
    """Run as they stand, on a model loaded by transformers alone."""
    changes = {"gpt2": {"n_layer": 3}, "gemma3": {"num_hidden_layers": 3, "layer_types": None}}
    if family == "gemma3":
        changes["gemma3"]["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    folder = tiny.saved(tmp_path, family, **changes.get(family, {"num_hidden_layers": 3}))
    cut_ = load_model(tiny.config(folder, layers=KEPT)).module
    lines = recipe(cut_, KEPT)
    assert len(lines) <= 5
    space = {"torch": torch, "base": tiny.plain(folder)}
    exec("\n".join(lines), space)
    with torch.no_grad():
        assert torch.allclose(space["base"](IDS).logits, cut_(IDS).logits, atol=1e-5)
        written = [m.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False) for m in (space["base"], cut_)]
    assert torch.equal(*written)


# -- what cannot be


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ([], "needs at least one layer"),
        ([0, 3], r"3 is no layer of this model, which has 3 \(0 to 2\)"),
        ([-1], "-1 is no layer"),
        ([0, 1, 0], "layer 0 is named twice"),
    ],
)
@pytest.mark.parametrize("make", [small.loaded, small.skeleton])
def test_numbers_that_are_no_layers(encoders, kept, words, make):
    with pytest.raises(UserError, match=words):
        make(encoders["bert"], HeadSpec(2), layers=kept)


def test_layers_that_are_one_and_the_same(encoders):
    """ALBERT runs one block over and over; there is no list to cut."""
    with pytest.raises(UserError, match="layers of a AlbertModel cannot be found"):
        small.loaded(encoders["albert"], HeadSpec(2), layers=[0, 1])


def test_layers_that_differ_by_their_place(encoders):
    """ModernBERT's first block has no norm of its own, wherever it would be loaded again."""
    with pytest.raises(UserError, match="differ by their place"):
        small.loaded(encoders["modernbert"], HeadSpec(2), layers=[1, 2])
    assert small.loaded(encoders["modernbert"], HeadSpec(2), layers=[0, 1]).parameters


def test_a_real_encoder():
    folder = small.minilm()
    teacher, student = (small.loaded(folder, HeadSpec(2), layers=kept).module for kept in (None, [0, 2, 4]))
    assert (teacher.config.num_hidden_layers, student.config.num_hidden_layers) == (6, 3)
    for new, old in enumerate([0, 2, 4]):
        for mine, its in zip(
            student.backbone.encoder.layer[new].parameters(),
            teacher.backbone.encoder.layer[old].parameters(),
            strict=True,
        ):
            assert torch.equal(mine, its)


def test_cutting_what_transformers_made(tmp_path):
    model = transformers.AutoModel.from_config(small.FAMILIES["bert"]())
    cut(model, [1])
    model.save_pretrained(tmp_path)
    assert len(small.plain(tmp_path).encoder.layer) == 1


def test_the_setting():
    assert load("quickstart", ["model.layers=[0, 2]"]).model.layers == [0, 2]
