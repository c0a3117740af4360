"""The KTO objective: mismatched examples, baseline, losses and scores."""

import logging

import pytest
import torch

from fedloom.data.encode import IGNORED
from fedloom.objectives import kto
from fedloom.objectives.config import KtoConfig
from fedloom.objectives.kto import Kto, mismatched
from objectives.preferences import ORACLES, judged, numbers, spread

ROWS = [
    judged((5, 6), (7, 8, 1), True),
    judged((10,), (11, 1), False),
    judged((20, 21, 22), (23,), True),
]


def test_mismatched_is_each_prompt_with_the_next_answer():
    texts = Kto(KtoConfig()).texts(ROWS)
    assert [tuple(text.ids) for text in texts] == [
        (5, 6, 7, 8, 1), (10, 11, 1), (20, 21, 22, 23),
        (5, 6, 11, 1), (10, 23), (20, 21, 22, 7, 8, 1),
    ]  # fmt: skip
    assert [list(text.targets) for text in texts] == [[7, 8, 1], [11, 1], [23], [11, 1], [23], [7, 8, 1]]
    assert [list(text.places) for text in texts][3:] == [[1, 2], [0], [2, 3, 4]]


def test_two_answers_to_one_prompt_are_no_mismatch():
    twin = judged((5, 6), (9, 1), False)
    found = mismatched([ROWS[0], twin, ROWS[1]])
    assert [one.ids for one in found] == [(5, 6, 11, 1), (5, 6, 11, 1), (10, 7, 8, 1)]
    assert mismatched([ROWS[0], twin]) == []


def test_mismatched_texts_keep_within_the_length_and_learn_nothing_of_the_prompt():
    (first, second) = mismatched([ROWS[2], ROWS[0]], max_length=5)
    assert (first.ids, first.labels) == ((20, 21, 22, 7, 8), (IGNORED,) * 3 + (7, 8))
    assert (second.ids, second.labels) == ((5, 6, 23), (IGNORED, IGNORED, 23))
    assert [len(text.ids) for text in Kto(KtoConfig(), 5).texts([ROWS[2], ROWS[0]])] == [4, 5, 5, 3]


def test_oracle():
    """Four judged answers and four mismatched ones whose log-ratios have the oracle's mean, .3."""
    x, y = ORACLES["kto"]["inputs"], ORACLES["kto"]["outputs"]
    part = [judged((10 * i,), (1, 2, 3), good) for i, good in enumerate([True, True, False, False])]
    ratios = [*x["logratio_desirable"], *x["logratio_undesirable"], *x["logratio_mismatched"], 0.3]
    reference = numbers(*[3] * 8)
    said = [one + spread(ratio, 3) for one, ratio in zip(reference, ratios, strict=True)]
    objective = Kto(KtoConfig(undesirable=x["lambda_U"]))
    losses = objective.losses(said, reference, part)
    assert losses.tolist() == pytest.approx(y["loss_desirable"] + y["loss_undesirable"], abs=1e-8)
    assert losses.dtype == torch.float64


def test_no_gradient_reaches_the_mismatched():
    said = [one.requires_grad_() for one in numbers(3, 2, 1, 2, 1, 3)]
    reference = [one.detach() - 0.5 for one in said]
    Kto(KtoConfig()).losses(said, reference, ROWS).sum().backward()
    assert all(bool((one.grad != 0).all()) for one in said[:3])
    assert all(one.grad is None or not one.grad.any() for one in said[3:])


def test_a_single_example_has_no_baseline_and_that_is_said_once(caplog):
    kto._note_no_baseline.cache_clear()
    objective, said, reference = Kto(KtoConfig()), numbers(3), numbers(3, seed=1)
    with caplog.at_level(logging.WARNING, "fedloom"):
        first = objective.losses(said, reference, ROWS[:1])
        objective.losses(said, reference, ROWS[:1])
    rho = float(said[0].sum() - reference[0].sum())
    assert float(first) == pytest.approx(1 - 1 / (1 + torch.tensor(-0.1 * rho, dtype=torch.float64).exp().item()))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "local.batch_size" in caplog.text


def test_neither_made_up_examples_nor_evaluations_are_worth_that_note(caplog):
    kto._note_no_baseline.cache_clear()
    objective = Kto(KtoConfig())
    made = objective.made_up((4, 5, 6, 7))
    assert (made.prompt, made.answer.labels, made.good) == ((4, 5), (IGNORED, IGNORED, 6, 7), True)
    objective.losses(numbers(2), numbers(2), [made])
    objective.scores(numbers(3), numbers(3), ROWS[:1])
    assert caplog.records == []


def test_scores_do_not_depend_on_who_else_is_evaluated():
    objective, said, reference = Kto(KtoConfig(beta=0.5)), numbers(3, 2, 1, 2, 1, 3), numbers(3, 2, 1, 2, 1, 3, seed=1)
    together = objective.scores(said, reference, ROWS)
    assert together == [objective.scores([said[i]], [reference[i]], [ROWS[i]])[0] for i in range(3)]
    assert [(one.good, one.bad) for one in together] == [(1, 0), (0, 1), (1, 0)]
    rewards = [0.5 * float(one.sum() - two.sum()) for one, two in zip(said, reference, strict=True)]
    assert [one.chosen_reward + one.rejected_reward for one in together] == pytest.approx(rewards[:3])
    assert together[1].chosen_reward == together[0].rejected_reward == 0.0
    found = (together[0] + together[1] + together[2]).metrics(["reward_chosen", "reward_rejected", "margin"])
    assert found["margin"] == pytest.approx((rewards[0] + rewards[2]) / 2 - rewards[1])


def test_before_training_every_loss_is_half_its_weight():
    said = numbers(3, 2, 1, 2, 1, 3)
    objective = Kto(KtoConfig(desirable=1.5, undesirable=0.5))
    assert objective.losses(said, said, ROWS).tolist() == [0.75, 0.25, 0.75]
    assert [one.nll for one in objective.scores(said, said, ROWS)] == [0.75, 0.25, 0.75]


def test_what_it_declares():
    objective = Kto(KtoConfig(reference="start"))
    assert (objective.forward, objective.reference, objective.writes) == ("logprob", "start", False)
    assert objective.count(ROWS) == 3
