"""Attackers by numbers that can be checked by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fedloom.contracts import Trained
from fedloom.errors import UserError
from fedloom.runtime.attack import Gaussian, Scaled, SignFlip, attackers, attacking, flip_answers
from fedloom.runtime.attack_config import (
    AttackConfig,
    GaussianConfig,
    LabelFlipConfig,
    NoAttackConfig,
    ScaledConfig,
    SignFlipConfig,
)

LAW = settings(deadline=None, derandomize=True, max_examples=100)
NAMES = [f"site-{i}" for i in range(10)]
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def run(y: list[float], gradient: list[float] | None = None, dtype: Any = torch.float64) -> Trained:
    g = None if gradient is None else torch.tensor(gradient, dtype=dtype)
    return Trained(torch.tensor(y, dtype=dtype), steps=3, lr_sum=0.3, examples=12, tokens=50, loss=1.5, gradient=g)


@BOTH
def test_results_by_hand(dtype):
    """From (1, 2) to (3, 1): the update is (2, -1)."""
    x, honest = torch.tensor([1.0, 2.0], dtype=dtype), run([3, 1], [-4, 2], dtype)
    cases = {
        SignFlip(): ([-1, 3], [4, -2]),
        SignFlip(0.5): ([0, 2.5], [2, -1]),
        Scaled(10): ([21, -8], [-40, 20]),
    }
    for attack, (y, gradient) in cases.items():
        found = attack(x, honest, 7)
        assert (found.y.tolist(), found.gradient.tolist()) == (y, gradient)
        assert found.y.dtype == found.gradient.dtype == dtype
    assert (x.tolist(), honest.y.tolist(), honest.gradient.tolist()) == ([1, 2], [3, 1], [-4, 2])


@pytest.mark.parametrize("attack", [SignFlip(), Scaled(), Gaussian(1.0)])
def test_counts_stay_honest_and_no_gradient_is_made_up(attack):
    found = attack(torch.zeros(2, dtype=torch.float64), run([3, 1]), 7)
    assert (found.steps, found.lr_sum, found.examples, found.tokens, found.loss) == (3, 0.3, 12, 50, 1.5)
    assert found.gradient is None


@BOTH
def test_noise_has_its_mean_and_deviation(dtype):
    """40,000 numbers: the mean is known to 0.0025 (one standard deviation), the deviation to 0.0018."""
    x = torch.full((40_000,), 3.0, dtype=dtype)
    found = Gaussian(0.5)(x, run([0.0] * 40_000, [1.0] * 40_000, dtype), 7)
    assert found.y.dtype == found.gradient.dtype == dtype
    for noise in (found.y - x, found.gradient):
        assert abs(float(noise.mean())) < 0.012
        assert abs(float(noise.std()) - 0.5) < 0.009
    together = torch.stack([found.y - x, found.gradient])
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.025  # standard deviation 0.005


def test_noise_is_a_matter_of_the_key_alone():
    x = torch.zeros(8, dtype=torch.float64)
    one, again, other = (Gaussian(1.0)(x, run([y] * 8), key).y for y, key in ((1, 7), (2, 7), (1, 8)))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.allclose(Gaussian(3.0)(x + 1, run([0] * 8), 7).y, 1 + 3 * one)


# -- who


def test_attackers_are_drawn_by_the_seed_and_do_what_is_said():
    found = attackers(SignFlipConfig(clients="30%", scale=2.0), NAMES, seed=1)
    assert len(found) == 3
    assert set(found.values()) == {SignFlip(2.0)}
    assert set(found) == attacking(SignFlipConfig(clients=3), NAMES, seed=1)
    assert len({attacking(SignFlipConfig(clients=3), NAMES, seed) for seed in range(8)}) > 4
    assert attackers(ScaledConfig(clients=[9, "site-2", "4-5"]), NAMES, 0) == dict.fromkeys([2, 4, 5, 9], Scaled(10.0))
    assert attackers(GaussianConfig(clients=10, std=0.3), NAMES, 0) == dict.fromkeys(range(10), Gaussian(0.3))


def test_the_attack_does_not_decide_who_attacks():
    kinds = [SignFlipConfig(), GaussianConfig(), ScaledConfig(), LabelFlipConfig()]
    assert len({attacking(kind, NAMES, 5) for kind in kinds}) == 1


def test_nobody_attacks_where_none_is_asked_for():
    assert attackers(NoAttackConfig(), NAMES, 0) == {}
    assert attacking(NoAttackConfig(), NAMES, 0) == frozenset()
    assert attackers(SignFlipConfig(clients=0), NAMES, 0) == {}


def test_wrong_answers_are_a_matter_of_rows():
    assert attackers(LabelFlipConfig(), NAMES, 0) == {}
    assert len(attacking(LabelFlipConfig(), NAMES, 0)) == 2


def test_who_never_trains_is_not_drawn_as_an_attacker():
    """A share is one of those who train."""
    for seed in range(20):
        assert not attacking(SignFlipConfig(clients="50%"), NAMES, seed, without=range(6)) & set(range(6))
    assert attacking(SignFlipConfig(clients="100%"), NAMES, 0, without=range(6)) == {6, 7, 8, 9}
    with pytest.raises(UserError, match=r"attack\.clients is 5, but there are 4 clients; use at most 4"):
        attacking(SignFlipConfig(clients=5), NAMES, 0, without=range(6))


def test_attackers_that_do_not_exist():
    with pytest.raises(UserError, match=r"attack\.clients: 10 does not exist; the 10 clients are 0 to 9"):
        attackers(ScaledConfig(clients=["8-9", "10"]), NAMES, 0)


@pytest.mark.parametrize("kind", ["none", "sign_flip", "gaussian", "scaled", "label_flip"])
def test_a_name_is_enough(kind):
    read = TypeAdapter(AttackConfig).validate_python({"name": kind})
    assert read.name == kind
    assert TypeAdapter(AttackConfig).validate_json(read.model_dump_json()) == read


# -- wrong answers


def test_answers_by_hand():
    assert flip_answers(["no", "yes", "maybe", "yes"], "x") == ["yes", "maybe", "no", "maybe"]
    assert flip_answers(["b", " a", "a\n", "", "  "], "x") == ["a", "b", "b", "", "  "]
    assert flip_answers([], "x") == flip_answers([], "y") == []


@LAW
@given(st.lists(st.sampled_from(["a", "b", " a", "c ", "dd", ""]), max_size=12), st.randoms())
def test_every_answer_is_wrong_and_one_of_the_clients_own(answers, random):
    own = {answer.strip() for answer in answers} - {""}
    if len(own) == 1:
        with pytest.raises(UserError):
            flip_answers(answers, "x")
        return
    flipped = flip_answers(answers, "x")
    assert {one.strip() for one in flipped} - {""} == own
    assert all(new.strip() != old.strip() for new, old in zip(flipped, answers, strict=True) if old.strip())
    pairs = list(zip(answers, flipped, strict=True))
    random.shuffle(pairs)  # the order of the rows decides nothing
    assert flip_answers([old for old, _ in pairs], "x") == [new for _, new in pairs]


def test_a_client_of_one_answer_is_refused():
    with pytest.raises(UserError, match=r"all answers of site-3 are the same; name other attackers \(attack.clients\)"):
        flip_answers(["yes", "yes "], "site-3")
