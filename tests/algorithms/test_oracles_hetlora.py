"""HetLoRA against numbers worked out without this package, and rounds of it written out."""

import numpy
import pytest
import torch

from algorithms.linear import TWO, Linear, Row, fit, lora, pairs, vector
from algorithms.scalar import ORACLES, Engine, advance
from fedloom.algorithms.hetlora import HetLora

START = [
    ([[0.5, 0.4], [0.2, -0.3], [-0.1, 0.7], [0.3, 0.2]], [[0.2, -0.1, 0.3, 0.15], [0.1, 0.4, -0.2, -0.05]]),
    ([[-0.3, 0.6], [0.8, 0.1], [0.4, -0.5], [0.2, 0.1]], [[-0.2, 0.3, 0.1, 0.2], [0.25, 0.15, -0.3, 0.1]]),
]
"""Two modules of rank 4."""


def arrays(layout, x):
    return [(a.numpy(), b.numpy()) for a, b, _ in pairs(layout, x)]


def moved(start, end, rank, **settings):
    """The shared factors after one client of this rank came from `start` to `end`, and a hub for a further round."""
    one = Row(((1.0,) * len(start[0][0]),), ((1.0,) * len(start[1]),))
    w = Linear(n=(5,), held=(one,), ranks=(rank,), cohorts=((0,),) * 2)
    layout = w.shared
    delta = vector(layout, [end]) - vector(layout, [start])
    page, engine = (
        HetLora(layout=layout, **settings),
        Engine(deltas=lambda client: delta if not hub.round else 0 * delta),
    )
    hub = w.hub(page, engine)
    states = advance(page, hub, 2, vector(layout, [start]))
    return arrays(layout, page.model(states[0]).x)[0], arrays(layout, engine.served[1][1].start)[0]


def test_pruning_in_numbers():
    """The tail falls from .295 to .147: slots 2 and 3 go, for good."""
    i, o = ORACLES["hetlora_prune"]["inputs"], ORACLES["hetlora_prune"]["outputs"]
    (a, b), (next_a, next_b) = moved(
        (i["A_received"], i["B_received"]), (i["A_trained"], i["B_trained"]), i["r"], gamma=i["gamma"],
        lam=0.01, least_rank=i["r_min"],
    )  # fmt: skip
    keep = o["new_rank"]
    assert a[:keep] == pytest.approx(numpy.array(i["A_trained"])[:keep], abs=1e-12)
    assert b[:, :keep] == pytest.approx(numpy.array(i["B_trained"])[:, :keep], abs=1e-12)
    assert not b[:, keep:].any()
    assert (b @ a) == pytest.approx(
        numpy.array(i["B_trained"])[:, :keep] @ numpy.array(i["A_trained"])[:keep], abs=1e-12
    )
    assert not a[keep:].any()
    assert not next_a[keep:].any()
    assert not next_b[:, keep:].any()


@pytest.mark.parametrize("grows", [1.0, 2.0])
def test_a_tail_that_did_not_shrink_stays(grows):
    """Strictly smaller, or all slots are kept; equal is not smaller."""
    i = ORACLES["hetlora_prune"]["inputs"]
    start = i["A_received"], i["B_received"]
    end = (numpy.array(i["A_received"]) * grows, i["B_received"])
    (a, b), _ = moved(start, end, 4, gamma=0.5, lam=0.01, least_rank=1)
    assert a == pytest.approx(end[0], abs=1e-12)
    assert b == pytest.approx(numpy.array(end[1]), abs=1e-12)


@pytest.mark.parametrize(("gamma", "least", "kept"), [(0.99, 1, 7), (0.5, 1, 4), (0.5, 6, 6), (0.1, 1, 1), (1.0, 1, 8)])
def test_how_many_slots_are_kept(gamma, least, kept):
    """floor(.99 x 8) = 7, so the tail is one slot; never fewer than the least; 1 never prunes."""
    assert ORACLES["hetlora_gamma_099_rank8"]["outputs"]["new_rank"] == 7
    start = numpy.ones((8, 3)), numpy.ones((2, 8))
    (a, b), (next_a, next_b) = moved(start, (start[0] / 2, start[1]), 8, gamma=gamma, lam=0.01, least_rank=least)
    for found in (a, b.T, next_a, next_b.T):
        assert [bool(slot.any()) for slot in found] == [i < kept for i in range(8)]


def test_the_sum_in_numbers():
    """Ranks 1 and 2, weights by the norms of the products; a rank-1 client receives the first slot."""
    i, o = ORACLES["hetlora_aggregate"]["inputs"], ORACLES["hetlora_aggregate"]["outputs"]
    w = Linear(n=(10, 30), ranks=(1, 2), cohorts=((0, 1),) * 2)
    start = torch.zeros(w.shared.size, dtype=torch.float64)
    ends = [vector(w.layout(k), [(i["A"][k], i["B"][k])]) for k in (0, 1)]
    page = HetLora(layout=w.shared, gamma=1.0, lam=0.0, least_rank=1)
    engine = Engine(deltas=lambda client: ends[client])
    first, _ = advance(page, w.hub(page, engine), 2, start)
    [(a, b)] = arrays(w.shared, page.model(first).x)
    assert a == pytest.approx(numpy.array(o["A"]), abs=1e-8)
    assert b == pytest.approx(numpy.array(o["B"]), abs=1e-8)
    [(a, b)] = arrays(w.layout(0), engine.served[2][1].start)
    assert a == pytest.approx(numpy.array(o["download_rank1"]["A"]), abs=1e-8)
    assert b == pytest.approx(numpy.array(o["download_rank1"]["B"]), abs=1e-8)


