"""Rules: numbers by hand, and the laws of a mean."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.aggregate.rules import CHUNK, Gather, Max, Mean, Sum

LAW = settings(deadline=None, derandomize=True, max_examples=60)
RULES = {"mean": Mean(), "uniform": Mean(uniform=True), "over": Mean(over=4.0), "sum": Sum(), "max": Max()}
weights = st.lists(st.floats(1e-3, 1e6) | st.integers(1, 10**6).map(float), min_size=1, max_size=8)
seeds = st.integers(0, 2**31)


def fold(rule, values, given_weights=None):
    """What the rule gives for values added one after the other."""
    return rule.finish(added(rule, values, given_weights))


def added(rule, values, given_weights=None):
    acc = rule.start()
    for value, weight in zip(values, given_weights or [None] * len(values), strict=True):
        acc = rule.add(acc, value, weight)
    return acc


def random(shape, seed, dtype=torch.float64, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def numbers(rule, seed, count):
    """Values the rule takes: vectors, or plain numbers for Max."""
    vectors = [random((5,), seed + i) for i in range(count)]
    return [float(v[0]) for v in vectors] if rule is RULES["max"] else vectors


# -- by hand


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        (Mean(), [0.75 * 4 + 0.25 * 8, 0.75 * 1 - 0.25 * 3]),
        (Mean(uniform=True), [6.0, -1.0]),
        (Mean(over=64.0), [(30 * 4 + 10 * 8) / 64, (30 * 1 - 10 * 3) / 64]),
        (Mean(uniform=True, over=4.0), [3.0, -0.5]),
        (Sum(), [12.0, -2.0]),
    ],
)
def test_two_clients_with_30_and_10_examples(rule, want):
    values = [torch.tensor([4.0, 1.0]), torch.tensor([8.0, -3.0])]
    assert fold(rule, values, [30.0, 10.0]).tolist() == want
    assert [fold(rule, [float(v[i]) for v in values], [30.0, 10.0]) for i in range(2)] == want


def test_the_largest():
    assert fold(Max(), [-3.0, -1.0, -2.0], [1.0, 1.0, 5.0]) == -1.0
    assert fold(Max(), [2, 7]) == 7.0


def test_gather_gives_all_as_they_came():
    values = [torch.ones(2), "text", (1, 2)]
    assert fold(Gather(), values, [1.0, None, 3.0]) == [(values[0], 1.0), ("text", None), ((1, 2), 3.0)]


def test_integers_add_up_exactly():
    """LocalOnly counts examples this way."""
    assert fold(Sum(), [2**40, 3]) == 2**40 + 3
    assert fold(Sum(), [torch.tensor([2**40]), torch.tensor([3])]).tolist() == [2**40 + 3]


def test_scalars_stay_scalars():
    assert isinstance(fold(Mean(uniform=True), [1, 2]), float)
    assert fold(Mean(uniform=True), [torch.tensor(1.0), torch.tensor(2.0)]).shape == ()
    assert fold(Mean(uniform=True), [torch.zeros(0)]).shape == (0,)


# -- laws


@LAW
@given(weights, seeds)
def test_streaming_is_the_batch_mean(w, seed):
    values = [random((3, 4), seed + i) for i in range(len(w))]
    batch = sum(p * v for p, v in zip(torch.tensor(w, dtype=torch.float64) / math.fsum(w), values, strict=True))
    assert torch.allclose(fold(Mean(), values, w), batch, rtol=0, atol=1e-12)
    assert torch.allclose(fold(Mean(uniform=True), values), torch.stack(values).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
@LAW
@given(w=weights, seed=seeds, order=st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(name, w, seed, order):
    values = numbers(RULES[name], seed, len(w))
    pairs = list(zip(values, w, strict=True))
    order.shuffle(pairs)
    shuffled = fold(RULES[name], [v for v, _ in pairs], [x for _, x in pairs])
    assert close(shuffled, fold(RULES[name], values, w))


@pytest.mark.parametrize("name", RULES)
@LAW
@given(w=weights, seed=seeds, data=st.data())
def test_parts_that_are_merged_are_the_whole(name, w, seed, data):
    """Also when a part is empty: a site may have had no client that counted."""
    rule, values = RULES[name], numbers(RULES[name], seed, len(w))
    cut = data.draw(st.integers(0, len(w)))
    left, right = added(rule, values[:cut], w[:cut]), added(rule, values[cut:], w[cut:])
    assert close(rule.finish(rule.merge(left, right)), fold(rule, values, w))


def test_gathered_parts_are_merged_in_order():
    left, right = added(Gather(), ["a", "b"]), added(Gather(), ["c"])
    assert Gather().finish(Gather().merge(left, right)) == [("a", None), ("b", None), ("c", None)]


def close(left, right):
    """Equal to 1e-12 of the size of what was added."""
    left, right = torch.as_tensor(left, dtype=torch.float64), torch.as_tensor(right, dtype=torch.float64)
    return torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@LAW
@given(w=weights, seed=seeds, scale=st.sampled_from([1e-40, 1e-6, 1.0, 1e4]))
def test_the_mean_of_equals_is_that_value_bit_for_bit(dtype, w, seed, scale):
    """float64 sums have bits to spare: rounding back to the replies' format finds the value again."""
    value = random((50,), seed, dtype, scale)
    mean = fold(Mean(), [value.clone() for _ in w], w)
    assert mean.dtype == dtype
    assert torch.equal(mean, value)


