"""Rounds that go wrong: clients that fail in flight, nobody there, too few for the rule, no step taken."""

from dataclasses import dataclass, replace

import pytest
import torch

from algorithms import linear
from algorithms.linear import Linear, lora
from algorithms.scalar import LAYOUT, Engine, Scalars, number
from fedloom import masks
from fedloom.aggregate.config import AggregateConfig
from fedloom.aggregate.robust import Bulyan, GeometricMedian, Krum, Median, MultiKrum, NormBound, TrimmedMean
from fedloom.algorithms.config import FedSwaConfig
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedbuff import FedBuff, Update
from fedloom.algorithms.fedswa import FedSwa
from fedloom.algorithms.lookahead import Lookahead
from fedloom.algorithms.table import Setting, build
from fedloom.contracts import ClientFailed, TooFewReplies, Trained
from fedloom.events import Noted, ReplyMissing
from fedloom.lowrank import start
from fedloom.params import Layout, Leaf
from fedloom.rounds import advance
from fedloom.spaces.factors import Factors
from fedloom.spaces.products import Products
from fedloom.spaces.refactored import Refactored
from fedloom.spaces.residual import Residual
from fedloom.spaces.slices import Slices
from fedloom.spaces.sparse import Sparse
from fedloom.spaces.stacked import Stacked
from fedloom.spaces.turns import Turns

THREE = {"n": (30, 10, 10), "h": (1.0, 2.0, 1.0), "m": (1.0, -1.0, 0.5)}


@dataclass
class Failing(Engine):
    """One client's trainings always fail."""

    bad: int = 1

    def advance(self):
        if self.calls[0].client == self.bad:
            call = self.calls.pop(0)
            return [(call.client, ClientFailed("loss not finite", "nonfinite"))]
        return super().advance()


@dataclass
class Idle(Engine):
    """One client never takes a step."""

    bad: int = 1

    def advance(self):
        if self.calls[0].client == self.bad:
            call = self.calls.pop(0)
            return [(call.client, Trained(call.request.start, 0, 0.0, 0, 0, None, skipped=2))]
        return super().advance()


@pytest.mark.parametrize("speeds", [(1.0, 1.0, 1.0), (1.0, 0.5, 1.0)])
def test_an_asynchronous_run_outlives_a_client_that_fails_in_flight(speeds):
    world = Scalars(**THREE, cohorts=((0, 1, 2),) * 50, speeds=speeds)
    page = FedBuff(buffer=1, concurrency=3)
    hub, seen = world.hub(page, Failing()), []
    hub.events = seen.append
    state = advance(page, page.init(number(0.0)), hub, rounds=10, retries=0)
    assert state.t > 0
    assert {e.client for e in seen if isinstance(e, ReplyMissing)} == {1}


def test_an_update_of_a_version_that_never_was_is_refused():
    class Liar(FedBuff):
        async def local(self, down, client):
            return replace(await FedBuff.local(self, down, client), t=down.t + 1)

    Liar.local.__annotations__.update(FedBuff.local.__annotations__)
    page = Liar(buffer=2, concurrency=2)
    hub, seen = Scalars().hub(page), []
    hub.events = seen.append
    state = advance(page, page.init(number(0.0)), hub, rounds=1, retries=0)
    assert (float(state.x), state.t) == (0.0, 0)
    assert {e.reason for e in seen if isinstance(e, ReplyMissing)} == {"refused"}
    assert "version 1" in next(e.detail for e in seen if isinstance(e, ReplyMissing))
    assert Update(number(0.0), 0, 1.0)


def test_a_round_too_small_for_the_rule_passes_like_an_empty_one_and_is_told():
    """A trace offers the same clients however often the round is tried."""
    cohorts = (tuple(range(5)), (), (0, 1), tuple(range(5)))
    world = Scalars(n=(10,) * 5, h=(1.0,) * 5, m=(1.0,) * 5, cohorts=cohorts)
    page = FedAvg(Factors(LAYOUT), guard=Krum(1))
    hub, seen = world.hub(page), []
    hub.events = seen.append
    state = advance(page, page.init(number(0.0)), hub, 4, 0)
    assert float(state.x) == pytest.approx(1 - 0.9**4, abs=1e-12)  # two rounds of two steps
    told = [e.message for e in seen if isinstance(e, Noted)]
    assert len(told) == 2
    assert "the rule needs 5 replies" in told[1]


