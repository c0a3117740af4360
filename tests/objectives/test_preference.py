"""The preference objective: its texts, what it makes of a model's words, its scores; alone and among neighbours."""

import math

import pytest
import torch

import tiny
from fedloom.engine import padded
from fedloom.metrics.scores import Scores
from fedloom.objectives.config import DpoConfig
from fedloom.objectives.preference import Preference
from objectives.preferences import ORACLES, numbers, pair, spread

LOSSES = ("sigmoid", "robust", "ipo", "hinge", "slic", "orpo", "simpo")
PAIRS = [pair((5, 6, 7), (8, 9), (10, 11, 12, 1)), pair((20,), (21, 22, 1), (23,)), pair((30, 31), (32,), (33, 1))]
"""With answers of 2, 4, 3, 1, 1, 2 tokens."""
SAID, REFERENCE = numbers(2, 4, 3, 1, 1, 2), numbers(2, 4, 3, 1, 1, 2, seed=1)
ORACLE = {
    "dpo": DpoConfig(),
    "cdpo": DpoConfig(label_smoothing=0.1),
    "robust_dpo": DpoConfig(loss="robust", label_smoothing=0.1),
    "ipo_sum": DpoConfig(loss="ipo"),
    "ipo_mean": DpoConfig(loss="ipo", length_normalized=True),
    "hinge_dpo": DpoConfig(loss="hinge"),
    "slic_hf": DpoConfig(loss="slic", gamma=1.0, lam=0.0),
    "simpo": DpoConfig(loss="simpo", beta=2.0, gamma=0.5),
    "orpo": DpoConfig(loss="orpo", lam=0.1),
}


def oracle_of(name):
    """Objective, pairs, what policy and reference say, what must come out."""
    x, y = ORACLES[name]["inputs"], ORACLES[name]["outputs"]
    lengths = [(int(c), int(r)) for c, r in zip(x["len_chosen"], x["len_rejected"], strict=True)]
    pairs = [pair((5, 6), range(10, 10 + c), range(10, 10 + r)) for c, r in lengths]
    said = _said(x["logp_chosen"], x["logp_rejected"], lengths)
    return Preference(ORACLE[name]), pairs, said, _said(x["ref_chosen"], x["ref_rejected"], lengths), y


def _said(chosen, rejected, lengths):
    return [
        spread(total, tokens)
        for totals, counts in zip(zip(chosen, rejected, strict=True), lengths, strict=True)
        for total, tokens in zip(totals, counts, strict=True)
    ]


@pytest.mark.parametrize("name", ORACLE)
def test_oracles(name):
    objective, pairs, said, reference, wanted = oracle_of(name)
    losses = objective.losses(said, reference if objective.reference else None, pairs)
    assert losses.tolist() == pytest.approx(wanted["loss"], abs=1e-8)
    assert losses.dtype == torch.float64


def test_oracle_of_rewards():
    objective, pairs, said, reference, wanted = oracle_of("dpo")
    scores = objective.scores(said, reference, pairs)
    assert [one.nll for one in scores] == pytest.approx(wanted["loss"], abs=1e-8)
    assert [one.chosen_reward for one in scores] == pytest.approx(wanted["reward_chosen"], abs=1e-8)
    assert [one.rejected_reward for one in scores] == pytest.approx(wanted["reward_rejected"], abs=1e-8)
    whole = scores[0] + scores[1]
    assert (whole.examples, whole.tokens, whole.pairs) == (2, 2, 2)
    assert whole.metrics(["loss", "preference_accuracy", "margin"]) == {
        "loss": pytest.approx(wanted["mean"], abs=1e-8),
        "preference_accuracy": wanted["accuracy"],
        "margin": pytest.approx(0.0, abs=1e-12),
    }


def test_texts_are_chosen_then_rejected_of_each_pair_and_ask_for_the_answer_alone():
    texts = Preference(DpoConfig()).texts(PAIRS[:2])
    assert [tuple(text.ids) for text in texts] == [
        (5, 6, 7, 8, 9), (5, 6, 7, 10, 11, 12, 1), (20, 21, 22, 1), (20, 23),
    ]  # fmt: skip
    assert [list(text.places) for text in texts] == [[2, 3], [2, 3, 4, 5], [0, 1, 2], [0]]
    assert [list(text.targets) for text in texts] == [[8, 9], [10, 11, 12, 1], [21, 22, 1], [23]]


def test_units_are_pairs():
    objective = Preference(DpoConfig())
    assert objective.count(PAIRS) == 3
    assert objective.count([]) == 0
    assert objective.losses(SAID, REFERENCE, PAIRS).shape == (3,)


@pytest.mark.parametrize("loss", LOSSES)
def test_who_needs_a_reference(loss):
    free = loss in ("slic", "orpo", "simpo")
    assert Preference(DpoConfig(loss=loss)).reference == (None if free else "base")
    assert Preference(DpoConfig(loss=loss, reference="start")).reference == (None if free else "start")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pair_is_the_same_alone_and_among_others(loss):
    objective = Preference(DpoConfig(loss=loss))
    together = objective.losses(SAID, REFERENCE, PAIRS)
    alone = [objective.losses(SAID[2 * i : 2 * i + 2], REFERENCE[2 * i : 2 * i + 2], [p]) for i, p in enumerate(PAIRS)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "ipo", "hinge"])
