"""Guards: the papers' numbers, the laws they obey, and what they are for."""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import rng
from fedloom.aggregate.coordinates import middle, repeated
from fedloom.aggregate.robust import Bulyan, GeometricMedian, Krum, Median, MultiKrum, NormBound, TrimmedMean
from fedloom.aggregate.rules import CHUNK, Gather, Max, Mean
from fedloom.aggregate.selection import Chosen, ranking
from fedloom.aggregate.terms import BEYOND, gram, inner, norm, squares
from fedloom.contracts import Message, TooFewReplies, Weighted
from fedloom.runtime.folding import Fold

ORACLES = json.loads((Path(__file__).parents[1] / "oracles_robust.json").read_text())
LAW = settings(deadline=None, derandomize=True, max_examples=60)
UNIFORM = Mean(uniform=True)
seeds = st.integers(0, 2**40)
EXACT = GeometricMedian(iterations=3000, tolerance=0.0)
GUARDS = {
    "median": Median(),
    "trimmed": TrimmedMean(0.2),
    "krum": Krum(1),
    "multi-krum": MultiKrum(1, 3),
    "bulyan": Bulyan(1),
    "geometric": GeometricMedian(),
    "bound": NormBound(1.0),
}


@dataclass(frozen=True)
class Reply(Message):
    y: object


@dataclass(frozen=True)
class Counting(Weighted):
    y: object


def vectors(name, dtype=torch.float64):
    return list(torch.tensor(ORACLES[name]["inputs"]["vectors"], dtype=dtype))


def out(name, field="out"):
    return torch.tensor(ORACLES[name]["outputs"][field], dtype=torch.float64)


def itself(term):
    return term


def guarded(guard, values, weights=None, *, rule=None, point=None, form=itself):
    """What a round with this guard gives, folded as the federation folds."""
    rule = rule or (UNIFORM if weights is None else Mean())
    fold = Fold(guard(rule, torch.zeros_like(values[0]) if point is None else point, form), None, [])
    for client, value in enumerate(values):
        fold.add(client, Reply(value) if weights is None else Counting(y=value, weight=weights[client]))
    return fold.got({}).value.y


def normal(seed, *shape):
    return rng.normal(rng.key(seed, "robust"), *shape)


def near(left, right, tolerance=1e-12):
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance)


# -- numbers of the papers

CASES = [
    ("coordinate_median", Median(), 1e-12),
    ("coordinate_median_odd", Median(), 1e-12),
    ("trimmed_mean", TrimmedMean(0.2), 1e-12),
    ("krum", Krum(1), 0.0),
    ("multi_krum", MultiKrum(1, 3), 1e-11),
    ("bulyan", Bulyan(1), 1e-12),
    ("norm_bounding", NormBound(1.0), 1e-11),
    ("geometric_median_rfa", GeometricMedian(1e-5, 4), 1e-10),
]


@pytest.mark.parametrize(("name", "guard", "tolerance"), CASES)
@pytest.mark.parametrize("weights", ["none", "equal"])
def test_the_worked_out_numbers(name, guard, tolerance, weights):
    values = vectors(name)
    got = guarded(guard, values, None if weights == "none" else [7.0] * len(values))
    assert near(got, out(name), tolerance)


@pytest.mark.parametrize(("name", "guard", "tolerance"), CASES)
def test_float32_stays_float32_and_close(name, guard, tolerance):
    got = guarded(guard, vectors(name, torch.float32))
    assert got.dtype == torch.float32
    assert near(got.double(), out(name), 1e-6)


def test_krum_scores_and_the_form_that_chooses_another():
    apart = squares(vectors("krum"))
    three = apart.sort(dim=1).values[:, 1:4].sum(dim=1)
    assert near(three, out("krum", "scores"), 1e-11)
    assert ranking(apart, 3)[0] == ORACLES["krum"]["outputs"]["selected"] == 0
    other = ORACLES["krum_unsquared_fs_compat"]["outputs"]["selected"]
    assert ranking(apart.sqrt(), 3)[0] == other == 3
    assert not torch.equal(guarded(Krum(1), vectors("krum")), vectors("krum")[other])


def test_multi_krum_picks():
    assert sorted(ranking(squares(vectors("multi_krum")), 3)[:3]) == ORACLES["multi_krum"]["outputs"]["selected"]


