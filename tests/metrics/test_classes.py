"""Metrics of classes, against numbers by hand and the same library on single rows."""

import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from fedloom.metrics.classes import NO_CLASS, score
from fedloom.metrics.scores import merged

NAMES = ("accuracy", "f1", "f1_weighted", "f1_micro", "matthews")
tables = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=12).map(
    lambda some: merged([tuple(some)])
)


def all_of(confusion):
    """Every metric; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: score(name, confusion) for name in NAMES}


def test_two_classes_by_hand():
    """True positives 3, false positives 1, false negatives 2, true negatives 4.

    F1 of class 1: 6 / (6 + 1 + 2) = 2/3; of class 0: 8 / (8 + 2 + 1) = 8/11; each has 5 true rows.
    Matthews: (3 * 4 - 1 * 2) / sqrt(4 * 5 * 5 * 6) = 10 / sqrt(600).
    """
    found = all_of(((0, 0, 4), (0, 1, 1), (1, 0, 2), (1, 1, 3)))
    assert found == {
        "accuracy": pytest.approx(0.7),
        "f1": pytest.approx((2 / 3 + 8 / 11) / 2),
        "f1_weighted": pytest.approx((2 / 3 + 8 / 11) / 2),
        "f1_micro": pytest.approx(0.7),
        "matthews": pytest.approx(10 / math.sqrt(600)),
    }


def test_the_weighted_mean_is_by_true_rows():
    """Class 0: F1 = 6 / (6 + 1) with 3 true rows; class 1: 0 with 1."""
    found = all_of(((0, 0, 3), (1, 0, 1)))
    assert found["f1"] == pytest.approx((6 / 7) / 2)
    assert found["f1_weighted"] == pytest.approx((6 / 7) * 3 / 4)


def test_a_client_with_a_single_class():
    """Nothing varies: no correlation, whatever was said; classes that are nowhere do not count."""
    assert all_of(((2, 2, 5),)) == {"accuracy": 1.0, "f1": 1.0, "f1_weighted": 1.0, "f1_micro": 1.0, "matthews": 0.0}
    wrong = all_of(((2, 0, 5),))
    assert set(wrong.values()) == {0.0}
    some = all_of(((2, 0, 1), (2, 2, 3)))
    assert (some["accuracy"], some["matthews"]) == (0.75, 0.0)


def test_the_same_word_for_all_is_no_correlation():
    found = all_of(((0, 1, 3), (1, 1, 5)))
    assert (found["accuracy"], found["matthews"]) == (0.625, 0.0)


def test_no_class_is_wrong_and_no_class_of_a_mean():
    """Rows 0→0, 1→1, 1→none: F1 of 0 is 1, of 1 is 2 / (2 + 1)."""
    found = all_of(((0, 0, 1), (1, NO_CLASS, 1), (1, 1, 1)))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["f1_micro"] == pytest.approx(4 / 5)
    nothing = all_of(((0, NO_CLASS, 2), (1, NO_CLASS, 1)))
    assert set(nothing.values()) == {0.0}


@given(tables)
def test_counts_give_what_single_rows_give(confusion):
    rows = [(truth, said) for truth, said, count in confusion for _ in range(count)]
    truth, said = (list(side) for side in zip(*rows, strict=True))
    found = all_of(confusion)
    assert found["accuracy"] == pytest.approx(sum(t == s for t, s in rows) / len(rows))
    assert found["f1_micro"] == pytest.approx(found["accuracy"])
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, said, average="macro", zero_division=0.0))
    assert found["f1_weighted"] == pytest.approx(metrics.f1_score(truth, said, average="weighted", zero_division=0.0))
    if len(set(truth)) > 1 and len(set(said)) > 1:
        assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(truth, said))
    else:
        assert found["matthews"] == 0.0


@given(tables, st.permutations(range(5)))
def test_names_of_classes_do_not_matter(confusion, order):
    renamed = merged([tuple((order[truth], order[said], rows) for truth, said, rows in confusion)])
    assert all_of(renamed) == pytest.approx(all_of(confusion))
