"""Clients of smaller ranks in a model made for larger ones: the same training as in a model of their own."""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from fedloom import lowrank
from fedloom.adapters.config import LoraConfig
from fedloom.adapters.lora import resized, scale
from fedloom.contracts import ClientFailed
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.requests import Evaluate, Generate, Logits, Probe
from fedloom.errors import UserError
from fedloom.params import Layout, Leaf
from tiny import BATCHES, distance

ADAMW = OptimizerConfig(name="adamw", weight_decay=0.1, args={"eps": 1e-5})
LARGE = LoraConfig(rank=8, alpha=6, targets="all-linear", dropout=0.3)
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in ("llama", "gpt2")}


def small(config, layout, rank):
    """A client's layout with one rank for all modules."""
    return resized(layout, dict.fromkeys({leaf.module for leaf in layout.leaves}, rank), lambda r: scale(config, r))


def somewhere(layout, seed=0, size=0.05):
    source = torch.Generator().manual_seed(seed)
    return lowrank.start(layout, 7) + size * torch.randn(layout.size, generator=source)


def same(run, wanted, x):
    """Equal but for the last bits: other places in memory may mean other orders of sums."""
    assert distance(wanted.y, x) > 1e-3
    assert distance(run.y, wanted.y) < 1e-6
    assert distance(run.gradient, wanted.gradient) < 1e-5
    assert run.loss == pytest.approx(wanted.loss, rel=1e-6)
    zeros = {"y": x, "gradient": x, "loss": 0.0}
    assert replace(run, **zeros) == replace(wanted, **zeros)


# -- layouts


@pytest.mark.parametrize(
    "settings, factor",
    [
        ({}, lambda r: 6 / r),
        ({"rslora": True}, lambda r: 6 / math.sqrt(r)),
        ({"scale": "shared"}, lambda r: 6 / 8),
        ({"scale": "shared", "rslora": True}, lambda r: 6 / math.sqrt(8)),
    ],
)
@pytest.mark.parametrize("rank", [1, 3, 8, 12])
def test_scales_by_hand(settings, factor, rank):
    assert scale(LARGE.model_copy(update=settings), rank) == pytest.approx(factor(rank), rel=1e-15)


@FAMILIES
def test_a_layout_made_smaller_is_that_of_a_smaller_adapter(folders, family):
    large = tiny.Rig(folders[family], LARGE)
    own = tiny.Rig(folders[family], LARGE.model_copy(update={"rank": 3}))
    assert small(LARGE, large.layout, 3) == own.layout
    assert small(LARGE, large.layout, 8) == large.layout
    assert small(LARGE, large.layout, 3).fingerprint != large.layout.fingerprint


def test_plain_leaves_stay_and_factors_shrink():
    """A [8, 5] and B [4, 8] of module m beside six plain numbers: 8 * 5 + 6 + 4 * 8 = 78 become 2 * 5 + 6 + 4 * 2."""
    layout = Layout.of(
        [
            Leaf("m.A", (8, 5), factor="A", module="m", scale=0.5),
            Leaf("m.S", (6,), module="m"),
            Leaf("m.B", (4, 8), factor="B", module="m", scale=0.5),
        ]
    )
    found = resized(layout, {"m": 2}, lambda rank: 10.0 * rank)
    assert (layout.size, found.size) == (78, 24)
    assert [(leaf.shape, leaf.offset, leaf.scale) for leaf in found.leaves] == [
        ((2, 5), 0, 20.0),
        ((6,), 10, 1.0),
        ((4, 2), 16, 20.0),
    ]


def test_a_shared_adapter_may_have_other_ranks_in_every_module(folders):
    def ranks(modules):
        return {name: 2 if "attn" in name else 5 for name in modules}

    rig = tiny.Rig(folders["llama"], LARGE, ranks=ranks)
    for leaf in rig.layout.leaves:
        rank = 2 if "attn" in leaf.module else 5
        assert leaf.shape[0 if leaf.factor == "A" else 1] == rank
        assert leaf.scale == 6 / rank
    assert torch.equal(rig.adapted.start, lowrank.start(rig.layout, 7))
    large = tiny.Rig(folders["llama"], LARGE)
    modules = list(large.adapted.extras)
    assert resized(large.layout, ranks(modules), lambda r: scale(LARGE, r)) == rig.layout


def test_a_rank_that_is_too_large_is_not_blamed_on_a_setting_that_did_not_say_so(folders):
    """adapter.rank is 4; the 33 came from `adapter.ranks` or from a client."""
    with pytest.raises(UserError) as caught:
        tiny.Rig(folders["llama"], LoraConfig(rank=4, targets=["q_proj"]), ranks=lambda m: dict.fromkeys(m, 33))
    assert "33" in str(caught.value)
    assert "at most 32" in str(caught.value)
    assert "adapter.rank=33" not in str(caught.value)


# -- training


@FAMILIES
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"scale": "shared"}], ids=str)
def test_a_small_client_trains_as_in_a_model_of_its_own(folders, family, checkpointing, settings):
    """With dropout: masks are keyed by the module's name, not by anything that depends on other clients' ranks."""
    config = LARGE.model_copy(update=settings)
    large = tiny.Rig(folders[family], config, checkpointing=checkpointing)
    layout = small(config, large.layout, 3)
    shared = {"rank": 3, "alpha": 6 * 3 / 8} if settings.get("scale") == "shared" else {"rank": 3}
    own = tiny.Rig(folders[family], config.model_copy(update=shared), checkpointing=checkpointing)
    assert own.layout.leaves[0].scale == pytest.approx(layout.leaves[0].scale)
    x = somewhere(layout)
    how = {"optimizer": ADAMW, "max_grad_norm": 0.5, "gradient": True, "accumulate": 2}
    run, wanted = large.ask(large.descend(x, layout=layout, **how)), own.ask(own.descend(x, **how))
    same(run, wanted, x)
    evaluation = Evaluate(run.y, layout, BATCHES[2], ("loss", "exact_match"), 2, 3)
    assert large.ask(evaluation).nll == pytest.approx(own.ask(evaluation).nll, rel=1e-6)
    assert run.y.shape == run.gradient.shape == (layout.size,)