def test_bulyan_picks_with_removal_and_not_at_once():
    apart, values = squares(vectors("bulyan")), torch.stack(vectors("bulyan"))
    picked, at_once = repeated(apart, 1, 6), ranking(apart, 5)[:6]
    assert picked == ORACLES["bulyan"]["outputs"]["selected"]
    assert at_once == ORACLES["bulyan_oneshot"]["outputs"]["selected"]
    assert near(middle(values[picked]), out("bulyan", "median"))
    assert near(Bulyan(1).central(values[at_once]), out("bulyan_oneshot"))
    assert not near(guarded(Bulyan(1), vectors("bulyan")), out("bulyan_oneshot"), 1e-2)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_every_step_to_the_geometric_median(steps):
    want = torch.tensor(ORACLES["geometric_median_rfa"]["outputs"]["iterates"][steps], dtype=torch.float64)
    assert near(guarded(GeometricMedian(iterations=steps), vectors("geometric_median_rfa")), want, 1e-10)


def test_the_geometric_median_in_the_end():
    values = vectors("geometric_median_rfa")
    got = guarded(EXACT, values)
    assert near(got, out("geometric_median_rfa", "converged"), 1e-6)
    total = sum(float((got - v).norm()) for v in values)
    assert total == pytest.approx(ORACLES["geometric_median_rfa"]["outputs"]["objective_converged"], rel=1e-9)


def test_the_geometric_median_stops_when_steps_are_short():
    values, end = vectors("geometric_median_rfa"), out("geometric_median_rfa", "converged")
    steps = [guarded(GeometricMedian(iterations=k, tolerance=0.0), values) for k in range(1, 400)]
    moved = [float((b - a).norm()) for a, b in pairwise(steps)]
    got = guarded(GeometricMedian(iterations=400, tolerance=1e-4), values)
    at = next(k for k, step in enumerate(steps) if torch.equal(step, got))
    assert 0 < at < 398
    assert moved[at - 1] < 1e-3 < moved[0]  # distances are between 1 and 6
    assert float((got - end).norm()) < 0.02


def test_norm_bounding_around_another_point():
    point = torch.tensor([3.0, -2.0], dtype=torch.float64)
    got = guarded(NormBound(1.0), [v + point for v in vectors("norm_bounding")], point=point)
    assert near(got, out("norm_bounding") + point, 1e-11)


def test_norm_bounding_with_weights_by_hand():
    values = [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 0.5])]  # the first is cut to [1, 0]
    assert guarded(NormBound(1.0), values, [3.0, 1.0]).tolist() == [0.75, 0.125]


# -- laws


@pytest.mark.parametrize("name", GUARDS)
@LAW
@given(seed=seeds, n=st.integers(7, 11))
def test_the_order_of_clients_does_not_matter(name, seed, n):
    values, order = list(normal(seed, n, 4)), rng.permutation(seed, n)
    assert near(guarded(GUARDS[name], values), guarded(GUARDS[name], [values[i] for i in order]), 1e-10)


@pytest.mark.parametrize("name", GUARDS)
@LAW
@given(seed=seeds, n=st.integers(7, 11))
def test_moving_everything_moves_the_result(name, seed, n):
    values, shift, point = normal(seed, n, 4), 100 * normal(seed + 1, 4), normal(seed + 2, 4)
    here, there = (guarded(GUARDS[name], list(values + by), point=point + by) for by in (0 * shift, shift))
    assert near(here + shift, there, 1e-10)


@pytest.mark.parametrize("name", GUARDS)
@LAW
@given(seed=seeds, n=st.integers(7, 9))
def test_identical_replies_come_back(name, seed, n):
    one = normal(seed, 5)
    assert near(guarded(GUARDS[name], [one.clone() for _ in range(n)], point=one + 0.1), one)


@pytest.mark.parametrize("guard", [Median(), TrimmedMean(0.3), GeometricMedian(), NormBound(100.0)])
def test_one_reply_is_the_result(guard):
    one = torch.tensor([1.0, -2.0, 3.5])
    assert near(guarded(guard, [one]), one)


@LAW
@given(seed=seeds, n=st.integers(3, 9))
def test_what_is_the_plain_mean(seed, n):
    values = list(normal(seed, n, 4))
    mean = torch.stack(values).mean(dim=0)
    assert near(guarded(TrimmedMean(0.0), values), mean)
    assert near(guarded(Bulyan(0), values), mean)
    every = Chosen(inner=UNIFORM, point=torch.zeros(4), form=itself, f=0, count=n, least=3)  # Multi-Krum with m = n
    assert near(guarded(lambda *_: every, values), mean)


