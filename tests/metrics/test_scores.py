"""Sums and the metrics computed from them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.channel.codec import decode, encode, joined, plain
from fedloom.evaluation import Scored
from fedloom.metrics.scores import Scores, merged

NAMES = ("loss", "perplexity", "exact_match", "rouge_l")
counts = st.integers(0, 10**6)
whole = st.integers(0, 10**6).map(float)  # sums of whole floats are exact, so laws hold to the bit
classes = st.tuples(st.integers(0, 3), st.integers(-1, 3), st.integers(1, 99))
scores = st.builds(
    Scores,
    examples=counts,
    tokens=counts,
    nll=whole,
    answered=counts,
    exact=counts,
    rouge=whole,
    pairs=whole,
    won=whole,
    good=whole,
    bad=whole,
    chosen_reward=whole,
    rejected_reward=whole,
    confusion=st.lists(classes, max_size=6).map(lambda some: merged([tuple(some)])),
)


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


def test_preferences_by_hand():
    """Of 4 pairs 2 won and 1 tied: 2.5 / 4. Rewards (2 + 1) and (-1 + 0) over 4 pairs: means 0.75, -0.25, margin 1."""
    found = Scores(examples=4, tokens=4, pairs=4.0, won=2.5, chosen_reward=3.0, rejected_reward=-1.0)
    assert found.metrics(["preference_accuracy", "margin", "reward_chosen", "reward_rejected"]) == {
        "preference_accuracy": 0.625,
        "margin": 1.0,
        "reward_chosen": 0.75,
        "reward_rejected": -0.25,
    }


def test_judged_answers_have_rewards_but_no_order():
    """Rewards 3 over 2 good and 1 over 4 bad answers: 1.5 and 0.25. Without bad answers there is no margin."""
    names = ["preference_accuracy", "margin", "reward_chosen", "reward_rejected"]
    both = Scores(examples=6, good=2.0, bad=4.0, chosen_reward=3.0, rejected_reward=1.0)
    assert both.metrics(names) == {"margin": 1.25, "reward_chosen": 1.5, "reward_rejected": 0.25}
    assert Scores(examples=2, good=2.0, chosen_reward=3.0).metrics(names) == {"reward_chosen": 1.5}


def test_counts_of_classes_are_sorted_and_each_once():
    one, other = ((1, 0, 2), (1, 1, 3)), ((0, 0, 1), (1, 0, 5))
    assert merged([one, other]) == ((0, 0, 1), (1, 0, 7), (1, 1, 3))
    assert merged([]) == merged([(), ()]) == ()


@given(scores)
def test_scores_travel(found):
    assert decode(Scored, encode(Scored(found))) == Scored(found)
    assert joined(Scores, plain(found)) == found