@pytest.mark.parametrize("shift", [-3.0, 40.0])
def test_what_the_reference_says_of_both_answers_alike_does_not_matter(loss, shift):
    objective = Preference(DpoConfig(loss=loss))
    moved = [one + shift / len(one) for one in REFERENCE]
    wanted = objective.losses(SAID, REFERENCE, PAIRS)
    assert torch.allclose(objective.losses(SAID, moved, PAIRS), wanted, atol=1e-9)


@pytest.mark.parametrize(
    "loss, f",
    [
        ("sigmoid", lambda h: torch.log1p(torch.exp(-0.1 * h))),
        ("ipo", lambda h: (h - 5) ** 2),
        ("hinge", lambda h: (1 - 0.1 * h).clamp(min=0)),
    ],
)
def test_swapping_a_pair_turns_its_margin_around(loss, f):
    objective = Preference(DpoConfig(loss=loss))
    ratios = torch.stack([one.sum() - two.sum() for one, two in zip(SAID, REFERENCE, strict=True)])
    h = ratios[0::2] - ratios[1::2]
    assert torch.allclose(objective.losses(SAID, REFERENCE, PAIRS), f(h))
    said, reference = ([both[i ^ 1] for i in range(6)] for both in (SAID, REFERENCE))
    assert torch.allclose(objective.losses(said, reference, PAIRS), f(-h))


@pytest.mark.parametrize("loss", ["sigmoid", "robust"])
def test_before_training_all_is_undecided(loss):
    objective = Preference(DpoConfig(loss=loss, label_smoothing=0.1))
    whole = sum(objective.scores(SAID, SAID, PAIRS), Scores())
    found = whole.metrics(["loss", "preference_accuracy", "margin", "reward_chosen", "reward_rejected"])
    assert found == {
        "loss": pytest.approx(math.log(2)), "preference_accuracy": 0.5, "margin": 0.0,
        "reward_chosen": 0.0, "reward_rejected": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "config, reward",
    [
        (DpoConfig(beta=0.5), lambda said, ref: 0.5 * float((said - ref).sum())),
        (DpoConfig(loss="ipo", length_normalized=True), lambda said, ref: 0.1 * float((said - ref).sum())),
        (DpoConfig(loss="simpo", beta=2.0), lambda said, ref: 2.0 * float(said.mean())),
        (DpoConfig(loss="orpo", lam=0.2), lambda said, ref: 0.2 * float(said.mean())),
        (DpoConfig(loss="orpo", lam=0.0), lambda said, ref: 0.0),
        (DpoConfig(loss="slic"), lambda said, ref: float(said.sum())),
    ],
)
def test_rewards(config, reward):
    objective = Preference(config)
    scores = objective.scores(SAID, REFERENCE if objective.reference else None, PAIRS)
    wanted = [reward(said, ref) for said, ref in zip(SAID, REFERENCE, strict=True)]
    assert [one.chosen_reward for one in scores] == pytest.approx(wanted[0::2])
    assert [one.rejected_reward for one in scores] == pytest.approx(wanted[1::2])
    assert [one.nll for one in scores] == objective.losses(SAID, REFERENCE, PAIRS).tolist()


def test_the_likelier_answer_wins_also_where_rewards_have_no_scale():
    scores = Preference(DpoConfig(loss="orpo", lam=0.0)).scores(SAID, None, PAIRS)
    assert [one.won for one in scores] == [float(SAID[i].mean() > SAID[i + 1].mean()) for i in (0, 2, 4)]


def test_made_up_pairs_have_two_different_answers_to_one_prompt():
    made = Preference(DpoConfig()).made_up((4, 5, 6, 7, 8))
    assert (made.chosen.ids, made.rejected.ids) == ((4, 5, 6, 7, 8), (4, 5, 8, 7, 6))
    assert made.prompt == made.rejected.prompt == (4, 5)
    assert len(Preference(DpoConfig()).losses(numbers(3, 3), numbers(3, 3), [made])) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_neither_filling_nor_neighbours_change_a_pair(loss, tmp_path):
    """Through a model: alone, and beside a pair ten times as long."""
    module = tiny.loaded(tiny.saved(tmp_path, "llama")).module
    objective = Preference(DpoConfig(loss=loss))
    long = pair((9, 8, 7), range(40, 90), range(90, 130))
    with torch.no_grad():
        (alone,) = _through(objective, module, [PAIRS[0]])
        among = _through(objective, module, [long, PAIRS[0], PAIRS[1]])[1]
    assert float(alone) == pytest.approx(float(among), rel=1e-6)


def _through(objective, module, part):
    batch = padded.collate(objective.texts(part), 0, torch.device("cpu"))
    said = padded.said(module, batch, objective.forward)
    return objective.losses(said, [0.9 * one for one in said], part)