@LAW
@given(seed=seeds, n=st.integers(1, 9))
def test_a_loose_norm_bound_is_the_weighted_mean(seed, n):
    values, weights = list(normal(seed, n, 4)), (rng.uniform(seed, n) + 0.01).tolist()
    want = torch.stack([w * v for v, w in zip(values, weights, strict=True)]).sum(dim=0) / sum(weights)
    assert near(guarded(NormBound(1e6), values, weights), want)


@LAW
@given(seed=seeds, n=st.integers(1, 9), limit=st.floats(1e-3, 10.0))
def test_no_mean_of_bounded_replies_is_farther_than_the_bound(seed, n, limit):
    values, point = list(normal(seed, n, 4)), normal(seed + 1, 4)
    assert float((guarded(NormBound(limit), values, point=point) - point).norm()) <= limit * (1 + 1e-12)


@LAW
@given(seed=seeds, half=st.integers(1, 4))
def test_on_a_line_the_geometric_median_is_the_middle_reply(seed, half):
    along, ts = normal(seed, 3), rng.permutation(seed, 2 * half + 1)
    values = [along * t for t in ts]
    assert near(guarded(EXACT, values), along * half, 1e-4 * float(along.norm()) + 1e-9)


@LAW
@given(seed=seeds, n=st.integers(2, 8))
def test_the_geometric_median_counts_weights_as_copies(seed, n):
    values = list(normal(seed, n, 3))
    copied = [v for i, v in enumerate(values) for _ in range(i % 3 + 1)]
    weights = [5.0 * (i % 3 + 1) for i in range(n)]
    assert near(guarded(GeometricMedian(), values, weights), guarded(GeometricMedian(), copied), 1e-9)


@LAW
@given(seed=seeds, n=st.integers(2, 8))
def test_steps_never_move_away_from_the_geometric_median(seed, n):
    values = list(normal(seed, n, 3))

    def total(steps):
        z = guarded(GeometricMedian(iterations=steps, tolerance=0.0), values)
        return sum(float((z - v).norm()) for v in values)

    sums = [total(steps) for steps in (1, 2, 4, 8, 16)]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(sums))


@pytest.mark.parametrize("name", ["median", "trimmed", "krum", "multi-krum", "bulyan", "bound"])
@LAW
@given(seed=seeds, n=st.integers(7, 11), size=st.sampled_from([1e3, 1e12, 1e38, 1e200]), at=st.integers(0, 6))
def test_one_outlier_moves_little(name, seed, n, size, at):
    values = normal(seed, n, 4)
    span = float(values.norm(dim=1).max())
    values[at] = size * torch.sign(normal(seed + 1, 4))
    got = guarded(GUARDS[name], list(values))
    assert float(got.abs().max()) <= span + 1
    assert float(guarded(lambda rule, *_: rule, list(values)).abs().max()) > 10 * span  # the mean it saves us from


@LAW
@given(seed=seeds, n=st.integers(7, 11), size=st.sampled_from([1e3, 1e12, 1e38, 1e200]))
def test_one_outlier_moves_the_geometric_median_little_in_the_end(seed, n, size):
    values = normal(seed, n, 4)
    span = float(values.norm(dim=1).max())
    values[2] = size
    assert float(guarded(GeometricMedian(iterations=400), list(values)).norm()) <= 3 * span


@LAW
@given(seed=seeds, f=st.integers(0, 2))
def test_krum_takes_an_honest_reply(seed, f):
    honest = list(normal(seed, f + 3, 4))
    hostile = [1e3 * (i + 1) + normal(seed + i, 4) for i in range(f)]  # apart from each other
    order = rng.permutation(seed, len(honest) + f)
    got = guarded(Krum(f), [(honest + hostile)[i] for i in order])
    assert any(torch.equal(got, h) for h in honest)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_duplicates_are_replies_of_their_own(shift):
    twins = [torch.full((3,), 5.0), torch.full((3,), 5.0)]
    others = [torch.tensor([float(i), 0.0, 0.1 * i**2]) for i in range(5)]
    values = [(v + shift).double() for v in [*twins, *others]]
    apart = squares(values)
    assert apart[0, 1] == 0
    assert float(apart.min()) == 0
    # one neighbour of the twins is at distance 0, the other three are far: counting oneself would choose a twin
    assert ranking(apart, 4)[0] not in (0, 1)
    assert near(guarded(Krum(1), values), values[ranking(apart, 4)[0]])


