"""Optimisers that go on: two trainings with the state between them kept are one."""

import pytest
import torch
from torch import nn

import tiny
from fedloom.adapters.config import LoraConfig
from fedloom.engine import optimizers
from fedloom.engine.config import OptimizerConfig
from tiny import distance

ALL = LoraConfig(rank=4, targets="all-linear")
SIX = [tiny.batch(9, 14, 5, seed=1), tiny.batch(12, 3, seed=2), tiny.batch(7, 16, 8, 4, seed=3), tiny.batch(6, seed=4),
       tiny.batch(5, 11, seed=5), tiny.batch(8, 8, 10, seed=6)]  # fmt: skip
RATES = [0.004, 0.008, 0.012, 0.012, 0.006, 0.003]
OPTIMIZERS = {
    "adamw": OptimizerConfig(name="adamw", weight_decay=0.1),
    "amsgrad": OptimizerConfig(name="adamw", args={"amsgrad": True}),
    "momentum": OptimizerConfig(name="sgd", weight_decay=0.01, args={"momentum": 0.9, "nesterov": True}),
    "rmsprop": OptimizerConfig(name="rmsprop", args={"alpha": 0.9, "eps": 0.01}),
    "rmsprop with momentum": OptimizerConfig(name="rmsprop", args={"momentum": 0.5, "centered": True, "eps": 0.01}),
    "adagrad": OptimizerConfig(name="adagrad"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def rig(folder):
    return tiny.Rig(folder, ALL)


def through_a_store(kept):
    """As a client's memory gives it back: copies, in another order."""
    return {name: value.clone() for name, value in reversed(list(kept.items()))}


# -- trainings


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_three_and_three_steps_are_six(rig, name, clip):
    x = rig.somewhere()
    common = {"optimizer": OPTIMIZERS[name], "max_grad_norm": clip}
    whole = rig.ask(rig.descend(x, batches=SIX, lrs=RATES, inner={}, **common))
    first = rig.ask(rig.descend(x, batches=SIX[:3], lrs=RATES[:3], inner={}, **common))
    assert first.inner
    rig.ask(rig.descend(rig.somewhere(9), inner={}, optimizer=OPTIMIZERS["adamw"]))  # another client in between
    kept = through_a_store(first.inner)
    second = rig.ask(rig.descend(first.y, batches=SIX[3:], lrs=RATES[3:], inner=kept, **common))
    assert torch.equal(second.y, whole.y)
    assert whole.inner.keys() == second.inner.keys()
    assert all(torch.equal(whole.inner[key], second.inner[key]) for key in whole.inner)
    fresh = rig.ask(rig.descend(first.y, batches=SIX[3:], lrs=RATES[3:], inner={}, **common))
    assert distance(fresh.y, whole.y) > 1e-5  # the state does make a difference


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_that_was_handed_in_is_not_written_into(rig, name):
    """It is the client's memory of the last round: a reply that does not count must leave it as it was."""
    x = rig.somewhere()
    common = {"optimizer": OPTIMIZERS[name], "inner": {}}
    kept = rig.ask(rig.descend(x, **common)).inner
    before = through_a_store(kept)
    first, again = (rig.ask(rig.descend(x, **{**common, "inner": kept})) for _ in range(2))
    assert torch.equal(first.y, again.y)
    assert all(torch.equal(kept[key], before[key]) for key in kept)


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_to_begin_one_changes_no_step(rig, name):
    """`inner={}` and None train alike; only the first hands its state back."""
    x = rig.somewhere()
    common = {"optimizer": OPTIMIZERS[name], "gradient": True}
    with_, without = (rig.ask(rig.descend(x, inner=inner, **common)) for inner in ({}, None))
    assert torch.equal(with_.y, without.y)
    assert torch.equal(with_.gradient, without.gradient)
    assert without.inner is None
    assert with_.inner


def test_plain_sgd_has_nothing_to_remember(rig):
    x = rig.somewhere()
    run = rig.ask(rig.descend(x, inner={}))
    assert run.inner == {}
    assert rig.ask(rig.descend(x)).inner is None


def test_the_state_is_plain_tensors_that_a_memory_can_hold(rig):
    """Named by the number of the trained tensor; on the CPU; nobody else's memory."""
    run = rig.ask(rig.descend(rig.somewhere(), optimizer=OPTIMIZERS["adamw"], inner={}))
    assert len(run.inner) == 3 * len(rig.layout.leaves)
    for i, leaf in enumerate(rig.layout.leaves):
        key = f"AdamW {i} {leaf.shape[0]}x{leaf.shape[1]}"
        assert tuple(run.inner[f"{key} exp_avg"].shape) == tuple(run.inner[f"{key} exp_avg_sq"].shape) == leaf.shape
        assert float(run.inner[f"{key} step"]) == 4
    assert all(type(value) is torch.Tensor and value.device.type == "cpu" for value in run.inner.values())
    assert not any(value.requires_grad for value in run.inner.values())
    kept = {name: value.clone() for name, value in run.inner.items()}
    rig.ask(rig.descend(rig.somewhere(2), optimizer=OPTIMIZERS["adamw"], inner={}))
    assert all(torch.equal(kept[name], run.inner[name]) for name in kept)


def test_steps_that_are_left_out_do_not_age_it(rig):
    """A training without a step gives back what it was handed."""
    x = rig.somewhere()
    adamw = OPTIMIZERS["adamw"]
    kept = rig.ask(rig.descend(x, optimizer=adamw, inner={})).inner
    nothing = rig.ask(rig.descend(x, optimizer=adamw, inner=kept, batches=[], lrs=[]))
    assert nothing.inner.keys() == kept.keys()
    assert all(torch.equal(nothing.inner[key], kept[key]) for key in kept)


def test_some_leaves_with_their_own_state(rig):
    """A training of the second factors keeps theirs only, and goes on with it."""
    x = rig.somewhere()
    seconds = [leaf.name for leaf in rig.layout.leaves if leaf.factor == "B"]
    common = {"optimizer": OPTIMIZERS["adamw"], "train": seconds}
    whole = rig.ask(rig.descend(x, batches=SIX, lrs=RATES, **common))
    first = rig.ask(rig.descend(x, batches=SIX[:3], lrs=RATES[:3], inner={}, **common))
    assert len(first.inner) == 3 * len(seconds)
    second = rig.ask(rig.descend(first.y, batches=SIX[3:], lrs=RATES[3:], inner=first.inner, **common))
    assert torch.equal(second.y, whole.y)
    with pytest.raises(ValueError, match="does not fit AdamW"):  # what was the second factors' is not the firsts'
        rig.ask(rig.descend(x, optimizer=OPTIMIZERS["adamw"], inner=first.inner))
    assert torch.equal(rig.ask(rig.descend(x, batches=SIX, lrs=RATES, **common)).y, whole.y)


@pytest.mark.parametrize(
    "kept, asked",
    [("adamw", "momentum"), ("momentum", "adamw"), ("adagrad", "rmsprop"), ("rmsprop", "adamw"), ("adamw", "adagrad")],
)
def test_another_optimiser_s_state_is_refused_in_words(rig, kept, asked):
    x = rig.somewhere()
    inner = rig.ask(rig.descend(x, optimizer=OPTIMIZERS[kept], inner={})).inner
    with pytest.raises(ValueError, match="optimiser"):
        rig.ask(rig.descend(x, optimizer=OPTIMIZERS[asked], inner=inner))


# -- the two functions


def bowl(tensors):
    return sum(((tensor - 1) ** 2).sum() * (i + 1) for i, tensor in enumerate(tensors))


def walk(config, tensors, steps, kept=None):
    optimizer = optimizers.make(config, tensors, 0.03)
    if kept is not None:
        optimizers.recall(optimizer, kept)
    for _ in range(steps):
        optimizer.zero_grad()
        bowl(tensors).backward()
        optimizer.step()
    return optimizers.memory(optimizer)


@pytest.mark.parametrize("name", sorted(optimizers.names()))
def test_every_optimiser_of_torch_can_go_on(name):
    """Whatever shape its state has: Adafactor's is of rows and columns, ASGD's of single numbers."""
    config = OptimizerConfig(name=name, args={"momentum": 0.9} if name == "sgd" else {})
    source = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=source), torch.randn(5, 2, generator=source)]
    whole, parts = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    walk(config, whole, 6)
    kept = walk(config, parts, 3)
    assert kept
    walk(config, parts, 3, {key: value.clone() for key, value in kept.items()})
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_state_of_other_tensors_is_refused():
    config = OPTIMIZERS["adamw"]

    def tensors(*shapes):
        return [nn.Parameter(torch.ones(shape)) for shape in shapes]

    kept = walk(config, tensors((3, 4), (5, 2)), 2)
    for shapes in [((4, 3), (5, 2)), ((3, 4),), ((5, 2), (3, 4)), ((3, 4), (5, 3))]:
        with pytest.raises(ValueError, match="another optimiser, adapter or phase"):
            optimizers.recall(optimizers.make(config, tensors(*shapes), 0.1), kept)


def test_rates_come_from_the_training_not_from_the_state(rig):
    x = rig.somewhere()
    adamw = OPTIMIZERS["adamw"]
    kept = rig.ask(rig.descend(x, optimizer=adamw, inner={}, lrs=[5.0] * 4)).inner
    still = rig.ask(rig.descend(x, optimizer=adamw, inner=kept, lrs=[0.0] * 4))
    assert torch.equal(still.y, x)
