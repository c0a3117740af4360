"""Scores that cannot be true do not reach the summary, where some could not even be added up."""

import pytest

from fedloom.evaluation import Scored, plausible
from fedloom.metrics.scores import Scores

TRUE = Scores(examples=4, tokens=50, nll=60.0, answered=4, exact=2, rouge=2.5)


def test_true_scores_count():
    assert plausible(0, Scored(TRUE)) is None
    assert plausible(0, Scored(Scores())) is None
    assert plausible(0, Scored(Scores(examples=3, tokens=9, nll=1.0))) is None


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 10**308}, {"tokens": -1}, {"examples": -4}, {"answered": 10**16}, {"exact": 5}, {"rouge": 4.1},
        {"rouge": -0.1}, {"exact": -1}, {"answered": 0},
    ],
)  # fmt: skip
def test_others_are_refused_in_words(change):
    assert plausible(0, Scored(Scores(**{**vars(TRUE), **change})))
