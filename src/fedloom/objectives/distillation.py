"""Distillation: a small model (student) learns from labels and from a large one (teacher), and the other way round.

Notation: s, t logits [units, K] of student and teacher on the same units (rows of a classifier, labelled tokens of a
language model); T temperature; sg stops gradients; CE mean cross-entropy; K_s, K_t mean divergences, whose gradients go
to student and teacher; M how far their attention maps are apart; D = CE_s + CE_t + epsilon.

    L = CE_s + CE_t + (M + T^2 (K_s + K_t)) / sg(D)

D comes of FedKD (Wu et al. 2022, Communication-efficient federated learning via knowledge distillation,
https://arxiv.org/abs/2108.13323): models that are wrong about the labels teach each other little. Without it, and with
divergences towards the partner (`forward`), this is deep mutual learning (Zhang et al. 2018,
https://arxiv.org/abs/1706.00384); with a teacher that does not learn, Hinton et al. 2015
(https://arxiv.org/abs/1503.02531).

`raw_logits` is the loss of the public code FedKDLoRA, for comparison: K_s = mean of sum exp(s) (s - sg(t)) on logits
that are not normalised (it may be negative, and a number added to all logits of a row changes it), D not stopped in
M / D, and M a mean over filling too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Kl: TypeAlias = Literal["proper", "raw_logits"]
Direction: TypeAlias = Literal["reverse", "forward"]
"""reverse: sum p_own (log p_own - log p_partner), as FedKDLoRA has it. forward: sum p_partner (log p_partner - log
p_own), as Hinton and deep mutual learning have it."""

UNPUBLISHED = ("temperature", "alpha", "direction", "mutual", "normalised")
"""Settings the public code's loss has no place for."""


@dataclass(frozen=True)
class Terms:
    """The parts of a batch's loss, or what some of its examples add to them; scalars, differentiable."""

    student_ce: Tensor
    teacher_ce: Tensor
    student_kl: Tensor
    """Its gradient goes to the student alone."""
    teacher_kl: Tensor
    """Its gradient goes to the teacher alone."""
    attention: Tensor
    """Its gradient goes to both."""

    def doubt(self) -> float:
        """CE_s + CE_t."""
        return self.student_ce.item() + self.teacher_ce.item()


@dataclass(frozen=True)
class Distillation:
    """Which of the losses above is minimised."""

    kl: Kl = "proper"
    temperature: float = 2.0
    alpha: float | None = None
    """(1 - alpha) CE + alpha T^2 K, as Hinton weighs them; None: CE + T^2 K."""
    direction: Direction = "reverse"
    mutual: bool = True
    """The teacher learns too; False: it stays as it is."""
    normalised: bool = True
    """Divide by D."""
    epsilon: float = 1.0
    attention: float = 0.0
    """Weight of M."""

    def __post_init__(self) -> None:
        changed = [name for name in UNPUBLISHED if getattr(self, name) != getattr(Distillation, name)]
        if self.kl == "raw_logits" and changed:
            raise ValueError(f"kl=raw_logits is the published loss as it is: leave {', '.join(changed)} out")
        if self.temperature <= 0 or self.epsilon <= 0 or self.attention < 0:
            raise ValueError("temperature and epsilon must be above 0, the weight of attention not below it")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is no share; choose 0 to 1")

    def terms(self, student: Tensor, teacher: Tensor, labels: Tensor, count: int, attention: Tensor | None) -> Terms:
        """What some units add to a batch's terms.

        Args:
            student: logits [units, K].
            teacher: logits [units, K].
            labels: [units], what is true.
            count: units of the whole batch.
            attention: M, or what these texts add to it; None: it is not looked at.
        """

        def ce(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="sum") / count

        return Terms(
            ce(student), ce(teacher), self._apart(student, teacher).sum() / count,
            self._apart(teacher, student).sum() / count, student.new_zeros(()) if attention is None else attention,
        )  # fmt: skip

    def total(self, terms: Terms, doubt: float | None = None) -> Tensor:
        """L, or what these terms add to it.

        Args:
            terms: of a whole batch, or of a part of it.
            doubt: CE_s + CE_t of the whole batch, where the terms are a part's; the published loss has no parts.
        """
        kls, ces = terms.student_kl + terms.teacher_kl, terms.student_ce + terms.teacher_ce
        if self.kl == "raw_logits":
            if doubt is not None:
                raise ValueError("kl=raw_logits cannot be computed in parts: D is not stopped in M / D")
            scale = ces + self.epsilon
            return ces + self.attention * terms.attention / scale + kls / scale.detach()
        if not self.mutual:
            kls, ces = terms.student_kl, terms.student_ce
        labels, partner = (1.0, 1.0) if self.alpha is None else (1 - self.alpha, self.alpha)
        taught = self.attention * terms.attention + partner * self.temperature**2 * kls
        divisor = (terms.doubt() if doubt is None else doubt) + self.epsilon if self.normalised else 1.0
        return labels * ces + taught / divisor

    def _apart(self, own: Tensor, partner: Tensor) -> Tensor:
        """Divergence of each unit [units], with a gradient to `own` alone."""
        partner = partner.detach()
        if self.kl == "raw_logits":
            return (own.exp() * (own - partner)).sum(-1)
        p, q = (torch.log_softmax(logits / self.temperature, -1) for logits in (own, partner))
        return (p.exp() * (p - q) if self.direction == "reverse" else q.exp() * (q - p)).sum(-1)


def pairs(student: int, teacher: int) -> list[tuple[int, int]]:
    """Which attention maps are compared: the student's k-th layer with the teacher's at the same share of its depth.

    Args:
        student: its layers.
        teacher: its layers.

    Returns:
        Places of layers, counted from 0; the last of both are a pair.

    Raises:
        ValueError: the student is deeper.
    """
    if student > teacher:
        raise ValueError(f"a student of {student} layers cannot follow a teacher of {teacher}")
    return [(k, (k + 1) * teacher // student - 1) for k in range(student)]


def attention_apart(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """M as published: summed over pairs of layers, the mean square difference over all entries, filling included.

    Args:
        student: a map [texts, heads, tokens, tokens] of each layer.
        teacher: the same of the teacher.
    """
    chosen = pairs(len(student), len(teacher))
    return torch.stack([F.mse_loss(student[i], teacher[j]) for i, j in chosen]).sum()


def attention_apart_in_text(
    student: Sequence[Tensor], teacher: Sequence[Tensor], lengths: Sequence[int], texts: int
) -> Tensor:
    """M where text is: summed over pairs of layers, the mean over texts of each text's mean square difference.

    Args:
        student: a map [these texts, heads, tokens, tokens] of each layer; filling stands behind text.
        teacher: the same of the teacher.
        lengths: tokens of each text.
        texts: texts of the whole batch, of which these may be a part.
    """
    long = torch.tensor(lengths, device=student[0].device)
    real = torch.arange(student[0].shape[-1], device=long.device)[None] < long[:, None]
    both = (real[:, None, :, None] & real[:, None, None, :]).to(student[0].dtype)
    entries = student[0].shape[1] * long**2
    chosen = pairs(len(student), len(teacher))
    squares = [((student[i] - teacher[j]).square() * both).sum((1, 2, 3)) / entries for i, j in chosen]
    return torch.stack(squares).sum() / texts
