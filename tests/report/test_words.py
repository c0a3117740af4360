"""Numbers as they are read."""

import math

import pytest

from fedloom.cite.uses import METRICS as cited
from fedloom.cli import wording
from fedloom.cli.listing import SAID
from fedloom.metrics.summary import METRICS
from fedloom.report import words


def plain(text: str) -> str:
    return text.replace(words.NBSP, " ")


@pytest.mark.parametrize(
    "num_bytes, shown",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (393_728, "394 kB"),
        (1.5e9, "1.50 GB"),
        (2e15, "2000 TB"),
    ],
)
def test_amount(num_bytes, shown):
    assert plain(words.amount(num_bytes)) == shown


@pytest.mark.parametrize(
    "seconds, shown",
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86_400, "1 d 0 h"),
    ],
)
def test_duration(seconds, shown):
    assert plain(words.duration(seconds)) == shown


@pytest.mark.parametrize(
    "metric, number, shown",
    [
        ("exact_match", 0.125, "12.5 %"),
        ("f1_weighted", 0.125, "12.5 %"),
        ("preference_accuracy", 0.5, "50.0 %"),
        ("matthews", -0.125, "-0.125"),
        ("reward_rejected", -1.5, "-1.500"),
        ("loss", 0.6181, "0.618"),
        ("perplexity", 12.345, "12.35"),
        ("perplexity", 12345.6, "12,346"),
        ("perplexity", math.inf, "∞"),
        ("loss", math.nan, "not a number"),
        ("loss", None, "–"),
        ("loss", 1e-7, "1.00e-07"),
        ("loss", 0.0, "0.000"),
    ],
)
def test_value(metric, number, shown):
    assert plain(words.value(metric, number)) == shown


def test_shorten_keeps_both_ends():
    assert words.shorten("client-0001", 24) == "client-0001"
    short = words.shorten("a" * 30 + "0001", 12)
    assert len(short) == 12 and short.startswith("aaa") and short.endswith("0001")


def test_every_metric_has_a_name_in_words():
    """Also where it is listed, shown on a console and cited."""
    assert set(words.METRICS) == set(SAID["metrics"]) == set(cited) == set(METRICS)
    assert set(METRICS) > words.SHARES and set(words.CURVES) < set(METRICS)
    assert wording.number("f1_worst_decile", 0.25) == wording.number("preference_accuracy", 0.25) == "25.0 %"
    assert wording.number("matthews", 0.25) == "0.250"


def test_count():
    assert plain(words.count(1, "reply", "replies")) == "1 reply"
    assert plain(words.count(1200, "reply", "replies")) == "1,200 replies"
