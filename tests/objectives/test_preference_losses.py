"""Preference losses as functions: oracles, the laws each must keep, gradients, and the edges of the number line."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from fedloom.objectives import preference_losses as of
from objectives.preferences import ORACLES

_H = torch.tensor([-3.0, -0.4, 0.0, 0.7, 5.0], dtype=torch.float64)
_SHARES = some.floats(0.0, 0.49)
_MARGINS = some.floats(-200.0, 200.0)


def oracle(name: str) -> tuple[dict[str, Tensor | float], Tensor]:
    """Inputs, lists as tensors; the losses."""
    entry = ORACLES[name]
    given_ = {key: exact(value) if isinstance(value, list) else value for key, value in entry["inputs"].items()}
    return given_, exact(entry["outputs"]["loss"])


def exact(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratios(x) -> tuple[Tensor, Tensor]:
    return x["logp_chosen"] - x["ref_chosen"], x["logp_rejected"] - x["ref_rejected"]


def margin(x) -> Tensor:
    chosen, rejected = ratios(x)
    return chosen - rejected


def means(x) -> tuple[Tensor, Tensor]:
    return x["logp_chosen"] / x["len_chosen"], x["logp_rejected"] / x["len_rejected"]


def mean_margin(x) -> Tensor:
    chosen, rejected = ratios(x)
    return chosen / x["len_chosen"] - rejected / x["len_rejected"]


@pytest.mark.parametrize(
    "name, loss",
    [
        ("dpo", lambda x: of.sigmoid(margin(x), x["beta"])),
        ("cdpo", lambda x: of.sigmoid(margin(x), x["beta"], x["label_smoothing"])),
        ("robust_dpo", lambda x: of.robust(margin(x), x["beta"], x["label_smoothing"])),
        ("ipo_sum", lambda x: of.ipo(margin(x), x["beta"])),
        ("ipo_mean", lambda x: of.ipo(mean_margin(x), x["beta"])),
        ("hinge_dpo", lambda x: of.hinge(margin(x), x["beta"])),
        ("slic_hf", lambda x: of.slic(x["logp_chosen"], x["logp_rejected"], x["delta"], 0.0)),
        ("simpo", lambda x: of.simpo(*means(x), x["beta"], x["gamma_beta_ratio"])),
        ("orpo", lambda x: of.orpo(*means(x), x["lam"])),
    ],
)
def test_oracles(name, loss):
    inputs, wanted = oracle(name)
    assert torch.allclose(loss(inputs), wanted, atol=1e-8, rtol=0)


def test_oracle_of_kto():
    """z0 = (.5 - .2 + .6) / 3 = .3."""
    x, y = ORACLES["kto"]["inputs"], ORACLES["kto"]["outputs"]
    z0 = of.baseline(exact(x["logratio_mismatched"]))
    assert float(z0) == pytest.approx(y["z0"], abs=1e-12)
    rho = exact(x["logratio_desirable"] + x["logratio_undesirable"])
    losses = of.kto(rho, torch.tensor([True, True, False, False]), z0, x["beta"], x["lambda_D"], x["lambda_U"])
    assert torch.allclose(losses, exact(y["loss_desirable"] + y["loss_undesirable"]), atol=1e-8, rtol=0)
    assert float(losses.mean()) == pytest.approx(y["mean"], abs=1e-8)


def test_a_baseline_is_never_negative_has_no_gradient_and_is_zero_of_nothing():
    below = exact(ORACLES["kto_z0_clamped"]["inputs"]["logratio_mismatched"])
    assert float(of.baseline(below)) == ORACLES["kto_z0_clamped"]["outputs"]["z0"]
    assert not of.baseline(exact([1.0, 2.0]).requires_grad_()).requires_grad
    assert float(of.baseline(exact([]))) == 0.0


def test_slic_by_hand():
    """max(0, 1 + 3 - 2) + .5 * 3 = 3.5; max(0, 1 + 1 - 4) + .5 * 1 = .5: a summed likelihood, whatever the length."""
    losses = of.slic(exact([-3.0, -1.0]), exact([-2.0, -4.0]), 1.0, 0.5)
    assert losses.tolist() == [3.5, 0.5]


def test_simpo_gamma_is_a_share_of_beta():
    """Margin .25 with gamma / beta = .25: at the target, log 2."""
    losses = of.simpo(exact([-1.0]), exact([-1.25]), 7.0, 0.25)
    assert float(losses) == pytest.approx(math.log(2), abs=1e-15)


@given(beta=some.floats(0.01, 10.0), share=_SHARES)
def test_where_policy_and_reference_agree(beta, share):
    h = torch.zeros(1, dtype=torch.float64)
    assert float(of.sigmoid(h, beta, share)) == pytest.approx(math.log(2), abs=1e-12)
    assert float(of.robust(h, beta, share)) == pytest.approx(math.log(2), abs=1e-9)
    assert float(of.hinge(h, beta)) == 1.0


def test_symmetric_at_half():
    assert torch.allclose(of.sigmoid(_H, 0.3, 0.5), of.sigmoid(-_H, 0.3, 0.5), atol=1e-15)


@given(h=_MARGINS, share=_SHARES)
def test_smoothing_mixes_a_pair_with_its_swap(h, share):
    """cDPO(h) = (1 - e) DPO(h) + e DPO(-h), and robust DPO undoes that mixing: its expectation is DPO(h)."""
    here, swapped = exact([h]), exact([-h])
    mixed = (1 - share) * of.sigmoid(here, 0.1) + share * of.sigmoid(swapped, 0.1)
    assert torch.allclose(of.sigmoid(here, 0.1, share), mixed, rtol=1e-12)
    unbiased = (1 - share) * of.robust(here, 0.1, share) + share * of.robust(swapped, 0.1, share)
    assert torch.allclose(unbiased, of.sigmoid(here, 0.1), rtol=1e-9, atol=1e-9)


def test_without_smoothing_both_are_dpo():
    assert torch.equal(of.robust(_H, 0.1, 0.0), of.sigmoid(_H, 0.1))
    assert torch.allclose(of.sigmoid(_H, 0.1), -torch.log(torch.sigmoid(0.1 * _H)), atol=1e-12)


@settings(deadline=None)
@given(m=some.lists(some.floats(-30.0, -1e-3), min_size=2, max_size=2))
def test_log_odds_are_those_of_the_definition(m):
    chosen, rejected = (exact([one]) for one in m)
    odds = [math.exp(one) / (1 - math.exp(one)) for one in m]
    wanted = -m[0] + 0.7 * math.log1p(odds[1] / odds[0])
    assert float(of.orpo(chosen, rejected, 0.7)) == pytest.approx(wanted, rel=1e-9)


FUNCTIONS = {
    "sigmoid": lambda c, r: of.sigmoid(c - r, 0.1, 0.1),
    "robust": lambda c, r: of.robust(c - r, 0.1, 0.1),
    "ipo": lambda c, r: of.ipo(c - r, 0.1),
    "hinge": lambda c, r: of.hinge(c - r, 0.1),
    "slic": lambda c, r: of.slic(c, r, 1.0, 0.1),
    "simpo": lambda c, r: of.simpo(c, r, 2.0, 0.5),
    "orpo": lambda c, r: of.orpo(c, r, 0.1),
    "kto": lambda c, r: of.kto(
        torch.cat([c, r]), torch.arange(2 * len(c)) < len(c), exact([0.3]).squeeze(), 0.1, 1.0, 1.3
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    chosen, rejected = exact([-2.0, -0.3, -7.0]).requires_grad_(), exact([-1.0, -4.0, -0.5]).requires_grad_()
    assert torch.autograd.gradcheck(FUNCTIONS[name], (chosen, rejected))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_impossible_and_certain_answers_stay_finite(name, dtype):
    """0: certain, 1e-9: rounding made a probability larger than 1."""
    extremes = torch.tensor([0.0, -0.0, 1e-9, -1e-300, -1e-9, -1e-6, -1.0, -1e3, -1e6], dtype=dtype)
    chosen, rejected = (x.clone().requires_grad_() for x in torch.cartesian_prod(extremes, extremes).unbind(1))
    losses = FUNCTIONS[name](chosen, rejected)
    assert losses.isfinite().all()
    losses.sum().backward()
    assert chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_step_down_makes_the_chosen_answer_likelier(name):
    """Where every margin is still to be reached: no hinge is at rest."""
    chosen, rejected = exact([-2.0, -5.0]).requires_grad_(), exact([-1.5, -0.5]).requires_grad_()
    FUNCTIONS[name](chosen, rejected).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()
