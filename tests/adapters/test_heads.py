"""Adapters beside a classification head: its leaves, its start, gradients, rows, skeletons, and every space."""

import pytest
import torch
from torch.func import functional_call

from fedloom import lowrank
from fedloom.adapters.build import adapt
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.adapters.lora import resized, scale
from fedloom.aggregate.rules import Mean
from fedloom.algorithms import hetlora, lora_a2
from fedloom.errors import UserError
from fedloom.models.heads import HeadSpec, start
from fedloom.spaces.factors import Factors
from fedloom.spaces.products import Products
from fedloom.spaces.refactored import Refactored
from fedloom.spaces.residual import Residual
from fedloom.spaces.slices import Slices
from fedloom.spaces.sparse import Sparse
from fedloom.spaces.stacked import Stacked
from fedloom.spaces.turns import Turns
from models import tiny_classifiers as small

SPEC = HeadSpec(3, "mean", "mlp", seed=4)
HEAD = ["head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"]
BATCH = small.batch(small.TEXTS)
TARGETS = torch.tensor([0, 2, 1, 2])
KINDS = pytest.mark.parametrize(
    "settings", [{}, {"freeze": "A"}, {"sparse": 0.1}, {"targets": "auto"}, {"dropout": 0.2}], ids=str
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: small.saved(tmp_path_factory.mktemp(name), name) for name in ("bert", "distilbert", "llama", "gpt2")}


def lora(**settings):
    return LoraConfig(**{"rank": 4, "targets": "all-linear", **settings})


def adapted(folder, config=None, spec=SPEC, make=small.loaded, **changes):
    config = config or lora()
    return adapt(make(folder, spec, config.kind == "full", **changes), config, 7)


def somewhere(layout, seed=0, size=0.1):
    source = torch.Generator().manual_seed(seed)
    return lowrank.start(layout, 7) + size * torch.randn(layout.size, generator=source)


def slope(model, x):
    """Loss and gradient [P] at x, through the model's own parameters."""
    model.load(x)
    model.g.zero_()
    loss = torch.nn.functional.cross_entropy(model.module(*BATCH), TARGETS)
    loss.backward()
    return loss.item(), model.g.clone()


# -- layout and start


@KINDS
@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "gpt2"])
def test_the_head_stands_behind_the_adapters_leaves(folders, family, settings):
    layout = adapted(folders[family], lora(**settings)).layout
    assert list(layout.names[-4:]) == HEAD
    assert not any(name.startswith(("head", "backbone")) or "pooler" in name for name in layout.names[:-4])
    for leaf in layout.leaves[-4:]:
        assert (leaf.factor, leaf.module, leaf.origin) == ("plain", "", "value")
    assert layout.leaves[-2].shape == (3, 32)


@KINDS
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_neither_head_nor_pooler_is_adapted(folders, settings, pooling):
    for targets in ("all-linear", ["dense", "query"]):
        config = lora(**{**settings, "targets": targets})
        model = adapted(folders["bert"], config, HeadSpec(3, pooling, "mlp"))
        assert model.extras.keys()
        assert not any("pooler" in name or "head" in name for name in model.extras)
        assert not any(hasattr(part, "lora_A") for part in model.module.head.modules())
        assert (model.module.backbone.pooler is None) == (pooling == "mean")


def test_targets_that_are_not_there(folders):
    with pytest.raises(UserError, match=r"no linear layer is called q_proj"):
        adapted(folders["bert"], lora(targets=["q_proj"]))
    with pytest.raises(UserError, match=r"adapter\.targets"):
        adapted(folders["bert"], lora(targets=["out"]))  # the head's own layer


@KINDS
def test_the_start(folders, settings):
    model = adapted(folders["bert"], lora(**settings))
    views = model.layout.views(model.start)
    for name in HEAD:
        assert torch.equal(views[name], start(SPEC, name.removeprefix("head."), tuple(views[name].shape)))
    model.load(model.start)
    assert torch.equal(model.read(), model.start)
    with torch.no_grad():
        found = model.module(*BATCH)
        wanted = small.loaded(folders["bert"], SPEC).module(*BATCH)
    assert torch.allclose(found, wanted, atol=1e-6)


@KINDS
def test_a_skeletons_layout_and_start_are_the_same(folders, settings):
    for family, folder in folders.items():
        real = adapted(folder, lora(**settings))
        bones = adapted(folder, lora(**settings), make=small.skeleton)
        assert real.layout == bones.layout, family
        assert torch.equal(real.start, bones.start)
        assert bones.w.device.type == "cpu"
        bones.rest()
        bones.load(real.start)
        assert torch.equal(bones.read(), real.start)
        assert torch.equal(bones.module.head.out.weight, real.layout.views(real.start)["head.out.weight"])