@LAW
@given(w=weights, seed=seeds)
def test_the_mean_lies_between_the_values(w, seed):
    values = torch.stack([random((20,), seed + i, torch.float32) for i in range(len(w))])
    mean = fold(Mean(), list(values), w)
    assert (values.amin(0) <= mean).all()
    assert (mean <= values.amax(0)).all()


@pytest.mark.parametrize("power", [-20, 3, 40])
def test_only_the_ratio_of_weights_matters(power):
    values, w = [random((9,), i, torch.float32) for i in range(4)], [3.0, 0.1, 7.0, 1e-3]
    assert torch.equal(fold(Mean(), values, w), fold(Mean(), values, [x * 2.0**power for x in w]))


@pytest.mark.parametrize("name", ["mean", "uniform", "over", "sum"])
def test_linear_rules_are_linear(name):
    rule, w = RULES[name], [3.0, 1.0, 0.5]
    assert rule.linear
    a, b = ([random((6,), s + i) for i in range(3)] for s in (0, 10))
    both = fold(rule, [2 * x - y for x, y in zip(a, b, strict=True)], w)
    assert torch.allclose(both, 2 * fold(rule, a, w) - fold(rule, b, w), rtol=0, atol=1e-12)


def test_what_rules_say_of_themselves():
    """A hiding stage accepts only `reveals == "sum"`; constant memory is promised for `holds == "one"` only."""
    said = [(rule.linear, rule.reveals, rule.holds) for rule in (Mean(), Sum(), Max(), Gather())]
    assert said == [(True, "sum", "one"), (True, "sum", "one"), (False, "each", "one"), (False, "each", "all")]


def test_a_small_reply_is_not_lost_beside_a_large_one():
    """2^24 + 1 is no float32: sums in the replies' own format would lose the 1."""
    values = [torch.tensor([2.0**24]), *[torch.tensor([1.0])] * 8]
    assert fold(Sum(), values).item() == 2**24 + 8


# -- tensors of any kind


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_long_vectors_are_added_whole(size):
    values = [random((size,), i, torch.float32) for i in range(2)]
    want = (3 * values[0].double() + values[1].double()) / 4
    assert torch.equal(fold(Mean(), values, [3.0, 1.0]), want.float())


@pytest.mark.parametrize(
    "make",
    [lambda t: t.T, lambda t: t[::2], lambda t: t[:, 1:3], lambda t: t[:1].expand(4, 6), lambda t: t.requires_grad_()],
)
def test_views_of_larger_tensors_are_added_as_they_look(make):
    value = make(random((4, 6), 1, torch.float32))
    mean = fold(Mean(uniform=True), [value, value * 3])
    assert torch.equal(mean, value.detach() * 2)
    assert not mean.requires_grad


@pytest.mark.parametrize("name", ["mean", "sum"])
def test_replies_are_left_as_they_are(name):
    values = [random((7,), i) for i in range(3)]
    before = [v.clone() for v in values]
    result = fold(RULES[name], values, [1.0, 2.0, 3.0])
    result += 1
    assert all(torch.equal(v, b) for v, b in zip(values, before, strict=True))


@pytest.mark.parametrize("name", ["mean", "sum"])
def test_one_rule_object_serves_many_collects(name):
    rule = RULES[name]
    first = fold(rule, [torch.ones(2)], [1.0])
    assert torch.equal(fold(rule, [torch.ones(2)], [1.0]), first)


# -- what cannot work is said


def test_a_weighted_mean_wants_weights():
    with pytest.raises(TypeError, match="needs messages with a weight"):
        Mean().add(Mean().start(), torch.ones(1), None)


@pytest.mark.parametrize("other", [(4,), (3, 1), (1,), (), (1, 3)])
def test_replies_of_another_shape_are_refused(other):
    """Also those that torch would silently broadcast."""
    acc = added(Sum(), [torch.zeros(3)])
    with pytest.raises(ValueError, match="another space"):
        Sum().add(acc, torch.zeros(other), None)


@pytest.mark.parametrize("other", [(4,), (3, 1), (1,), (), (1, 3)])
def test_parts_of_another_shape_are_not_merged(other):
    with pytest.raises((ValueError, RuntimeError)):
        Sum().merge(added(Sum(), [torch.zeros(3)]), added(Sum(), [torch.zeros(other)]))


@pytest.mark.parametrize("first", [1.0, torch.ones(1), torch.ones(())])
def test_numbers_and_tensors_do_not_mix(first):
    other = torch.ones(1) if isinstance(first, float) else 1.0
    with pytest.raises(ValueError):
        Sum().add(added(Sum(), [first]), other, None)
    with pytest.raises(ValueError):
        Sum().merge(added(Sum(), [first]), added(Sum(), [other]))


@pytest.mark.parametrize("value", [1.0, torch.ones(2)])
def test_a_mean_of_no_weight_is_no_number(value):
    """No NaN is averaged silently: replies whose weights sum to nothing have no mean."""
    acc = added(Mean(), [value, value], [0.0, 0.0])
    with pytest.raises((ValueError, ZeroDivisionError)):
        Mean().finish(acc)
