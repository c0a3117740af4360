"""Scores that cannot be true do not reach the summary, where some could not even be added up."""

import pytest

from fedloom.evaluation import CLASSES, Scored, plausible
from fedloom.metrics.classes import NO_CLASS
from fedloom.metrics.scores import Scores

TRUE = Scores(examples=4, tokens=50, nll=60.0, answered=4, exact=2, rouge=2.5)


def test_true_scores_count():
    assert plausible(0, Scored(TRUE)) is None
    assert plausible(0, Scored(Scores())) is None
    assert plausible(0, Scored(Scores(examples=3, tokens=9, nll=1.0))) is None
    preferences = Scores(examples=4, tokens=4, pairs=4.0, won=2.5, chosen_reward=-3.0, rejected_reward=-9.0)
    assert plausible(0, Scored(preferences)) is None
    assert plausible(0, Scored(Scores(examples=5, tokens=5, good=2.0, bad=3.0, chosen_reward=1.0))) is None
    classes = Scores(examples=4, tokens=4, nll=2.0, confusion=((0, NO_CLASS, 1), (0, 0, 2), (1, 0, 1)))
    assert plausible(0, Scored(classes)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 10**308}, {"tokens": -1}, {"examples": -4}, {"answered": 10**16}, {"exact": 5}, {"rouge": 4.1},
        {"rouge": -0.1}, {"exact": -1}, {"answered": 0}, {"pairs": -1.0}, {"pairs": 1e300}, {"won": 0.5},
        {"pairs": 2.0, "won": 2.5}, {"pairs": 2.0, "won": -0.5}, {"good": -1.0}, {"bad": 1e16},
        {"confusion": ((0, 0, 5),)}, {"confusion": ((0, 0, 0),)}, {"confusion": ((0, 0, -1),)},
        {"confusion": ((0, -2, 1),)}, {"confusion": ((-1, 0, 1),)}, {"confusion": ((0, 0, 1), (0, 0, 1))},
        {"confusion": ((CLASSES, 0, 1),)}, {"confusion": ((0, CLASSES, 1),)},
    ],
)  # fmt: skip
def test_others_are_refused_in_words(change):
    assert plausible(0, Scored(Scores(**{**vars(TRUE), **change})))