def test_a_tie_of_nearest_neighbours_does_not_depend_on_the_order():
    points = [0.0, 1.0, 3.0, 7.0]  # 0 and 1 are each other's nearest; 1 is nearer to the rest
    apart = squares([torch.tensor([p], dtype=torch.float64) for p in points])
    assert ranking(apart, 1)[0] == 1
    back = apart.flip(0).flip(1)
    assert ranking(back, 1)[0] == 2
    square = squares([torch.tensor(p, dtype=torch.float64) for p in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0])])
    assert ranking(square, 1) == [0, 1, 2, 3]


@LAW
@given(seed=seeds)
def test_weights_do_not_sway_a_choice(seed):
    values, heavy = list(normal(seed, 8, 4)), [10.0**i for i in range(8)]
    for guard in (Median(), TrimmedMean(0.2), Krum(1), MultiKrum(1, 3), Bulyan(1)):
        assert torch.equal(guarded(guard, values, heavy), guarded(guard, values))


@pytest.mark.parametrize("name", GUARDS)
def test_sums_of_two_halves_are_one(name):
    values = list(normal(3, 9, 4))
    rule = GUARDS[name](UNIFORM, torch.zeros(4, dtype=torch.float64), itself)
    halves = [rule.start(), rule.start()]
    for i, value in enumerate(values):
        halves[i // 5] = rule.add(halves[i // 5], value, None)
    whole = rule.merge(*halves)
    assert near(rule.finish(whole), guarded(GUARDS[name], values))
    assert torch.equal(rule.finish(whole), rule.finish(whole))


@pytest.mark.parametrize("name", GUARDS)
def test_replies_and_point_are_left_alone(name):
    values, point = list(normal(4, 9, 4)), normal(5, 4)
    before = [v.clone() for v in [*values, point]]
    got = guarded(GUARDS[name], values, point=point)
    got.add_(1.0)
    assert all(torch.equal(v, b) for v, b in zip([*values, point], before, strict=True))


@pytest.mark.parametrize("guard", [Median(), TrimmedMean(0.2), Bulyan(1)])
def test_long_vectors_in_pieces(guard):
    values = list(normal(6, 7, CHUNK + 77).float())
    some = torch.tensor([0, 1, CHUNK // 2, CHUNK - 1, CHUNK, CHUNK + 76])
    got = guarded(guard, values)
    if isinstance(guard, Bulyan):
        picked = repeated(squares(values), 1, 5)
        want = guard.central(torch.stack([values[i][some].double() for i in sorted(picked)])).float()
    else:
        want = guarded(guard, [v[some] for v in values])
    assert torch.equal(got[some], want)


def test_bfloat16_and_any_shape():
    values = [torch.tensor([[1.0, 2.0], [3.0, x]], dtype=torch.bfloat16) for x in (1.0, 2.0, 9.0)]
    got = guarded(Median(), values)
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [[1.0, 2.0], [3.0, 2.0]]


# -- products of factors


@dataclass(frozen=True)
class Stack(Gather):
    """The weighted mean of products, their factors side by side."""

    linear: bool = True

    def finish(self, acc):
        whole = sum(w for _, w in acc.values)
        plain = sum(w / whole * v[0] for v, w in acc.values)
        left = torch.cat([w / whole * v[1] for v, w in acc.values], dim=1)
        return (plain, left, torch.cat([v[2] for v, _ in acc.values], dim=0))


def product(seed, k=2):
    return (normal(seed, 3), normal(seed + 1, 5, k), normal(seed + 2, k, 4))


def written(term):
    """Every number of a term, its product multiplied out."""
    pairs = [(term[m] @ term[m + 1]).reshape(-1) for m in range(1, len(term), 2)]
    return torch.cat([term[0], *pairs])


def turned(term, seed):
    """The same product from other factors."""
    mix = normal(seed, term[1].shape[1], term[1].shape[1]) + 3 * torch.eye(term[1].shape[1], dtype=torch.float64)
    return (term[0], term[1] @ mix, torch.linalg.solve(mix, term[2]))


WHOLE = {"krum": Krum(1), "multi-krum": MultiKrum(1, 3), "geometric": GeometricMedian(), "bound": NormBound(1.0)}


@pytest.mark.parametrize("name", WHOLE)
@LAW
@given(seed=seeds, ranks=st.lists(st.integers(1, 3), min_size=6, max_size=9))
def test_products_count_as_the_matrices_they_stand_for(name, seed, ranks):
    terms, point = [product(seed + 10 * i, k) for i, k in enumerate(ranks)], product(seed + 1000)
    weights = [1.0 + i % 3 for i in range(len(terms))]
    want = guarded(WHOLE[name], [written(t) for t in terms], weights, point=written(point))
    got = guarded(WHOLE[name], terms, weights, rule=Stack(), point=point)
    assert near(written(got), want, 1e-8)
    other = guarded(WHOLE[name], [turned(terms[0], seed), *terms[1:]], weights, rule=Stack(), point=point)
    assert near(written(other), want, 1e-8)


@LAW
@given(seed=seeds, who=st.integers(0, 6))
def test_krum_on_factors_does_not_see_the_gauge(seed, who):
    def packed(term):
        return torch.cat([part.reshape(-1) for part in term])

    def products(vector):
        return (vector[:3], 0.5 * vector[3:13].view(5, 2), vector[13:].view(2, 4))

    terms = [product(seed + 10 * i) for i in range(7)]
    values = [packed(t) for t in terms]
    moved = [packed(turned(t, seed)) if i == who else v for i, (t, v) in enumerate(zip(terms, values, strict=True))]
    apart, after = (squares([products(v) for v in vs]) for vs in (values, moved))
    assert near(apart, after, 1e-8)
    chosen = ranking(apart, 4)[0]
    assert torch.equal(guarded(Krum(1), moved, form=products), moved[chosen])
    assert torch.equal(guarded(Krum(1), values, form=products), values[chosen])


@LAW
@given(seed=seeds, ranks=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_inner_products_are_those_of_the_matrices(seed, ranks):
    terms = [(*product(seed + 20 * i, k), *product(seed + 20 * i + 5, 2)[1:]) for i, k in enumerate(ranks)]
    dense = torch.stack([written(t) for t in terms])
    assert near(gram(terms), dense @ dense.T, 1e-10)
    assert torch.equal(gram(terms), gram(terms).T)
    away = dense - dense[0]
    assert near(gram(terms, terms[0]), away @ away.T, 1e-10)
    assert near(squares(terms, terms[-1]), torch.cdist(dense, dense).square(), 1e-10)
    assert inner(terms[0], terms[-1]) == pytest.approx(float(dense[0] @ dense[-1]), abs=1e-10)
    assert norm(terms[0]) == pytest.approx(float(dense[0].norm()), abs=1e-10)


def test_near_replies_far_from_zero_keep_their_distances():
    base = 1e6 * (1 + rng.uniform(1, 1000))
    steps = 1e-3 * normal(2, 4, 1000)
    values = list(base + steps)
    exact = torch.stack([torch.stack([(a - b).square().sum() for b in values]) for a in values])
    assert near(squares(values, base), exact, 1e-9)
    assert float(squares(values).min()) >= 0
    assert not near(squares(values), exact, 1e-9)  # what taking off a point near them is for


def test_long_vectors_have_the_same_inner_products():
    a, b = normal(1, CHUNK * 3 + 5), normal(2, CHUNK * 3 + 5)
    assert inner(a, b) == pytest.approx(float(a @ b), rel=1e-10)


def test_forms_beyond_all_numbers_are_far_away():
    values = [v.float() for v in normal(7, 7, 3)]

    def form(v):
        return torch.where(v.abs() > 1e6, math.inf, v) * 2

    values[3] = torch.full((3,), 1e7)
    apart = squares([form(v) for v in values])
    assert float(apart[3, 0]) == BEYOND
    for guard in (Krum(1), MultiKrum(1, 3), Bulyan(1), GeometricMedian(), NormBound(1.0)):
        assert float(guarded(guard, values, form=form).abs().max()) < 10


# -- what cannot work, in words


def test_what_a_guarded_rule_says_of_itself():
    for name, guard in GUARDS.items():
        rule = guard(UNIFORM, torch.zeros(2), itself)
        assert not rule.linear
        assert rule.reveals == "each"
        assert rule.holds == ("one" if name == "bound" else "all")
        assert guard.coordinates == (name in ("median", "trimmed", "bulyan"))


@pytest.mark.parametrize(
    ("guard", "least"),
    [
        (Krum(0), 3),
        (Krum(2), 7),
        (MultiKrum(1, 1), 5),
        (MultiKrum(1, 3), 6),
        (MultiKrum(0, 4), 6),
        (Bulyan(0), 3),
        (Bulyan(1), 7),
        (Median(), 1),
        (TrimmedMean(0.49), 1),
        (GeometricMedian(), 1),
        (NormBound(), 1),
    ],
)
def test_it_works_with_its_least_and_not_with_one_less(guard, least):
    assert guard.least == least
    values = list(normal(1, least, 3))
    assert guarded(guard, values).shape == (3,)
    if least > 1:
        with pytest.raises(TooFewReplies, match=f"{least - 1} replies counted, {least} are needed"):
            guarded(guard, values[1:])


@pytest.mark.parametrize(("share", "n", "dropped"), [(0.2, 6, 1), (0.29, 100, 29), (0.3, 10, 3), (0.49, 3, 1)])
def test_how_many_are_trimmed(share, n, dropped):
    values = [torch.tensor([float(i)], dtype=torch.float64) for i in range(n)]
    values[-1] = values[-1] + 1e9
    kept = range(dropped, n - dropped)
    assert float(guarded(TrimmedMean(share), values)) == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize("guard", [Median(), TrimmedMean(), Bulyan(1)])
def test_number_by_number_needs_vectors(guard):
    with pytest.raises(ValueError, match="1 products of LoRA factors; take a space that averages vectors"):
        guard(Stack(), product(1), itself)
    rule = guard(UNIFORM, torch.zeros(3), itself)
    with pytest.raises(ValueError, match="works number by number"):
        rule.add(rule.start(), product(1), None)
    with pytest.raises(ValueError, match="sends float"):
        rule.add(rule.start(), 1.0, None)
    with pytest.raises(TypeError, match="send it as float"):
        rule.add(rule.start(), torch.ones(3, dtype=torch.int64), None)
    acc = rule.add(rule.start(), torch.ones(3), None)
    with pytest.raises(ValueError, match="another guard"):
        rule.add(acc, torch.ones(4), None)


@pytest.mark.parametrize("guard", WHOLE.values())
def test_a_rule_that_is_no_mean_cannot_be_guarded(guard):
    with pytest.raises(ValueError, match="Max is no weighted mean"):
        guard(Max(), torch.zeros(2), itself)


@pytest.mark.parametrize("guard", [GeometricMedian(), NormBound(1.0)])
def test_weights_must_be_there_where_they_count(guard):
    rule = guard(Mean(), torch.zeros(2), itself)
    with pytest.raises(TypeError, match="messages with a weight"):
        rule.finish(rule.add(rule.start(), torch.ones(2), None))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [2.0, -1.0]])
def test_weights_without_a_median(weights):
    with pytest.raises(ValueError, match="needs some above 0, none below"):
        guarded(GeometricMedian(), [torch.zeros(2), torch.ones(2)], weights)


def test_uniform_rules_and_fixed_divisors():
    values, weights = list(normal(8, 6, 3)), [1.0, 100.0, 3.0, 4.0, 5.0, 6.0]
    for guard in (GeometricMedian(), NormBound(1.0)):
        assert torch.equal(guarded(guard, values, weights, rule=UNIFORM), guarded(guard, values))
        assert not near(guarded(guard, values, weights), guarded(guard, values), 1e-3)
    fixed = Mean(uniform=True, over=12.0)
    assert near(guarded(NormBound(1.0), values, rule=fixed), guarded(NormBound(1.0), values) / 2)
    for guard in (Krum(1), MultiKrum(1, 2), GeometricMedian()):
        assert torch.equal(guarded(guard, values, rule=fixed), guarded(guard, values))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Krum(-1), "f is -1"),
        (lambda: MultiKrum(-1), "f is -1"),
        (lambda: MultiKrum(1, 0), "m = 0 replies have no mean"),
        (lambda: Bulyan(-2), "f is -2"),
        (lambda: TrimmedMean(0.5), r"share is 0\.5"),
        (lambda: TrimmedMean(-0.1), "share is"),
        (lambda: NormBound(0.0), "limit is 0"),
        (lambda: GeometricMedian(nu=0.0), "nu is 0"),
        (lambda: GeometricMedian(iterations=0), "0 steps"),
        (lambda: GeometricMedian(tolerance=-1.0), "tolerance is -1"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (torch.zeros(3), product(1), "a vector .3. and a vector .3. with 1 products have no inner product"),
        (torch.zeros(3), torch.zeros(4), "have no inner product"),
        (product(1), (*product(1)[:2], torch.zeros(2, 9)), r"module 1 is \[5, 4\] in one reply and \[5, 9\]"),
    ],
)
def test_terms_that_do_not_fit(left, right, words):
    with pytest.raises(ValueError, match=words):
        inner(left, right)
