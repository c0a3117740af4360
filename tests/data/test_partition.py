"""One plan for all splits: nothing lost, nothing twice, the same categories, the same plan from the same seed."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data.config import (
    CategoryConfig,
    DataConfig,
    DirichletConfig,
    IidConfig,
    NaturalConfig,
    QuantityConfig,
    ShardsConfig,
)
from fedloom.data.partition import holdings, plan
from fedloom.data.rows import Row
from fedloom.data.sources import Table
from fedloom.errors import UserError

HALF = DataConfig(validation=0.1, test=0.2)


def table_of(categories, clients=None, splits=None, notes=()):
    owners = clients if clients is not None else [None] * len(categories)
    rows = tuple(Row(f"q{i}", "", f"a{i}", c, w) for i, (c, w) in enumerate(zip(categories, owners, strict=True)))
    return Table("toy", rows, None if splits is None else tuple(splits), None, tuple(notes))


def every(share):
    return [*share.train, *share.validation, *share.test]


def all_rows(dealt):
    return sorted(row for share in dealt.shares for row in every(share))


def kinds(table, rows):
    return {table.rows[i].category for i in rows}


METHODS = st.one_of(
    st.builds(IidConfig, clients=st.integers(1, 6)),
    st.builds(
        DirichletConfig, clients=st.integers(1, 6), alpha=st.sampled_from([0.01, 0.5, 9.0]), min_size=st.integers(1, 3)
    ),
    st.builds(
        QuantityConfig, clients=st.integers(1, 6), alpha=st.sampled_from([0.01, 0.5]), min_size=st.integers(1, 3)
    ),
    st.builds(CategoryConfig, clients=st.integers(1, 6), per_client=st.integers(1, 3)),
    st.builds(ShardsConfig, clients=st.integers(1, 6), per_client=st.integers(1, 3)),
    st.builds(NaturalConfig),
)


@settings(deadline=None, max_examples=150)
@given(
    categories=st.lists(st.sampled_from("abcd"), min_size=18, max_size=90),
    partition=METHODS,
    split=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_row_is_held_once_and_tests_match_training(categories, partition, split, seed):
    categories = [*"aaabbbcccddd", *categories]
    splits = (
        [("train", "train", "train", "test", "validation")[i % 5] for i in range(len(categories))] if split else None
    )
    clients = [f"w{i % 3}" for i in range(len(categories))]
    table = table_of(categories, clients, splits)
    dealt = plan(table, partition, HALF, seed)
    assert dealt == plan(table, partition, HALF, seed)
    assert all_rows(dealt) == list(range(len(categories)))
    assert len(dealt.shares) == (partition.clients or 3)
    for share in dealt.shares:
        assert share.train
        if table.split_of is not None:
            assert {table.split_of[i] for i in share.train} == {"train"}
            assert {table.split_of[i] for i in share.test} <= {"test"}
            assert {table.split_of[i] for i in share.validation} <= {"validation"}
        if partition.method != "natural" or not split:
            assert kinds(table, share.test) | kinds(table, share.validation) <= kinds(table, share.train)
        if partition.method == "natural":
            assert {table.rows[i].client for i in every(share)} == {share.name}
        if partition.method in ("dirichlet", "quantity"):
            assert len(share.train if split else every(share)) >= partition.min_size


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=5), test=st.floats(0, 0.49), validation=st.floats(0, 0.49)
)
def test_fractions_are_met_as_far_as_every_category_keeps_a_train_row(sizes, test, validation):
    categories = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    share = plan(table_of(categories), IidConfig(clients=1), DataConfig(test=test, validation=validation), 0).shares[0]
    spare, total = sum(size - 1 for size in sizes), len(categories)
    wanted = int(total * validation + 0.5)
    assert len(share.validation) == min(wanted, spare)
    assert len(share.test) == min(int(total * test + 0.5), spare - len(share.validation))
    assert {categories[i] for i in share.train} == set(categories)


def test_another_seed_is_another_plan_and_the_hash_salt_plays_no_part():
    table = table_of(list("abcd") * 20)
    assert plan(table, DirichletConfig(), HALF, 0) != plan(table, DirichletConfig(), HALF, 1)
    code = """if True:
        from fedloom.data.config import DataConfig, DirichletConfig
        from fedloom.data.partition import plan
        from fedloom.data.rows import Row
        from fedloom.data.sources import Table
        rows = tuple(Row(f"q{i}", "", f"a{i}", "abcd"[i % 4]) for i in range(80))
        print(plan(Table("toy", rows, None, None), DirichletConfig(), DataConfig(validation=0.1, test=0.2), 0))
    """
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(plan(table, DirichletConfig(), HALF, 0))


def test_a_split_ring_has_the_same_halves_in_every_split():
    """Three categories, 8 train and 4 test rows each: client i holds half of i and half of i + 1 in both."""
    categories = list("a" * 12 + "b" * 12 + "c" * 12)
    table = table_of(categories, splits=(["train"] * 8 + ["test"] * 4) * 3)
    dealt = plan(table, CategoryConfig(clients=3, per_client=2), DataConfig(), 0)
    for share, held in zip(dealt.shares, ("ab", "bc", "ca"), strict=True):
        assert Counter(categories[i] for i in share.train) == dict.fromkeys(held, 4)
        assert Counter(categories[i] for i in share.test) == dict.fromkeys(held, 2)


def test_split_rows_of_an_untrained_category_are_not_lost():
    table = table_of(list("aaaab"), splits=["train"] * 4 + ["test"])
    assert all_rows(plan(table, IidConfig(clients=2), DataConfig(), 0)) == [0, 1, 2, 3, 4]


def test_names_are_as_wide_as_the_number_of_clients():
    assert [s.name for s in plan(table_of(list("ab") * 2), IidConfig(clients=2), HALF, 0).shares] == [
        "client-000",
        "client-001",
    ]
    wide = plan(table_of([None] * 1001), IidConfig(clients=1001), HALF, 0)
    assert (wide.shares[0].name, wide.shares[-1].name) == ("client-0000", "client-1000")


def test_natural_clients_in_order_of_their_names_small_ones_counted():
    clients = ["10"] * 4 + ["9"] * 3 + ["2"] * 1 + ["11"] * 5
    dealt = plan(table_of([None] * 13, clients), NaturalConfig(min_size=2, clients=2), HALF, 0)
    assert [share.name for share in dealt.shares] == ["9", "10"]
    assert dealt.notes == (
        "1 clients with fewer than 2 rows are left out (1 rows)",
        "the first 2 of 3 clients are taken (5 rows left out)",
    )


def test_natural_clients_of_a_split_source_get_their_own_test_rows():
    table = table_of([None] * 6, list("aabbab"), ["train", "train", "train", "train", "test", "test"])
    shares = plan(table, NaturalConfig(), DataConfig(), 0).shares
    assert [(s.train, s.test) for s in shares] == [((0, 1), (4,)), ((2, 3), (5,))]


def test_holdings_count_train_rows_by_category():
    table = table_of(["b", None, "a", "b"], splits=["train", "train", "train", "test"])
    dealt = plan(table, IidConfig(clients=1), DataConfig(), 0)
    assert holdings(table, dealt) == [
        {"name": "client-000", "train": 3, "validation": 0, "test": 1, "categories": {"(none)": 1, "a": 1, "b": 1}}
    ]


@pytest.mark.parametrize(
    "categories,clients,partition,data,says",
    [
        ("ab", None, IidConfig(clients=3), {}, ["2 rows for partition.clients=3"]),
        ([None, "a", None], None, DirichletConfig(clients=2), {}, ["2 of 3 rows", "data.columns.category", "iid"]),
        ([None, "a"], None, CategoryConfig(clients=1), {}, ["method=category", "1 of 2 rows"]),
        ([None, "a"], None, ShardsConfig(clients=1), {}, ["method=shards", "1 of 2 rows"]),
        ("abc", ["x", None, "y"], NaturalConfig(), {}, ["1 of 3 rows", "data.columns.client", "one file per client"]),
        ("abc", ["x", "x", "y"], NaturalConfig(min_size=3), {}, ["min_size=3", "the most is 2"]),
        ("abc", ["x", "x", "y"], NaturalConfig(clients=3), {}, ["partition.clients=3", "has 2 clients"]),
        ("aabb", None, CategoryConfig(clients=4, per_client=3), {}, ["per_client=3", "have 2"]),
        (
            "abbb",
            None,
            CategoryConfig(clients=4, per_client=1),
            {},
            ["1 of 4 clients would have no rows", "client-002"],
        ),
        ("abbb", None, QuantityConfig(clients=2, min_size=3), {}, ["needs 6 rows", "there are 4"]),
        ("abbb", None, IidConfig(clients=1), {"test": 0.6, "validation": 0.4}, ["leave no rows"]),
    ],
)
def test_what_cannot_work_is_an_error_in_words(categories, clients, partition, data, says):
    with pytest.raises(UserError) as error:
        plan(table_of(list(categories), clients), partition, DataConfig(**data), 0)
    for words in says:
        assert words in str(error.value)


def test_the_error_repeats_that_several_columns_could_be_meant():
    note = (
        "the columns type and task could each be the category; set data.columns.category to use one (none is used now)"
    )
    with pytest.raises(UserError, match="type and task could each be"):
        plan(table_of([None] * 4, notes=[note]), DirichletConfig(clients=2), DataConfig(), 0)
