"""Keyed randomness: a function of its key alone, other for every other key, and of nobody else's generators."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import rng

parts = st.lists(st.integers() | st.text(st.characters(exclude_categories=["C"]), max_size=4), max_size=4).map(tuple)
keys = st.tuples(st.integers(), st.text(st.characters(exclude_categories=["C"]), max_size=4), parts)
LAW = settings(deadline=None, derandomize=True, max_examples=300)

PINNED = {
    (0, "cohort", 0, 0): 6988623756707919227,
    (1, "batches", "turn 0"): 4712169640096891643,
    (-7, "client", 3, -1): 6125294663353765879,
    (2**70, ""): 1106372074201211416,
}


@pytest.mark.parametrize("arguments", PINNED)
def test_keys_are_what_they_always_were(arguments):
    """A change here changes every run that was ever made; it must be on purpose. (Each test process salts `hash`.)"""
    assert rng.key(*arguments) == PINNED[arguments]


def test_draws_are_what_they_always_were():
    assert rng.permutation(rng.key(0, "cohort", 0, 0), 8) == [0, 6, 7, 4, 1, 2, 5, 3]
    assert rng.python(rng.key(0, "x")).random() == 0.05272697428204309
    assert rng.uniform(rng.key(0, "x"), 2).tolist() == [0.9260683707861203, 0.5991396750793272]


@LAW
@given(keys, keys)
def test_other_arguments_are_another_key(left, right):
    same = left == right
    assert (rng.key(left[0], left[1], *left[2]) == rng.key(right[0], right[1], *right[2])) is same


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((0, "p", "a", "bc"), (0, "p", "ab", "c")),
        ((0, "p", "a", "b"), (0, "p", "b", "a")),
        ((0, "p", 1), (0, "p", "1")),
        ((0, "p", 1, 23), (0, "p", 12, 3)),
        ((0, "p", -1), (0, "p", 1)),
        ((0, "p"), (0, "p", "")),
        ((0, "p", ""), (0, "p", "", "")),
        ((0, "p", "x"), (0, "px")),
        ((1, "1p"), (11, "p")),
        ((0, "p", 1), (1, "p", 0)),
        ((0, "p", "int:1"), (0, "p", 1)),
    ],
)
def test_near_misses_are_another_key(left, right):
    assert rng.key(*left) != rng.key(*right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((0, "p", "a", "b"), (0, "p", "a\x1fstr:b")),
        ((0, "p", 1), (0, "p\x1fint:1")),
        ((0, "p", "a"), (0, "p\x1fstr:a")),
    ],
)
def test_no_text_can_pass_for_two_parts(left, right):
    assert rng.key(*left) != rng.key(*right)


@LAW
@given(keys)
def test_keys_fit_a_signed_64_bit_seed(arguments):
    assert 0 <= rng.key(arguments[0], arguments[1], *arguments[2]) < 2**63


def test_neighbouring_keys_do_not_resemble_each_other():
    """Of 63 bits about half differ between keys of neighbouring clients."""
    flips = [(rng.key(0, "client", i) ^ rng.key(0, "client", i + 1)).bit_count() for i in range(200)]
    assert 29 < sum(flips) / len(flips) < 34


@pytest.mark.parametrize("bit", [0, 31, 32, 45, 62])
@pytest.mark.parametrize("draw", ["uniform", "python", "permutation"])
def test_every_bit_of_a_key_counts(bit, draw):
    """Keys that differ anywhere give other numbers: half the bits would meet again after 65 thousand keys."""
    draws = {
        "uniform": lambda seed: rng.uniform(seed, 8).tolist(),
        "python": lambda seed: [rng.python(seed).random()],
        "permutation": lambda seed: rng.permutation(seed, 40),
    }
    seed = rng.key(0, "x")
    assert draws[draw](seed) == draws[draw](seed)
    assert draws[draw](seed) != draws[draw](seed ^ (1 << bit))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_a_permutation_has_everybody_once(count):
    assert sorted(rng.permutation(rng.key(0, "x"), count)) == list(range(count))


def test_every_order_is_drawn_about_equally_often():
    """3! = 6 orders in 3000 draws: 500 each, standard deviation 20."""
    seen = [tuple(rng.permutation(rng.key(0, "x", i), 3)) for i in range(3000)]
    counts = [seen.count(order) for order in set(seen)]
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts)


def test_no_global_generator_is_touched():
    before = torch.get_rng_state(), random.getstate()
    seed = rng.key(3, "x")
    rng.normal(seed, 3)
    rng.python(seed).random()
    rng.permutation(seed, 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_the_global_generators_do_not_matter():
    torch.manual_seed(1)
    random.seed(1)
    first = rng.permutation(rng.key(0, "x"), 20), rng.python(rng.key(0, "x")).random()
    torch.manual_seed(2)
    random.seed(2)
    assert (rng.permutation(rng.key(0, "x"), 20), rng.python(rng.key(0, "x")).random()) == first


def test_two_generators_of_one_key_do_not_disturb_each_other():
    left, right = rng.numbers(5), rng.numbers(5)
    left.random(4)
    assert right.random(3).tolist() == rng.numbers(5).random(3).tolist()
