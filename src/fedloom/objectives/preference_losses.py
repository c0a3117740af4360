"""The losses of preference tuning, as functions of log-likelihoods; one number for each pair or judged answer.

Symbols: log pi(y|x) is the sum of log p over the tokens of an answer y (closing token included) given its prompt x, in
nats; its mean divides by their number. ref is the same of a frozen reference. c is the chosen answer of a pair, r the
rejected one. rho = log pi - log ref of one answer; h = rho_c - rho_r of a pair. All are differentiable, of any float
type, and neither values nor gradients overflow on answers that are very long, impossible or certain.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_CERTAIN = -(2.0**-23)
"""Mean log-likelihoods above this are rounding in float32: the answer is certain."""


def sigmoid(h: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, equation 7): -log s(beta h), s the logistic function.

    With label_smoothing e it is conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"):
    -(1 - e) log s(beta h) - e log s(-beta h).
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def robust(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): [-(1 - e) log s(beta h) + e log s(-beta h)] / (1 - 2 e).

    Where a share e < 1/2 of pairs is swapped, its expectation is DPO's on the pairs as they should be. That of a single
    pair may be negative.
    """
    clean, swapped = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return (-(1 - label_smoothing) * clean + label_smoothing * swapped) / (1 - 2 * label_smoothing)


def ipo(h: Tensor, beta: float) -> Tensor:
    """IPO (Azar et al. 2024, arXiv 2310.12036, equation 17, beta there tau): (h - 1 / (2 beta))^2.

    h of sums is the paper's; h of means is what TRL computes.
    """
    return (h - 1 / (2 * beta)).square()


def hinge(h: Tensor, beta: float) -> Tensor:
    """The hinge of SLiC (Zhao et al. 2023, arXiv 2305.10425) on DPO's margin: max(0, 1 - beta h)."""
    return torch.relu(1 - beta * h)


def slic(chosen: Tensor, rejected: Tensor, delta: float, lam: float) -> Tensor:
    """SLiC-HF (Zhao et al. 2023, arXiv 2305.10425): max(0, delta - log pi(c) + log pi(r)) - lam log pi(c), on sums.

    The second term is a sum over tokens like the first, as the paper has it: both are then in nats of a whole answer,
    and `lam` weighs them the same for short answers and for long ones. The paper takes it of the answer the model was
    tuned on before; of a pair that is the chosen one.
    """
    return torch.relu(delta - chosen + rejected) - lam * chosen


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv 2405.14734, equation 6) on means: -log s(beta (chosen - rejected) - gamma beta).

    `gamma` is the target margin as a share of beta; the paper's own gamma is `gamma * beta`.
    """
    return -F.logsigmoid(beta * (chosen - rejected - gamma))


def orpo(chosen: Tensor, rejected: Tensor, lam: float) -> Tensor:
    """ORPO (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7) on means: -c - lam log s(o(c) - o(r)).

    o(m) = m - log(1 - e^m) are the log odds of an answer whose mean log-likelihood is m. The first term is over the
    answer, as in the paper (TRL takes it over prompt and answer).
    """
    return -chosen - lam * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def kto(rho: Tensor, good: Tensor, z0: Tensor, beta: float, desirable: float, undesirable: float) -> Tensor:
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306): how far an answer is from being judged as it should.

    Equal to desirable (1 - s(beta (rho - z0))) for good answers, undesirable (1 - s(beta (z0 - rho))) for bad ones.

    Args:
        rho: [answers].
        good: [answers] bool.
        z0: scalar without gradient, see `baseline`.
        beta: strength of the pull towards the reference.
        desirable: weight of good answers.
        undesirable: weight of bad answers.
    """
    surprise = beta * (rho - z0)
    return torch.where(good, desirable * torch.sigmoid(-surprise), undesirable * torch.sigmoid(surprise))


def baseline(rho: Tensor) -> Tensor:
    """KTO's z0 from rho of mismatched prompts and answers [any number]: max(0, their mean), 0 of none; no gradient.

    It estimates how far the policy is from the reference (a KL divergence, which is never negative).
    """
    return rho.detach().sum().div(max(1, len(rho))).clamp(min=0)


def _log_odds(mean: Tensor) -> Tensor:
    """log(e^m / (1 - e^m)); a certain answer, of which it is infinite, counts as one at the edge, without gradient."""
    mean = mean.clamp(max=_CERTAIN)
    return mean - torch.log(-torch.expm1(mean))  # expm1: 1 - e^m would lose all digits near certainty