def test_where_all_products_are_zero_everybody_counts_the_same():
    w = Linear(n=(10, 30), ranks=(2, 2), cohorts=((0, 1),))
    ends = [vector(w.shared, [(numpy.full((2, 2), v), numpy.zeros((2, 2)))]) for v in (1.0, 3.0)]
    page = HetLora(layout=w.shared, gamma=1.0, lam=0.0, least_rank=1)
    hub = w.hub(page, Engine(deltas=lambda client: ends[client]))
    [state] = advance(page, hub, 1, torch.zeros(8, dtype=torch.float64))
    assert arrays(w.shared, page.model(state).x)[0][0] == pytest.approx(numpy.full((2, 2), 2.0), abs=1e-12)


def tail(factors, t, rank):
    return sum(numpy.linalg.norm(b[:, t:rank]) * numpy.linalg.norm(a[t:rank]) for a, b in factors)


def reference(w, start, rounds, gamma, lam, least):
    """The paper's rounds in plain arrays; ranks after each."""
    shared, ranks, seen = [(numpy.array(a), numpy.array(b)) for a, b in start], list(w.ranks), []
    for cohort in w.cohorts[:rounds]:
        ups, norms = [], []
        for i in cohort:
            r, t = ranks[i], int(gamma * ranks[i])
            got = [(a[:r].copy(), b[:, :r].copy()) for a, b in shared]

            def pull(now, t=t):
                extra = []
                for a, b in now:
                    na, nb = numpy.linalg.norm(a[t:]), numpy.linalg.norm(b[:, t:])
                    da, db = numpy.zeros_like(a), numpy.zeros_like(b)
                    if na > 0 and nb > 0:  # a norm has no gradient at 0; nothing is pulled there
                        da[t:], db[:, t:] = lam * nb * a[t:] / na, lam * na * b[:, t:] / nb
                    extra.append((da, db))
                return extra

            out = fit(got, w.held[i], w.lr, w.steps, pull=pull)
            if tail(out, t, r) < tail(got, t, r):
                ranks[i] = max(least, t)
                out = [(a[: ranks[i]], b[:, : ranks[i]]) for a, b in out]
            ups.append(out)
            norms.append(sum(numpy.linalg.norm(b @ a) ** 2 for a, b in out) ** 0.5)
        shared = [(0 * a, 0 * b) for a, b in shared]
        for up, norm in zip(ups, norms, strict=True):
            for (a, b), (ua, ub) in zip(shared, up, strict=True):
                a[: len(ua)] += norm / sum(norms) * ua
                b[:, : len(ua)] += norm / sum(norms) * ub
        seen.append((shared, tuple(ranks)))
    return seen


@pytest.mark.parametrize("lam", [0.0, 0.01, 0.4])
@pytest.mark.parametrize(("gamma", "least"), [(0.5, 1), (0.75, 2), (1.0, 1)])
def test_rounds_written_out(gamma, least, lam):
    """Ranks 2, 4 and 3, two modules, changing cohorts; the pull, the pruning and the weights together."""
    w = Linear(
        n=(10, 30, 20), held=TWO, ranks=(2, 4, 3), steps=3, lr=0.08,
        cohorts=((0, 1, 2), (0, 2), (1, 2), (0, 1, 2)),
    )  # fmt: skip
    page = HetLora(layout=lora(4, 2), gamma=gamma, lam=lam, least_rank=least)
    states = advance(page, w.hub(page), 4, vector(lora(4, 2), START))
    want = reference(w, START, 4, gamma, lam, least)
    if gamma < 1 and lam > 0.1:
        assert want[-1][1] != w.ranks, "the numbers above prune somebody"
    for state, (factors, _) in zip(states, want, strict=True):
        assert torch.allclose(page.model(state).x, vector(lora(4, 2), factors), rtol=0, atol=1e-10)


def test_from_zero_the_pull_is_finite():
    """B = 0: the tail's norm has no gradient there, and no NaN either."""
    w = Linear(n=(10, 30), ranks=(2, 2), cohorts=((0, 1),) * 2)
    page = HetLora(layout=w.shared, gamma=0.5, lam=0.1, least_rank=1)
    start = vector(w.shared, [([[0.5, 0.5], [0.2, -0.3]], numpy.zeros((2, 2)))])
    states = advance(page, w.hub(page), 2, start)
    assert all(page.model(s).x.isfinite().all() for s in states)
    assert not torch.equal(page.model(states[0]).x, start)


def test_with_equal_ranks_and_equal_clients_it_is_the_client():
    w = Linear(n=(10, 30), held=(TWO[0], TWO[0]), ranks=(4, 4), cohorts=((0, 1),))
    page = HetLora(layout=w.shared, gamma=1.0, lam=0.0, least_rank=1)
    [state] = advance(page, w.hub(page), 1, vector(w.shared, START))
    want = vector(w.shared, fit(START, TWO[0], w.lr, 2))
    assert torch.allclose(page.model(state).x, want, rtol=0, atol=1e-12)
