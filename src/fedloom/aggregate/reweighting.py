"""Guards that change how much replies count: the geometric median, and norm bounding.

Geometric median: Pillutla et al. 2019, Robust Aggregation for Federated Learning, https://arxiv.org/abs/1912.13445
(smoothed Weiszfeld algorithm). Norm bounding: Sun et al. 2019, Can You Really Backdoor Federated Learning?,
https://arxiv.org/abs/1911.07963.

Notation: y_i a reply, p the shared model, |y_i - p| a distance of their forms. The replies themselves are averaged by
the space's own rule with the weights found here, so that these guards work in every space.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedloom.aggregate.rules import Gather, Gathered
from fedloom.aggregate.selection import Form, enough, folded, not_negative, weighing
from fedloom.aggregate.terms import alike, gram
from fedloom.contracts import Rule, Term


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the smallest weighted sum of distances to all replies, by smoothed Weiszfeld steps (RFA).

    z starts as the weighted mean; a step makes it Σ β_i y_i / Σ β_i, β_i = α_i / max(ν, |z - y_i|), α the replies'
    weights. It holds against less than half of the weight. A reply much farther away than the others still pulls
    after few steps: each step takes about a factor n off its influence.
    """

    coordinates: ClassVar[bool] = False
    takes_one: ClassVar[bool] = False

    nu: float = 1e-5
    """ν, the distance below which a reply counts no more for being nearer; in the units of the form."""
    iterations: int = 4
    """Steps at most."""
    tolerance: float = 1e-6
    """Stop after a step shorter than this share of the replies' distance from z (their harmonic mean)."""

    def __post_init__(self) -> None:
        if not self.nu > 0:
            raise ValueError(f"nu is {self.nu}; it divides by distances that may be 0, so it must be above 0")
        if self.iterations < 1:
            raise ValueError(f"{self.iterations} steps leave the plain mean; the geometric median takes 1 or more")
        not_negative("tolerance", self.tolerance)

    @property
    def least(self) -> int:
        """Fewest replies it can work with."""
        return 1

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round; arguments as for `Krum`."""
        return Weighed(
            inner=weighing(rule), point=point, form=form, uniform=bool(getattr(rule, "uniform", False)), median=self
        )

    def shares(self, products: Tensor, alpha: Tensor) -> Tensor:
        """How much each reply counts, [n] float64 with sum 1.

        Args:
            products: [n, n], inner products of the replies, seen from somewhere near the honest ones.
            alpha: [n], their weights.
        """
        share = alpha / alpha.sum()
        for _ in range(self.iterations):
            pull = alpha / distances(products, share).clamp(min=self.nu)
            new = pull / pull.sum()
            share, moved = new, new - share
            step = math.sqrt(max(0.0, float(moved @ products @ moved)))
            # one reply far away would hide every step in the sum of distances, not in their harmonic mean
            if step <= self.tolerance * float(alpha.sum() / pull.sum()):
                break
        return share


@dataclass(frozen=True)
class NormBound:
    """The mean of replies none of which is farther than `limit` from the shared model: point + c_i (y_i - point).

    c_i = min(1, limit / |y_i - point|). Weights count as ever. One reply moves the mean by its share of the weight
    times the limit at most, where the form is what is averaged, or linear in it.
    """

    coordinates: ClassVar[bool] = False
    takes_one: ClassVar[bool] = False

    limit: float = 1.0
    """The largest distance, in the units of the form."""

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit is {self.limit}; with it no reply could move the model, so it must be above 0")

    @property
    def least(self) -> int:
        """Fewest replies it can work with."""
        return 1

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round; arguments as for `Krum`."""
        inner, uniform = weighing(rule, normal=False), bool(getattr(rule, "uniform", False))
        return Bounded(inner, point, form, form(point), self.limit, uniform)


