"""Ways to deal rows, by hand."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data import deal
from fedloom.errors import UserError

GROUPS = {"b": list(range(10)), "a": list(range(10, 16)), "c": list(range(16, 20))}


def draw(seed=0):
    return random.Random(seed)


def kinds(held):
    of = {row: name for name, rows in GROUPS.items() for row in rows}
    return [dict(Counter(of[row] for row in rows)) for rows in held]


def test_iid_sizes_differ_by_at_most_one():
    held = deal.iid(range(11), 4, draw())
    assert sorted(map(len, held)) == [2, 3, 3, 3]
    assert sorted(row for rows in held for row in rows) == list(range(11))


def test_a_ring_halves_every_category_between_neighbours():
    held, notes = deal.category(GROUPS, 3, 2, draw())
    assert kinds(held) == [{"b": 5, "a": 3}, {"a": 3, "c": 2}, {"c": 2, "b": 5}]
    assert notes == []


@pytest.mark.parametrize(
    "clients,per_client,expected",
    [
        (3, 1, [{"b": 10}, {"a": 6}, {"c": 4}]),  # in turn
        (2, 1, [{"b": 10, "c": 4}, {"a": 6}]),  # more categories than places: in turn again
        (6, 1, [{"b": 5}, {"a": 3}, {"c": 2}, {"b": 5}, {"a": 3}, {"c": 2}]),  # fewer: shared evenly
        (2, 2, [{"b": 10, "a": 3}, {"a": 3, "c": 4}]),  # places 0 and floor(3 / 2) of the ring
        (3, 3, [{"b": 4, "a": 2, "c": 2}, {"b": 3, "a": 2, "c": 1}, {"b": 3, "a": 2, "c": 1}]),
    ],
)
def test_whole_categories_in_turn(clients, per_client, expected):
    assert kinds(deal.category(GROUPS, clients, per_client, draw())[0]) == expected


def test_more_categories_than_asked_for_is_reported():
    assert "up to 2 each" in deal.category(GROUPS, 2, 1, draw())[1][0]


def test_more_categories_per_client_than_there_are_is_an_error():
    with pytest.raises(UserError, match=r"per_client=4.*have 3"):
        deal.category(GROUPS, 2, 4, draw())


def test_shards_are_runs_of_the_sorted_categories():
    """20 rows sorted a a a a a a b ... c, in 4 shards of 5: aaaaa abbbb bbbbb bcccc."""
    held = deal.shards(GROUPS, 2, 2, draw())
    whole = [{"a": 5}, {"a": 1, "b": 4}, {"b": 5}, {"b": 1, "c": 4}]
    pairs = [dict(Counter(x) + Counter(y)) for x in whole for y in whole if x is not y]
    assert all(kind in pairs for kind in kinds(held))
    with pytest.raises(UserError, match=r"shards need 22 rows.*20"):
        deal.shards(GROUPS, 11, 2, draw())


def test_dirichlet_with_a_large_alpha_is_nearly_even_and_with_a_small_one_is_not():
    even = [len(rows) for rows in deal.dirichlet({"x": range(10_000)}, 4, 1e4, 1, draw())[0]]
    assert max(even) - min(even) < 300
    groups = {name: range(i * 1000, (i + 1) * 1000) for i, name in enumerate("pqrstuvwxy")}
    held, _ = deal.dirichlet(groups, 5, 0.01, 1, draw())
    largest = [max(Counter(row // 1000 for row in rows).values()) for rows in held]
    assert sum(size > 900 for size in largest) >= 4  # hardly any category is shared


def test_dirichlet_always_ends_and_says_what_it_moved():
    held, notes = deal.dirichlet({"x": range(20)}, 10, 1e-9, 2, draw())
    assert [len(rows) for rows in held] == [2] * 10
    assert "18 of 20 rows moved" in notes[0]
    with pytest.raises(UserError, match=r"needs 21 rows.*there are 20"):
        deal.dirichlet({"x": range(20)}, 7, 1.0, 3, draw())


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([1e-6, 0.1, 0.5, 5.0]),
    min_size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_dirichlet_keeps_every_row_once_and_every_client_fed(sizes, clients, alpha, min_size, seed):
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    groups = {str(i): list(range(ends[i], ends[i + 1])) for i in range(len(sizes))}
    if ends[-1] < clients * min_size:
        with pytest.raises(UserError):
            deal.dirichlet(groups, clients, alpha, min_size, draw(seed))
        return
    held, _ = deal.dirichlet(groups, clients, alpha, min_size, draw(seed))
    assert sorted(row for rows in held for row in rows) == list(range(ends[-1]))
    assert min(map(len, held)) >= min_size


def test_quotas_by_hand():
    """10 in proportion 5 : 3 : 1 is 5.56, 3.33, 1.11; the largest remainder gets the one that is left."""
    assert deal.quotas({"a": 5, "b": 3, "c": 1}, 10, None, draw()) == {"a": 6, "b": 3, "c": 1}
    assert deal.quotas({"a": 5, "b": 3, "c": 1}, 10, {"a": 4, "b": 4, "c": 4}, draw()) == {"a": 4, "b": 4, "c": 2}
    assert deal.quotas({"a": 5, "b": 5}, 9, {"a": 1, "b": 2}, draw()) == {"a": 1, "b": 2}
    assert deal.quotas({"a": 1, "b": 1}, 1, None, draw(), {"a": 3, "b": 2}) == {"a": 0, "b": 1}


def test_numbers_in_names_count_as_numbers():
    names = ["site-10", "site-2", "10", "9", "b", "site"]
    assert sorted(names, key=deal.natural_order) == ["9", "10", "b", "site", "site-2", "site-10"]
