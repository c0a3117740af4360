"""The seam holds every hard case: each toy page learns, through the same driver, hub and store."""

import pytest
import torch

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
        assert before is not None and after is not None
        assert row.world.total(after) < 0.5 * row.world.total(before)
    else:
        assert after is None


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
    world, page = World(), pages.KrumAverage()
    hub = world.hub(page, stages=(pages.PairwiseMasks(),))
    with pytest.raises(ValueError, match="looks at single replies"):
        page.round(page.init(world.start()), hub)


def test_mixed_ranks_average_products_exactly() -> None:
    """With full ranks everywhere, product space is plain averaging of B A."""
    world = World(ranks=(2, 2, 2, 2, 2))
    space = pages.Products(world.layout(-1))
    ys = [torch.randn(12, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]
    acc = space.rule.start()
    for y, w in zip(ys, (3.0, 1.0), strict=True):
        acc = space.rule.add(acc, space.lift(y, world.layout(0)), w)
    b, a = space.rule.finish(acc)
    terms = [space.lift(y, world.layout(0)) for y in ys]
    want = sum(w * t[0] @ t[1] for w, t in zip((0.75, 0.25), terms, strict=True))
    assert torch.allclose(b @ a, want, atol=1e-12)


def test_staleness_comes_only_from_the_clock() -> None:
    """FedBuff: the slowest client's update is stale, and work in flight survives into later rounds."""
    page, world = pages.FedBuff(), World()
    hub = world.hub(page)
    state = page.init(world.start())
    seen = []
    for _ in range(6):
        state = page.round(state, hub)
        hub.round += 1
        seen.append(len(hub.busy()))
    assert set(seen) == {page.at_work - page.buffer}
    assert hub.snapshot().clock > 0
