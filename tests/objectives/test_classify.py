"""Cross-entropy of classes, and what is counted of it."""

import math

import pytest
import torch

from fedloom.data.labelled import Labelled
from fedloom.metrics.classes import NO_CLASS
from fedloom.metrics.scores import Scores
from fedloom.objectives.base import Objective, Text
from fedloom.objectives.classify import Classify

NAN, INF = math.nan, math.inf


def rows(*labels: int) -> list[Labelled]:
    return [Labelled((5, 6, 7)[: i + 1], label, None) for i, label in enumerate(labels)]


def said(*logits: list[float], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=dtype) for row in logits]


def test_it_wants_one_pooled_text_of_each_row():
    objective: Objective = Classify()
    assert (objective.forward, objective.reference, objective.writes) == ("pooled", None, False)
    assert objective.texts(rows(0, 1)) == [Text((5,)), Text((5, 6))]
    assert (objective.count(rows(0, 1, 1)), objective.count([])) == (3, 0)


def test_losses_by_hand():
    """Logits (0, log 3): probabilities 1/4 and 3/4. Equal logits over three classes: log 3."""
    found = Classify().losses(said([0.0, math.log(3)], [0.0, math.log(3)]), None, rows(0, 1))
    assert found.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])
    assert Classify().losses(said([2.0, 2.0, 2.0]), None, rows(2)).item() == pytest.approx(math.log(3))


def test_a_gradient_is_probability_less_truth():
    """d loss / d logits = softmax - one-hot."""
    logits = torch.tensor([0.0, math.log(3)], dtype=torch.float64, requires_grad=True)
    Classify().losses([logits], None, rows(1)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([0.25, -0.25])


@pytest.mark.parametrize(
    "dtype, kept",
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_are_at_least_float32(dtype, kept):
    assert Classify().losses(said([0.5, 1.0], dtype=dtype), None, rows(0)).dtype == kept


def test_scores_say_what_was_said():
    found = Classify().scores(said([0.0, math.log(3)], [1.0, 0.0]), None, rows(0, 0))
    assert [one.confusion for one in found] == [((0, 1, 1),), ((0, 0, 1),)]
    assert [(one.examples, one.tokens) for one in found] == [(1, 1), (1, 1)]
    assert found[0].nll == pytest.approx(math.log(4))
    together = sum(found, Scores())
    assert together.metrics(["accuracy"]) == {"accuracy": 0.5}


@pytest.mark.parametrize("strange", [[NAN, 1.0], [0.0, NAN], [INF, 0.0], [-INF, 0.0], [NAN, NAN]])
def test_numbers_that_are_not_finite_say_no_class(strange):
    """A NaN would pass for the largest of all, and its place for a class."""
    found = Classify().scores(said(strange, [2.0, 1.0]), None, rows(0, 0))
    assert [one.confusion for one in found] == [((0, NO_CLASS, 1),), ((0, 0, 1),)]
    assert sum(found, Scores()).metrics(["accuracy"]) == {"accuracy": 0.5}


def test_neighbours_change_nothing():
    torch.manual_seed(0)
    logits, examples = list(torch.randn(3, 4)), rows(3, 0, 2)
    together = Classify().losses(logits, None, examples)
    alone = torch.cat([Classify().losses([one], None, [row]) for one, row in zip(logits, examples, strict=True)])
    assert together.tolist() == alone.tolist()
    assert Classify().scores(logits, None, examples)[1] == Classify().scores(logits[1:2], None, examples[1:2])[0]


def test_made_up_rows_can_be_learned():
    example = Classify().made_up([3, 4, 5])
    assert Classify().texts([example]) == [Text((3, 4, 5))]
    assert Classify().count([example]) == 1
