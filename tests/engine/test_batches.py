"""Batches: every row once a pass, a function of the key, and stable as the plan grows."""

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.engine.batches import GROUP, plan

LAW = settings(deadline=None, derandomize=True, max_examples=150)
counts, sizes, seeds = st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**63 - 1)


def passes(batches, count, size):
    per_pass = -(-count // size)
    return [batches[i : i + per_pass] for i in range(0, len(batches), per_pass)]


@LAW
@given(counts, sizes, seeds, st.integers(1, 3), st.booleans())
def test_every_row_comes_once_a_pass(count, size, seed, epochs, grouped):
    lengths = [(7 * i) % 11 for i in range(count)] if grouped else None
    batches = plan(count, size, seed, epochs=float(epochs), lengths=lengths)
    found = passes(batches, count, size)
    assert len(found) == epochs
    for one in found:
        assert sorted(chain(*one)) == list(range(count))
        assert sorted(map(len, one), reverse=True)[:-1] == [size] * (len(one) - 1)  # at most one is smaller


@LAW
@given(counts, sizes, seeds)
def test_the_smaller_batch_is_the_last_of_its_pass(count, size, seed):
    for one in passes(plan(count, size, seed, epochs=2.0), count, size):
        assert [len(batch) for batch in one[:-1]] == [size] * (len(one) - 1)


@LAW
@given(counts, sizes, seeds, st.integers(0, 20), st.integers(0, 20), st.booleans())
def test_a_longer_plan_begins_like_a_shorter_one(count, size, seed, steps, more, grouped):
    lengths = list(range(count)) if grouped else None
    short = plan(count, size, seed, steps=steps, lengths=lengths)
    assert len(short) == steps
    assert plan(count, size, seed, steps=steps + more, lengths=lengths)[:steps] == short


@pytest.mark.parametrize(
    ("count", "size", "epochs", "batches"),
    [(10, 4, 1.0, 3), (10, 4, 2.0, 6), (10, 4, 0.5, 2), (10, 4, 1.4, 4), (10, 4, 0.01, 1),
     (3, 8, 1.0, 1), (3, 8, 5.0, 5), (8, 8, 1.0, 1)],
)  # fmt: skip
def test_epochs_are_passes_rounded_to_batches(count, size, epochs, batches):
    """At least one; 1.4 x 3 batches are 4.2, so 4."""
    assert len(plan(count, size, 0, epochs=epochs)) == batches


def test_steps_go_before_epochs():
    assert len(plan(10, 4, 0, steps=7, epochs=1.0)) == 7


def test_each_pass_is_shuffled_anew():
    one, other = passes(plan(50, 50, 3, epochs=2.0), 50, 50)
    assert one != other


def test_other_keys_are_other_orders():
    assert len({tuple(plan(30, 30, seed, steps=1)[0]) for seed in range(20)}) == 20


def test_orders_are_what_they_always_were():
    """Pinned: a change here changes every run that was ever made."""
    assert plan(5, 2, 0, steps=4) == PINNED
    assert plan(5, 2, 0, steps=3, lengths=[5, 1, 4, 2, 3]) == PINNED_GROUPED


PINNED = [[3, 4], [0, 2], [1], [4, 0]]
PINNED_GROUPED = [[0], [1, 3], [4, 2]]


@LAW
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6), seeds)
def test_grouped_batches_are_neighbours_in_length(lengths, size, seed):
    """Within one group (here: all rows) no batch reaches into the lengths of another."""
    count = min(len(lengths), size * GROUP)
    batches = plan(count, size, seed, epochs=1.0, lengths=lengths[:count])
    ranges = sorted((min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in batches)
    assert all(left[1] <= right[0] for left, right in pairwise(ranges))


def test_grouping_saves_padding_and_keeps_batches_mixed():
    """Lengths 1..64 in batches of 8: padded to the longest, about 8 x 8 x 4 tokens less a batch than unsorted."""
    lengths = list(range(1, 65))

    def padding(batches):
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)

    plain, grouped = plan(64, 8, 1, epochs=1.0), plan(64, 8, 1, epochs=1.0, lengths=lengths)
    assert padding(grouped) == 8 * sum(range(8))
    assert padding(plain) > 3 * padding(grouped)
    assert [max(lengths[i] for i in b) for b in grouped] != sorted(max(lengths[i] for i in b) for b in grouped)


def test_large_sets_are_grouped_in_parts_so_that_neighbours_change_with_the_pass():
    lengths = list(range(40 * GROUP))
    one, other = passes(plan(40 * GROUP, 4, 1, epochs=2.0, lengths=lengths), 40 * GROUP, 4)
    assert {frozenset(b) for b in one}.isdisjoint({frozenset(b) for b in other})