def test_too_few_replies_in_words():
    assert str(TooFewReplies(4, 5, {})) == "4 replies counted, 5 are needed"


def test_server_averaging_samples_a_round_in_which_nobody_was_there():
    world = Scalars(cohorts=((0, 1), (0, 1), (), (0, 1), (0, 1)))
    page = FedSwa(Factors(LAYOUT), start=2, every=2)
    state = advance(page, page.init(number(0.0)), world.hub(page), rounds=4, retries=0)
    assert state.count == 1


@pytest.mark.parametrize("rounds", [1, 2, 10])
@pytest.mark.parametrize("share", [0.75, 0.99])
def test_server_averaging_of_short_runs_averages_something(rounds, share):
    page = build(FedSwaConfig(start=share), AggregateConfig(), Setting(LAYOUT, rounds=rounds))
    state = advance(page, page.init(number(0.0)), Scalars().hub(page), rounds=rounds, retries=0)
    assert state.count > 0


@pytest.mark.parametrize("page", [FedAvg(Factors(LAYOUT)), Lookahead(alpha=1.0, rho=1.0)])
@pytest.mark.parametrize("weighting", ["examples", "dataset", "uniform"])
def test_a_client_that_took_no_step_does_not_count(page, weighting):
    """Else its unchanged weights would hold the mean back: .19 / 2 instead of .19."""
    hub = Scalars(weighting=weighting).hub(page, Idle())
    state = advance(page, page.init(number(0.0)), hub, 1, retries=0)
    assert float(state.x) == pytest.approx(0.19, abs=1e-12)


@dataclass(frozen=True)
class SparseWorld(Linear):
    """One LoRA pair with a sparse update of two entries beside it."""

    def layout(self, client):
        return Layout.of([*lora(1).leaves, Leaf("m0.S", (2,), module="m0")])


class SparseRow(linear.Row):
    def loss(self, leaves, layout, carry):
        update = masks.dense(leaves["m0.S"], masks.entries(0, "m0", 2, 2, 0.5), 2, 2)
        w = 2.0 * leaves["m0.B"] @ leaves["m0.A"] + update
        x, y = update.new_tensor(self.x[0]), update.new_tensor(self.y[0])
        return (w @ x - y).square().sum() / 2


@pytest.mark.parametrize("cohorts", [((0, 1), (), (0, 1), (0, 1)), ((0, 1), (0, 1), (0, 1), (0, 1))])
def test_slora_becomes_factors_even_if_nobody_was_there_at_the_switch(cohorts):
    held = tuple(SparseRow(row.x, row.y) for row in linear.SHEET)
    world = SparseWorld(held=held, cohorts=cohorts)
    layout = world.layout(0)
    page = FedAvg(Sparse(layout, 0, 0.5, 2))
    state = advance(page, page.init(start(layout, 0, torch.float64)), world.hub(page), 4, 0)
    assert not layout.views(state.x)["m0.S"].any()
    assert layout.views(state.x)["m0.B"].any()


RANK2 = lora(2)
SPACES = {
    "factors": Factors(RANK2),
    "turns": Turns(RANK2),
    "products": Products(RANK2),
    "slices": Slices(RANK2, (1, 2)),
    "stacked": Stacked(RANK2, 0),
    "residual": Residual(RANK2),
    "refactored": Refactored(RANK2),
}
GUARDS = {
    "krum": Krum(1),
    "multi_krum": MultiKrum(1, 2),
    "geometric_median": GeometricMedian(),
    "norm_bound": NormBound(1e-2),
    "median": Median(),
    "trimmed_mean": TrimmedMean(0.2),
    "bulyan": Bulyan(0),
}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("space", SPACES)
def test_every_rule_works_in_every_space_that_may_have_it(space, guard):
    world = Linear(n=(10,) * 6, held=linear.SHEET * 3, ranks=(2,) * 6, cohorts=(tuple(range(6)),) * 9)
    page = FedAvg(SPACES[space], guard=GUARDS[guard])
    begin = start(RANK2, 0, torch.float64)
    if GUARDS[guard].coordinates and space in ("products", "slices", "stacked", "residual"):
        with pytest.raises(ValueError, match="number by number"):
            advance(page, page.init(begin), world.hub(page), 1, 0)
        return
    state = advance(page, page.init(begin), world.hub(page), 3, 0)
    assert bool(torch.isfinite(state.x).all())
    assert not torch.equal(state.x, begin) or state.carry
