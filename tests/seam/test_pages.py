"""The seam holds every hard case: each toy page learns, through the same driver, hub and store."""

import pytest
import torch

from fedloom.aggregate.robust import Krum
from fedloom.aggregate.rules import Mean
from fedloom.contracts import Federation
from fedloom.rounds import advance
from seam import pages
from seam.quadratic import World
from seam.table import NAMES, rows


@pytest.mark.parametrize("name", NAMES)
def test_page_learns(name: str) -> None:
    row = rows()[name]
    hub = row.world.hub(row.algorithm, stages=row.stages)
    state = row.algorithm.init(row.world.start())
    before = row.algorithm.model(state)
    state = advance(row.algorithm, state, hub, 30, retries=0)
    after = row.algorithm.model(state)
    if row.learns:
        assert row.world.total(after) < 0.5 * row.world.total(before)
    elif row.learns is None:
        assert row.world.total(after) < row.world.total(before)
    else:
        assert not after.whole


def test_poisson_cohorts_are_sometimes_empty_and_the_round_counts_all_the_same() -> None:
    page, world = pages.PoissonNoise(), World()
    hub = world.hub(page)
    state, empty = page.init(world.start()), 0
    for _ in range(30):
        asked = page.cohort(hub)
        moved = page.round(state, hub)
        empty += not asked
        assert not torch.equal(moved.x, state.x)
        state, hub.round = moved, hub.round + 1
    assert empty > 0


def test_masked_sums_equal_the_plain_mean() -> None:
    world, page = World(), pages.DeltaAverage()
    plain = advance(page, page.init(world.start()), world.hub(page), 5, retries=0)
    hidden = advance(page, page.init(world.start()), world.hub(page, stages=(pages.PairwiseMasks(),)), 5, retries=0)
    assert torch.allclose(plain.x, hidden.x, rtol=0, atol=1e-10)


def test_a_rule_that_sees_each_reply_is_refused_under_a_stage_that_hides() -> None:
    class Trusting(pages.DeltaAverage):
        def round(self, s: pages.State, fed: Federation) -> pages.State:
            guarded = Krum(f=1)(Mean(), torch.zeros_like(s.x), lambda term: term)
            got = fed.collect(self.local, lambda _: pages.Point(s.x), fed.cohort(), {"dy": guarded})
            return pages.State(s.x + got.value.dy)

    world, page = World(), Trusting()
    hub = world.hub(page, stages=(pages.PairwiseMasks(),))
    with pytest.raises(ValueError, match="looks at single replies"):
        page.round(page.init(world.start()), hub)
