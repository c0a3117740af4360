"""Models reached by seeds and amounts: the same bits, whatever way they were reached."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import drift as drifts
from fedloom import noise
from fedloom.channel import codec
from fedloom.contracts import Model
from fedloom.drift import Drift, Footing, Strayed, moved, pool, rounded
from fedloom.params import Layout, Leaf

LAYOUT = Layout.of([Leaf("small", (40, 3)), Leaf("large", (noise.PIECE + 9,)), Leaf("wide", (7,))])
KINDS = ("gaussian", "rademacher", "uniform")
AMOUNT = st.floats(-(2**-7), 2**-7, width=32)
TABLE = st.dictionaries(st.integers(0, 30), AMOUNT, max_size=12)


def start(dtype=torch.float32):
    w = 0.1 * torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    LAYOUT.views(w)["wide"].mul_(50)
    return w.float().to(dtype)


def of(table, kind="gaussian"):
    seeds, amounts = torch.tensor(list(table), dtype=torch.int64), torch.tensor(list(table.values()))
    return Drift(seeds, amounts.float(), kind)


def plain(table, kind="gaussian"):
    """The definition, leaf by leaf, in float64, where nothing is rounded that should not be."""
    w = start()
    for leaf, view in LAYOUT.views(w).items():
        largest = float(view.abs().max())
        reach = 1.0
        while reach < 4 * largest:
            reach *= 2
        g = reach / 2**24
        total = (view.double() / g).round() * g
        for seed, amount in table.items():
            z = noise.fill(torch.empty(view.numel()), seed, leaf, 0, kind).view(view.shape)
            total = total + ((z * torch.tensor(amount, dtype=torch.float32)).double() / g).round() * g
        view.copy_(total)
        assert torch.equal(view.double(), total)
    return w


@settings(max_examples=15, deadline=None)
@given(TABLE, st.sampled_from(KINDS))
def test_a_model_is_its_start_and_rounded_products(table, kind):
    assert torch.equal(moved(start(), LAYOUT, of(table, kind)), plain(table, kind))


@settings(max_examples=15, deadline=None)
@given(TABLE, st.randoms(use_true_random=False))
def test_order_changes_no_bit(table, source):
    seeds = list(table)
    source.shuffle(seeds)
    assert torch.equal(moved(start(), LAYOUT, of(table)), moved(start(), LAYOUT, of({s: table[s] for s in seeds})))


@settings(max_examples=15, deadline=None)
@given(st.lists(TABLE, min_size=1, max_size=4))
def test_history_leaves_no_trace(path):
    """Whatever was visited before, a drift is where a fresh start leads; and everything can be undone."""
    footing = Footing(start(), LAYOUT)
    first = footing.w.clone()
    for table in path:
        footing.to(of(table))
        assert torch.equal(footing.w, moved(start(), LAYOUT, of(table)))
    footing.go({})
    assert torch.equal(footing.w, first)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), AMOUNT), max_size=12))
def test_many_small_moves_are_one_large(steps):
    """Amounts are added in float64 and rounded to float32 after every move, as who keeps them does."""
    footing, total = Footing(start(), LAYOUT), {}
    for seed, amount in steps:
        footing.add({seed: amount})
        total[seed] = rounded(total.get(seed, 0.0) + amount)
    assert torch.equal(footing.w, moved(start(), LAYOUT, of(total)))


LEAVES = torch.tensor([0, 2, 2, 1, 0], dtype=torch.int32)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(AMOUNT, min_size=1, max_size=12), min_size=1, max_size=3))
def test_directions_of_single_leaves_move_these_alone(path):
    """Amount k moves leaf LEAVES[k modulo 5], whatever was visited before."""
    footing = Footing(start(), LAYOUT)
    footing.to(of({4: 0.01}))
    first = moved(start(), LAYOUT, of({}))
    for amounts in path:
        footing.to(Drift(11, torch.tensor(amounts), "uniform", LEAVES))
        wanted = first.clone()
        for leaf, name in enumerate(LAYOUT.names):
            mine = {pool(11, k): amount for k, amount in enumerate(amounts) if LEAVES[k % 5] == leaf}
            part = LAYOUT.take(moved(start(), LAYOUT, of(mine, "uniform")), [name])
            wanted = LAYOUT.put(wanted, [name], part)
        assert torch.equal(footing.w, wanted)
    footing.to(of({4: 0.01}))
    assert torch.equal(footing.w, moved(start(), LAYOUT, of({4: 0.01})))


def test_a_piece_that_leaves_its_range_puts_the_others_back():
    footing = Footing(start(), LAYOUT)
    footing.to(Drift(11, torch.full((5,), 0.01), "uniform", LEAVES))
    before = footing.w.clone()
    with pytest.raises(Strayed, match="large reached"):
        footing.to(Drift(11, torch.cat([torch.full((4,), 0.02), torch.tensor([0.0, 0.0, 0.0, 0.45] * 80)]), "uniform",
                         torch.tensor([0, 0, 0, 1], dtype=torch.int32)))  # fmt: skip
    assert torch.equal(footing.w, before)


def test_formats_agree():
    table = {seed: 0.003 * (seed - 4) for seed in range(9)}
    assert torch.equal(moved(start(), LAYOUT, of(table)).double(), moved(start(torch.float64), LAYOUT, of(table)))


def test_another_distribution_begins_at_the_start():
    footing = Footing(start(), LAYOUT)
    footing.to(of({1: 0.01, 2: -0.01}))
    footing.to(of({1: 0.02}, "rademacher"))
    assert torch.equal(footing.w, moved(start(), LAYOUT, of({1: 0.02}, "rademacher")))


def test_a_thousand_moves_there_and_back_are_exact():
    source, footing = random.Random(0), Footing(start(), LAYOUT)
    first = footing.w.clone()
    for seed in range(300):
        footing.add({seed: source.gauss(0, 1e-3)})
    footing.go(dict.fromkeys(range(300), 0.0))
    assert torch.equal(footing.w, first)


def test_rounding_the_start_is_small():
    apart = (Footing(start(), LAYOUT).w - start()).abs()
    assert 0 < float(apart.max()) <= 16 * 4 / 2**25
    assert float(LAYOUT.take(apart, ["small"]).max()) <= 2 / 2**25


@pytest.mark.parametrize("table", [{1: 0.5}, dict.fromkeys(range(400), 0.03)], ids=["one step", "many"])
def test_leaving_the_range_is_said_and_changes_nothing(table):
    footing = Footing(start(), LAYOUT)
    footing.to(of({7: 0.01}))
    before = footing.w.clone()
    with pytest.raises(Strayed, match=r"(small|large|wide) reached .* diverged; lower the learning rate"):
        footing.to(of(table))
    assert torch.equal(footing.w, before)
    footing.to(of({8: 0.01}))
    assert torch.equal(footing.w, moved(start(), LAYOUT, of({8: 0.01})))


def test_ranges_follow_the_start():
    assert drifts.ranges(start(), LAYOUT) == (2.0, 2.0, 64.0) or min(drifts.ranges(start(), LAYOUT)) >= 1
    for leaf, reach in zip(LAYOUT.leaves, drifts.ranges(start(), LAYOUT), strict=True):
        largest = float(LAYOUT.views(start())[leaf.name].abs().max())
        assert reach == max(1.0, 2.0 ** math.ceil(math.log2(4 * largest)))
    w = start()
    w[3] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        drifts.ranges(w, LAYOUT)


def test_a_pool_says_its_seeds():
    amounts = torch.tensor([0.0, 2**-5, -(2**-6)])
    assert Drift(11, amounts).table() == {pool(11, 1): 2**-5, pool(11, 2): -(2**-6)}
    named = Drift(torch.tensor([pool(11, k) for k in range(3)]), amounts)
    assert torch.equal(moved(start(), LAYOUT, named), moved(start(), LAYOUT, Drift(11, amounts)))


def test_a_seed_that_comes_twice_counts_twice():
    assert Drift(torch.tensor([4, 5, 4]), torch.tensor([0.25, 1.0, 0.5])).table() == {4: 0.75, 5: 1.0}
    assert Drift(torch.tensor([4, 4]), torch.tensor([0.25, -0.25])).table() == {}


@pytest.mark.parametrize(
    ("drift", "words"),
    [
        (Drift(torch.tensor([1, 2]), torch.tensor([0.1])), "one amount for each seed"),
        (Drift(1, torch.zeros(2, 2)), "one amount for each seed"),
        (Drift(1, torch.tensor([math.inf])), "not finite"),
        (Drift(torch.tensor([1]), torch.tensor([0.1]), "uniform", LEAVES), "numbered in a pool"),
        (Drift(1, torch.tensor([0.1]), "uniform", LEAVES[:0]), "numbered in a pool"),
        (Drift(1, torch.tensor([0.1]), "uniform", LEAVES + 3), "not among the 3"),
    ],
)
def test_what_is_no_drift_is_refused(drift, words):
    with pytest.raises(ValueError, match=words):
        moved(start(), LAYOUT, drift)


def test_equal_drifts_are_the_same_and_others_not():
    one = Drift(torch.tensor([1, 2]), torch.tensor([0.1, 0.2]))
    assert one.same(Drift(one.seeds.clone(), one.amounts.clone()))
    pooled = Drift(3, one.amounts)
    assert pooled.same(Drift(3, one.amounts.clone()))
    for other in (
        None, pooled, Drift(torch.tensor([1, 3]), one.amounts), Drift(one.seeds, one.amounts + 1),
        Drift(one.seeds, one.amounts, "rademacher"),
    ):  # fmt: skip
        assert not one.same(other)
    assert not pooled.same(Drift(4, one.amounts))
    single = Drift(3, one.amounts, leaves=LEAVES)
    assert single.same(Drift(3, one.amounts, leaves=LEAVES.clone()))
    assert not single.same(pooled) and not pooled.same(single)
    assert not single.same(Drift(3, one.amounts, leaves=LEAVES + 1))


@pytest.mark.parametrize("drift", [of({1: 0.5, 1 << 62: -1.0}), Drift((1 << 63) - 1, torch.randn(5), "rademacher"),
                                   Drift(3, torch.randn(5), "uniform", LEAVES)])  # fmt: skip
def test_a_drift_travels_in_a_model(drift):
    model = Model(torch.empty(0), drift=drift)
    found = codec.decode(Model, codec.encode(model))
    assert found.drift is not None
    assert drift.same(found.drift)


def test_a_pool_of_4096_travels_in_17_kilobytes():
    model = Model(torch.empty(0), drift=Drift(9, torch.randn(4096)))
    assert len(codec.encode(model)) < 17_000
