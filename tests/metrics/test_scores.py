"""Sums and the metrics computed from them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.metrics.scores import Scores

NAMES = ("loss", "perplexity", "exact_match", "rouge_l")
counts = st.integers(0, 10**6)
whole = st.integers(0, 10**6).map(float)  # sums of whole floats are exact, so laws hold to the bit
scores = st.builds(Scores, examples=counts, tokens=counts, nll=whole, answered=counts, exact=counts, rouge=whole)


def test_metrics_by_hand():
    """8 nats over 4 tokens: 2 per token, exp(2); 3 of 5 answers equal; ROUGE 4 over 5."""
    found = Scores(examples=5, tokens=4, nll=8.0, answered=5, exact=3, rouge=4.0).metrics(NAMES)
    assert found == {"loss": 2.0, "perplexity": pytest.approx(math.e**2), "exact_match": 0.6, "rouge_l": 0.8}
    assert list(found) == list(NAMES)


def test_only_the_named_metrics_are_given():
    assert Scores(examples=1, tokens=1, nll=1.0, answered=1).metrics(["exact_match"]) == {"exact_match": 0.0}


def test_a_metric_with_nothing_behind_it_is_absent():
    assert Scores(examples=3).metrics(NAMES) == {}
    assert set(Scores(examples=3, answered=3).metrics(NAMES)) == {"exact_match", "rouge_l"}


def test_perplexity_beyond_the_largest_float_is_infinite():
    assert Scores(examples=1, tokens=1, nll=1e4).metrics(NAMES)["perplexity"] == math.inf


def test_row_has_counts_before_metrics():
    row = Scores(examples=2, tokens=4, nll=2.0).row(NAMES)
    assert list(row) == ["examples", "tokens", "loss", "perplexity"]
    assert (row["examples"], row["tokens"], row["loss"]) == (2, 4, 0.5)


@given(scores, scores, scores)
def test_addition_is_associative_commutative_and_has_a_zero(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Scores() == a


def test_addition_adds_every_field():
    one = Scores(1, 2, 3.0, 4, 5, 6.0)
    assert one + one == Scores(2, 4, 6.0, 8, 10, 12.0)