def test_ranks_of_clients(folders):
    config = lora()
    model = adapted(folders["bert"], config)
    smaller = resized(model.layout, dict.fromkeys(model.extras, 2), lambda rank: scale(config, rank))
    assert smaller.names == model.layout.names
    x = somewhere(smaller)
    model.load(x, smaller)
    assert torch.equal(model.read(), x)
    assert torch.equal(model.module.head.out.weight, smaller.views(x)["head.out.weight"])
    rows = model.together.heads(x, None, smaller)
    assert torch.equal(rows["out.weight"], smaller.views(x)["head.out.weight"])


def test_auto_knows_encoders_that_peft_does_not(tmp_path):
    wanted = {
        "distilbert": {"q_lin", "v_lin"}, "albert": {"query", "value"}, "modernbert": {"Wqkv"},
        "electra": {"query", "value"}, "deberta": {"query_proj", "value_proj"}, "roberta": {"query", "value"},
    }  # fmt: skip
    for family, names in wanted.items():
        model = adapted(small.saved(tmp_path / family, family), lora(targets="auto"))
        assert {name.rpartition(".")[2] for name in model.extras} == names


def test_auto_says_what_to_do_for_others(folders, monkeypatch):
    monkeypatch.setattr("fedloom.adapters.lora.ENCODERS", {})
    words = r"targets=auto: peft names no layers for a distilbert; use all-linear, or .*\(k_lin, lin1, lin2"
    with pytest.raises(UserError, match=words):
        adapted(folders["distilbert"], lora(targets="auto"))


# -- gradients