# -- the rules they make --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Weighed(Gather):
    """The geometric median as a weighted mean of the replies."""

    inner: Rule
    point: Term
    form: Form
    uniform: bool
    """Ignore the messages' weights."""
    median: GeometricMedian

    def add(self, acc: Gathered, value: Any, weight: float | None) -> Gathered:
        """One more value.

        Raises:
            ValueError, TypeError: it cannot be compared with the point, or has no weight.
        """
        alike(self.form(value), self.form(self.point))
        counted(weight, self.uniform)
        return super().add(acc, value, weight)

    def finish(self, acc: Gathered) -> Any:
        """The geometric median.

        Raises:
            ValueError: the weights sum to 0, or one is below 0.
        """
        enough(acc, 1)
        products = gram([self.form(value) for value, _ in acc.values], self.form(self.point))
        alpha = torch.tensor([counted(w, self.uniform) for _, w in acc.values], dtype=torch.float64)
        # a length beyond all numbers is a reply infinitely far away: its part in the median is 0
        alpha = torch.where(products.diagonal().isfinite(), alpha, 0.0)
        if float(alpha.min()) < 0 or float(alpha.sum()) == 0:
            raise ValueError(f"the replies' weights are {alpha.tolist()[:6]}; a median needs some above 0, none below")
        shares = self.median.shares(products.nan_to_num(0.0, 0.0, 0.0), alpha).tolist()
        return folded(self.inner, [(value, share) for (value, _), share in zip(acc.values, shares, strict=True)])


@dataclass
class Partly:
    """A sum of clipped replies: the replies' part in the space's accumulator, and the weight the point has gained."""

    acc: Any
    weight: float = 0.0


@dataclass(frozen=True)
class Bounded:
    """A mean of clipped replies; each is clipped as it comes, so memory does not grow with their number."""

    inner: Rule
    point: Term
    form: Form
    origin: Term
    """The form of the point."""
    limit: float
    uniform: bool
    """Ignore the messages' weights."""
    linear: bool = False
    reveals: Literal["sum", "each"] = "each"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Partly:
        """An empty sum."""
        return Partly(self.inner.start())

    def add(self, acc: Partly, value: Term, weight: float | None) -> Partly:
        """One more reply: c_i of its weight for itself, the rest for the point."""
        square = float(gram([self.form(value)], self.origin)[0, 0])
        far = math.sqrt(max(0.0, square)) if math.isfinite(square) else math.inf
        own = counted(weight, self.uniform)
        keep = 1.0 if far <= self.limit else self.limit / far
        inner = self.inner.add(acc.acc, value, own * keep) if keep > 0 else acc.acc
        return Partly(inner, acc.weight + own * (1.0 - keep))

    def merge(self, left: Partly, right: Partly) -> Partly:
        """Both sums as one."""
        return Partly(self.inner.merge(left.acc, right.acc), left.weight + right.weight)

    def finish(self, acc: Partly) -> Any:
        """The mean."""
        if acc.weight == 0:
            return self.inner.finish(acc.acc)
        # into a sum of its own, so that finishing twice gives the same
        aside = self.inner.add(self.inner.start(), self.point, acc.weight)
        return self.inner.finish(self.inner.merge(acc.acc, aside))


# -- what they share ------------------------------------------------------------------------------------------------


def distances(products: Tensor, share: Tensor) -> Tensor:
    """Distances [n] of n points from their weighted mean z, by their inner products [n, n] and shares c [n] of sum 1.

    |z - y_i|² = c·Gc - 2 (Gc)_i + G_ii. Pairwise distances would do as well, but lose all digits of the near points
    when one lies very far away.
    """
    mean = products @ share
    return (share @ mean - 2 * mean + products.diagonal()).clamp(min=0.0).sqrt()


def counted(weight: float | None, uniform: bool) -> float:
    """How much a reply counts.

    Raises:
        TypeError: it says nothing of it, and not all count the same.
    """
    if uniform:
        return 1.0
    if weight is None:
        raise TypeError("this guard weighs replies, so it needs messages with a weight (Weighted), or a uniform rule")
    return weight