def test_other_ranks_in_other_modules(folders):
    """Attention 2 and the rest 5 in a model made for 8 everywhere; some leaves only; with a carry."""
    large = tiny.Rig(folders["llama"], LARGE)
    ranks = {name: 2 if "attn" in name else 5 for name in large.adapted.extras}
    layout = resized(large.layout, ranks, lambda r: scale(LARGE, r))
    own = tiny.Rig(folders["llama"], LARGE, ranks=lambda modules: ranks)
    x = somewhere(layout)
    for how in (
        {},
        {"train": [leaf.name for leaf in layout.leaves if leaf.factor == "B"]},
        {"carry": tiny.carried(large.adapted, 3)},
        {"correct": lambda g, w, c: g + c, "with_": (0.01 * somewhere(layout, 5),)},
    ):
        common = {"optimizer": ADAMW, "gradient": True, **how}
        run, wanted = large.ask(large.descend(x, layout=layout, **common)), own.ask(own.descend(x, **common))
        same(run, wanted, x)


@FAMILIES
def test_clients_of_all_sizes_in_turns_disturb_nobody(folders, family):
    """Every answer, to the bit, is the one a fresh model gives."""
    used = tiny.Rig(folders[family], LARGE)
    layouts = [small(LARGE, used.layout, rank) for rank in (8, 1, 3, 8, 2)]
    for turn, layout in enumerate(layouts * 2):
        fresh = tiny.Rig(folders[family], LARGE)
        x = somewhere(layout, turn)
        carry = tiny.carried(used.adapted, 2, turn) if turn % 2 else ()
        request = used.descend(x, layout=layout, carry=carry, optimizer=ADAMW, max_grad_norm=0.5, gradient=True)
        run, wanted = used.ask(request), fresh.ask(request)
        assert torch.equal(run.y, wanted.y)
        assert torch.equal(run.gradient, wanted.gradient)
        assert run.loss == wanted.loss
        for asked in (
            Evaluate(run.y, layout, BATCHES[0], ("loss", "exact_match"), 2, 3, carry),
            Probe([x, run.y], layout, BATCHES[1], carry),
            Generate(x, layout, [(5, 6), (9,)], 2, 3, carry),
        ):
            assert used.ask(asked) == fresh.ask(asked)
        logits = Logits(x, layout, BATCHES[3], carry)
        assert torch.equal(used.ask(logits), fresh.ask(logits))


def test_one_step_of_a_small_client_after_a_large_one_moves_its_own_numbers_only(folders):
    """What lies in the buffer behind the small vector is another client's, and nobody reads it."""
    rig = tiny.Rig(folders["llama"], LARGE)
    rig.ask(rig.descend(torch.full((rig.layout.size,), math.nan)))
    layout = small(LARGE, rig.layout, 2)
    run = rig.ask(rig.descend(somewhere(layout), layout=layout, max_grad_norm=0.5, gradient=True))
    assert run.steps == 4
    assert torch.isfinite(run.y).all()
    assert torch.isfinite(run.gradient).all()


def test_a_training_that_broke_off_does_not_disturb_one_of_another_rank(folders):
    """Its graph may still be alive (somebody holds the exception); the next client's gradients have other shapes."""
    rig, fresh = tiny.Rig(folders["llama"], LARGE), tiny.Rig(folders["llama"], LARGE)
    layout = small(LARGE, rig.layout, 3)
    x = somewhere(layout)

    def broken(leaves):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        rig.ask(rig.descend(rig.somewhere(), penalty=broken))
    assert any("loss" in entry.frame.f_locals for entry in caught.traceback)
    request = rig.descend(x, layout=layout, optimizer=ADAMW)
    assert torch.equal(rig.ask(request).y, fresh.ask(request).y)
    failed = rig.ask(rig.descend(rig.somewhere() * math.nan))
    assert isinstance(failed, ClientFailed)
    assert torch.equal(rig.ask(request).y, fresh.ask(request).y)


# -- mistakes


def test_a_vector_of_another_size_than_its_layout(folders):
    rig = tiny.Rig(folders["llama"], LARGE)
    layout = small(LARGE, rig.layout, 3)
    for x, of in ((somewhere(layout), rig.layout), (rig.somewhere(), layout)):
        with pytest.raises(ValueError, match="does not fit"):
            rig.adapted.load(x, of)


def test_layouts_that_are_none_of_this_model_are_refused(folders):
    """Also those whose sizes would fit by accident: the numbers would end up in other modules."""
    rig = tiny.Rig(folders["llama"], LARGE)
    leaves = rig.layout.leaves
    larger = small(LARGE, rig.layout, 9)
    fewer = Layout.of(leaves[:-2])
    turned = Layout.of(leaves[::-1])
    q, v = leaves[0:2], leaves[4:6]
    exchanged = Layout.of([*v, *leaves[2:4], *q, *leaves[6:]])
    for layout in (larger, fewer, turned, exchanged):
        with pytest.raises(ValueError, match="does not fit"):
            rig.adapted.load(torch.zeros(layout.size), layout)
    x = rig.somewhere()
    rig.adapted.load(x)
    assert torch.equal(rig.adapted.read(), x)