@KINDS
def test_gradients_are_those_of_differences(folders, settings):
    """In float64: every leaf's gradient, the head's among them, against the loss a little further along."""
    config = lora(**settings)
    base = small.loaded(folders["bert"], SPEC, True)
    base.module.double()
    model = adapt(base, config, 7)
    for layer in model.together.layers:
        layer.a.double(), layer.b.double()
    x = somewhere(model.layout).double()
    model.load(x)
    assert model.w.dtype == torch.float64
    _, g = slope(model, x)
    source = torch.Generator().manual_seed(5)
    for name in [model.layout.names[0], model.layout.names[1], *HEAD]:
        way = torch.zeros_like(x)
        view = model.layout.views(way)[name]
        view.copy_(torch.randn(view.shape, generator=source))
        ahead, behind = (slope(model, x + step * way)[0] for step in (1e-5, -1e-5))
        assert (ahead - behind) / 2e-5 == pytest.approx(float(g @ way), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_rows_head_is_the_models(folders, kind):
    """Forward and gradients of the head through `functional_call` on a row: bit for bit those of the module."""
    model = adapted(folders["bert"], spec=HeadSpec(3, "mean", kind))
    x = somewhere(model.layout)
    _, wanted = slope(model, x)
    w, g = x.clone(), torch.zeros_like(x)
    heads = model.together.heads(w, g, model.layout)
    assert set(heads) == {name for name, _ in model.module.head.named_parameters()}
    hidden = model.module.states(*BATCH).detach().flatten(0, 1)
    longest = BATCH[0].shape[1]
    pooled = model.module.pool(hidden, [(i * longest, i * longest + len(t)) for i, t in enumerate(small.TEXTS)])
    scores = functional_call(model.module.head, heads, (pooled,))
    torch.nn.functional.cross_entropy(scores, TARGETS).backward()
    mine, its = model.layout.views(g), model.layout.views(wanted)
    for name in model.layout.names:
        assert torch.equal(mine[name], its[name]) if name in HEAD else not mine[name].any()
    for name, value in heads.items():
        assert value.is_leaf
        assert value.requires_grad
        assert value.data_ptr() == model.layout.views(w)[f"head.{name}"].data_ptr()
        assert value.grad.data_ptr() == mine[f"head.{name}"].data_ptr()


def test_a_row_that_is_only_evaluated(folders):
    model = adapted(folders["bert"])
    x = somewhere(model.layout)
    heads = model.together.heads(x, None, model.layout)
    assert not any(value.requires_grad or value.grad is not None for value in heads.values())
    assert torch.equal(heads["out.bias"], model.layout.views(x)["head.out.bias"])


def test_gradients_add_up_in_a_row(folders):
    model = adapted(folders["bert"])
    x = somewhere(model.layout)
    g = torch.ones_like(x)
    heads = model.together.heads(x, g, model.layout)
    (2 * heads["out.bias"]).sum().backward()
    assert model.layout.views(g)["head.out.bias"].tolist() == [3.0, 3.0, 3.0]


def test_models_without_a_head_have_none(tmp_path):
    import tiny

    rig = tiny.Rig(tiny.saved(tmp_path, "llama"))
    assert rig.adapted.together.heads(rig.adapted.start, None, rig.layout) == {}


def test_full_trains_the_head_with_everything_else(folders):
    model = adapted(folders["bert"], FullConfig())
    assert {name for name in model.layout.names if name.startswith("head.")} == set(HEAD)
    assert {leaf.origin for leaf in model.layout.leaves} == {"difference"}
    model.parameters(None)  # gradients have no place before
    _, g = slope(model, torch.zeros(model.layout.size))
    views = model.layout.views(g)
    assert all(views[name].any() for name in HEAD)
    bones = adapted(folders["bert"], FullConfig(), make=small.skeleton)
    assert bones.layout == model.layout


# -- what clients hold is averaged: every space, with heads


def clients(layout, count=3):
    return [somewhere(layout, seed) for seed in range(count)], [3.0, 1.0, 2.0][:count]


def mean_head(layout, ys, weights):
    rows = torch.stack([layout.take(y, HEAD).double() for y in ys])
    w = torch.tensor(weights, dtype=torch.float64)
    return (w[:, None] * rows).sum(0) / w.sum()


SPACES = {
    "factors": Factors,
    "turns": Turns,
    "products": Products,
    "slices": lambda layout: Slices(layout, (4,)),
    "stacked": lambda layout: Stacked(layout, 5),
    "residual": lambda layout: Residual(layout, uniform=False),
    "refactored": Refactored,
    "sparse": lambda layout: Sparse(layout, 7, 0.1, 1),
}


@pytest.mark.parametrize("round", [0, 1])
@pytest.mark.parametrize("name", SPACES)
def test_every_space_averages_heads(folders, name, round):
    model = adapted(folders["bert"], lora(sparse=0.1) if name == "sparse" else lora())
    layout = model.layout
    space = SPACES[name](layout)
    ys, weights = clients(layout)
    phase = space.phase(round)
    active = space.active(phase, layout)
    assert active is None or set(HEAD) <= set(active)
    received = space.lower(model.start, layout)
    assert torch.equal(layout.take(received, HEAD), layout.take(model.start, HEAD))
    acc = space.rule.start()
    for y, weight in zip(ys, weights, strict=True):
        acc = space.rule.add(acc, space.lift(y, layout, phase), weight)
    shared, carry = space.close(model.start, (), space.rule.finish(acc), round)
    found = layout.take(shared, HEAD).double()
    assert torch.allclose(found, mean_head(layout, ys, weights), atol=1e-6)
    model.load(shared, layout, carry)
    with torch.no_grad():
        assert model.module(*BATCH).isfinite().all()


@pytest.mark.parametrize("name", ["products", "stacked", "slices"])
def test_spaces_of_mixed_ranks(folders, name):
    config = lora(scale="shared")
    model = adapted(folders["bert"], config)
    smaller = resized(model.layout, dict.fromkeys(model.extras, 2), lambda rank: scale(config, rank))
    space = Slices(model.layout, (2, 4)) if name == "slices" else SPACES[name](model.layout)
    layouts = [model.layout, smaller]
    ys = [somewhere(layout, seed) for seed, layout in enumerate(layouts)]
    lowered = space.lower(ys[0], smaller)
    assert torch.equal(smaller.take(lowered, HEAD), model.layout.take(ys[0], HEAD))
    acc = space.rule.start()
    for y, layout in zip(ys, layouts, strict=True):
        acc = space.rule.add(acc, space.lift(y, layout, 0), 1.0)
    shared, _ = space.close(model.start, (), space.rule.finish(acc), 0)
    wanted = (model.layout.take(ys[0], HEAD) + smaller.take(ys[1], HEAD)) / 2
    assert torch.allclose(model.layout.take(shared, HEAD), wanted, atol=1e-6)


def test_a_frozen_first_factor(folders):
    """FFA-LoRA: B and the head are all there is; the plain mean is exact."""
    layout = adapted(folders["bert"], lora(freeze="A")).layout
    assert lowrank.pairs(layout) == ()
    space = Factors(layout)
    ys, weights = clients(layout)
    acc = Mean().start()
    for y, weight in zip(ys, weights, strict=True):
        acc = Mean().add(acc, space.lift(y, layout, 0), weight)
    shared, _ = space.close(ys[0], (), Mean().finish(acc), 0)
    assert torch.allclose(layout.take(shared, HEAD).double(), mean_head(layout, ys, weights), atol=1e-6)


def test_hetlora_sends_the_head_whole(folders):
    layout = adapted(folders["bert"]).layout
    rule = hetlora.ByNorm(layout)
    y = somewhere(layout, 2)
    acc = rule.add(rule.start(), hetlora.bare(y, layout), None)
    assert torch.allclose(rule.finish(acc), y, atol=1e-6)


@pytest.mark.parametrize("turn", [0, 1])
def test_lora_a2_trains_the_head_in_both_turns(folders, turn):
    layout = adapted(folders["bert"]).layout
    assert set(HEAD) <= set(lora_a2.trained(layout, turn))
    x = somewhere(layout)
    chosen = lora_a2.choose(lora_a2.scores(x, somewhere(layout, 1), layout, turn), layout, 3, turn)
    assert layout.take(chosen, HEAD).all()
