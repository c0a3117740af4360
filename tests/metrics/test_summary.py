"""Summaries over clients, and comparisons of values."""

import math
import random

import pytest

from fedloom.errors import UserError
from fedloom.metrics.scores import Scores
from fedloom.metrics.summary import METRICS, SPREADS, better, columns, direction, pooled, summarise

ANSWERS = ("loss", "perplexity", "exact_match", "rouge_l")


def client(loss: float, tokens: int = 1, right: float = 0.0) -> Scores:
    return Scores(examples=10, tokens=tokens, nll=loss * tokens, answered=10, exact=round(10 * right), rouge=10 * right)


def test_summary_by_hand():
    """Losses 1 (1 token) and 3 (3 tokens): pooled (1 + 9) / 4 = 2.5; mean 2; deviations 1 and 1: std 1; worst 3."""
    found = summarise({"a": client(1.0, 1), "b": client(3.0, 3)}, ["loss", "perplexity"])
    assert found["loss"] == 2.5
    assert (found["loss_mean"], found["loss_std"], found["loss_worst_decile"]) == (2.0, 1.0, 3.0)
    assert found["perplexity"] == pytest.approx(math.exp(2.5))
    assert found["perplexity_mean"] == pytest.approx((math.exp(1) + math.exp(3)) / 2)


def test_worst_decile_is_the_worst_tenth_rounded_up():
    """Eleven clients: two worst. Loss: the highest, (10 + 9) / 2; exact match: the lowest, (0 + 0.1) / 2."""
    clients = {str(i): client(float(i), right=min(i / 10, 1.0)) for i in range(11)}
    found = summarise(clients, ["loss", "exact_match", "rouge_l"])
    assert found["loss_worst_decile"] == 9.5
    assert found["exact_match_worst_decile"] == pytest.approx(0.05)
    assert found["rouge_l_worst_decile"] == pytest.approx(0.05)
    clients = {str(i): client(float(i)) for i in range(20)}
    assert summarise(clients, ["loss"])["loss_worst_decile"] == 18.5  # of twenty, two: 19 and 18
    assert summarise({"only": client(2.0)}, ["loss"])["loss_worst_decile"] == 2.0


def test_keys_and_their_order():
    found = summarise({"a": client(1.0)}, ANSWERS)
    assert list(found) == columns(ANSWERS)
    assert columns(["loss"]) == ["loss", "loss_mean", "loss_std", "loss_worst_decile"]


def test_order_of_clients_does_not_change_a_bit():
    draw = random.Random(0)
    clients = {str(i): client(draw.random() * 10 ** draw.randrange(-8, 8), draw.randrange(1, 99)) for i in range(200)}
    turned = dict(reversed(clients.items()))
    assert summarise(clients, ["loss"]) == summarise(turned, ["loss"])
    assert pooled(clients.values()).nll == pytest.approx(sum(clients.values(), Scores()).nll)


def test_one_client_is_its_own_summary():
    judged = Scores(
        pairs=4, won=2.5, chosen_reward=3.0, rejected_reward=-1.0, confusion=((0, 0, 2), (0, 1, 1), (1, 1, 3))
    )
    found = summarise({"a": client(1.5, 7, right=0.3) + judged}, METRICS)
    for name in METRICS:
        assert found[name] == found[f"{name}_mean"] == found[f"{name}_worst_decile"]
        assert found[f"{name}_std"] == 0.0


def test_clients_without_the_metric_are_left_out():
    found = summarise({"a": client(1.0), "empty": Scores()}, ["loss", "exact_match"])
    assert found["loss_mean"] == 1.0
    assert summarise({"empty": Scores()}, METRICS) == summarise({}, METRICS) == {}


def test_classes_are_pooled_before_they_are_scored():
    """Two clients of one class each: no correlation at either, all of it together."""
    clients = {"a": Scores(examples=3, confusion=((0, 0, 3),)), "b": Scores(examples=1, confusion=((1, 1, 1),))}
    found = summarise(clients, ["accuracy", "matthews"])
    assert (found["accuracy"], found["matthews"]) == (1.0, 1.0)
    assert (found["matthews_mean"], found["matthews_worst_decile"]) == (0.0, 0.0)
    assert pooled(clients.values()).confusion == ((0, 0, 3), (1, 1, 1))


def test_a_diverged_client_shows_and_does_not_raise():
    """exp(800) and twice 1.7e308 exceed the largest float; a NaN counts as worst."""
    assert summarise({"a": client(800.0), "b": client(1.0)}, ["perplexity"])["perplexity_std"] == math.inf
    near = summarise({"a": client(709.7), "b": client(709.7)}, ["perplexity"])
    assert near["perplexity_mean"] == math.inf
    for clients in ({"a": client(math.nan), "b": client(1.0)}, {"b": client(1.0), "a": client(math.nan)}):
        found = summarise(clients, ["loss"])
        assert math.isnan(found["loss_mean"]) and math.isnan(found["loss_worst_decile"])


@pytest.mark.parametrize(
    "metric, expected",
    [
        ("loss", "lower"),
        ("loss_worst_decile", "lower"),
        ("perplexity_mean", "lower"),
        ("exact_match", "higher"),
        ("exact_match_worst_decile", "higher"),
        ("exact_match_std", "lower"),
        ("rouge_l_mean", "higher"),
        ("accuracy", "higher"),
        ("f1_weighted_worst_decile", "higher"),
        ("matthews", "higher"),
        ("preference_accuracy_mean", "higher"),
        ("margin", "higher"),
        ("reward_chosen", "higher"),
        ("reward_rejected", "lower"),
        ("reward_rejected_worst_decile", "lower"),
    ],
)
def test_direction(metric, expected):
    assert direction(metric) == expected
    assert better(metric, 1.0, 2.0) is (expected == "lower")
    assert better(metric, 2.0, 1.0) is (expected == "higher")


def test_better_needs_more_than_min_delta():
    assert not better("loss", 1.0, 1.0)
    assert not better("loss", 0.75, 1.0, min_delta=0.25)
    assert better("loss", 0.5, 1.0, min_delta=0.25)
    assert not better("exact_match", 0.25, 0.0, min_delta=0.25)
    assert better("exact_match", 0.5, 0.0, min_delta=0.25)


def test_better_with_none_nan_and_infinity():
    assert better("loss", 9.0, None)
    assert better("loss", 9.0, math.nan) and better("exact_match", 0.0, math.inf)
    for new in (math.nan, math.inf, -math.inf):
        assert not better("loss", new, None)
        assert not better("exact_match", new, 0.5)


@pytest.mark.parametrize("metric", ["acuracy", "exact_mach", "loss_worst", "_std"])
def test_unknown_metric_is_named(metric):
    with pytest.raises(UserError, match="is not a metric"):
        better(metric, 1.0, None)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean exact_match"):
        direction("exact_mach")


def test_spreads_are_suffixes_of_every_metric():
    assert all(direction(f"{name}_{spread}") for name in METRICS for spread in SPREADS)
