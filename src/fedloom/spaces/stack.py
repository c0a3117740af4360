"""The weighted mean of products Σ w_i L_i R_i / Σ w_i, kept as factors put side by side.

[w_1 L_1, w_2 L_2, ...] [R_1; R_2; ...] is the sum exactly, for any mixture of ranks. A pile that gets wider than the
smaller side of its matrix is multiplied out, so that it never grows far beyond the matrix itself.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedloom import lowrank
from fedloom.aggregate.rules import Total
from fedloom.contracts import Term
from fedloom.spaces import terms


@dataclass
class Pile:
    """Σ w L R of one module."""

    out: int
    inputs: int
    dtype: torch.dtype
    pieces: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)
    width: int = 0
    """Columns of all pieces."""
    dense: Tensor | None = None
    """[out, in] float64: what was multiplied out."""

    def add(self, left: Tensor, right: Tensor, weight: float) -> None:
        """One more product [out, k] [k, in].

        Raises:
            ValueError: the factors do not fit this module.
        """
        if left.shape[0] != self.out or right.shape[1] != self.inputs or left.shape[1] != right.shape[0]:
            raise ValueError(
                f"a product of {tuple(left.shape)} and {tuple(right.shape)} cannot be added to a matrix of "
                f"{(self.out, self.inputs)}; all clients must adapt the same modules of the same base"
            )
        if left.dtype != self.dtype or right.dtype != self.dtype or not left.is_floating_point():
            raise ValueError(f"factors of {left.dtype} and {right.dtype} cannot be added to those of {self.dtype}")
        self.pieces.append((weight, left, right))
        self.width += left.shape[1]
        if self.dense is not None or self.width > min(self.out, self.inputs):
            self._fold()

    def merged(self, other: "Pile") -> "Pile":
        """Both sums as one."""
        both = Pile(self.out, self.inputs, self.dtype, [*self.pieces, *other.pieces], self.width + other.width)
        folded = [pile.dense for pile in (self, other) if pile.dense is not None]
        if folded:
            both.dense = torch.stack(folded).sum(dim=0)
        if folded or both.width > min(both.out, both.inputs):
            both._fold()
        return both

    def over(self, divisor: float) -> tuple[Tensor, Tensor]:
        """The sum divided, as L [out, k] and R [k, in] in the format of the replies."""
        if self.dense is not None:
            return lowrank.beside_identity(self.dense / divisor, self.dtype)
        left = [(piece.to(torch.float64) * (weight / divisor)).to(self.dtype) for weight, piece, _ in self.pieces]
        return torch.cat(left, dim=1), torch.cat([right for _, _, right in self.pieces])

    def _fold(self) -> None:
        if self.dense is None:
            self.dense = torch.zeros(self.out, self.inputs, dtype=torch.float64)
        for weight, left, right in self.pieces:
            self.dense.addmm_(left.to(torch.float64), right.to(torch.float64), alpha=weight)
        self.pieces, self.width = [], 0


@dataclass
class Piled:
    """The running sums of a stack."""

    plain: Total = field(default_factory=Total)
    piles: list[Pile] | None = None
    """One for each module; None before the first reply."""
    weight: float = 0.0


@dataclass(frozen=True)
class Stack:
    """The weighted mean of (plain, L_1, R_1, ...): plain numbers one by one, products exactly."""

    uniform: bool = False
    """Ignore the messages' weights: every reply counts the same."""
    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "all"

    def start(self) -> Piled:
        """Empty sums."""
        return Piled()

    def add(self, acc: Piled, value: Term, weight: float | None) -> Piled:
        """One more reply.

        Raises:
            TypeError: the message carries no weight and the mean is not uniform.
            ValueError: it holds other modules than those before.
        """
        w = weighed(weight, self.uniform)
        plain, products = terms.split(value)
        if acc.piles is None:
            acc.piles = [Pile(left.shape[0], right.shape[1], left.dtype) for left, right in products]
        acc.plain.add(plain, w)
        for pile, (left, right) in zip(acc.piles, fitting(products, len(acc.piles)), strict=True):
            pile.add(left, right, w)
        acc.weight += w
        return acc

    def merge(self, left: Piled, right: Piled) -> Piled:
        """Both sums as one."""
        if left.piles is None or right.piles is None:
            return right if left.piles is None else left
        piles = [mine.merged(other) for mine, other in zip(left.piles, right.piles, strict=True)]
        return Piled(left.plain.merged(right.plain), piles, left.weight + right.weight)

    def finish(self, acc: Piled) -> tuple[Tensor, ...]:
        """The mean as a term.

        Raises:
            ValueError: all weights are 0.
        """
        plain = mean_of(acc.plain, acc.weight)
        return (plain, *(factor for pile in acc.piles or () for factor in pile.over(acc.weight)))


def weighed(weight: float | None, uniform: bool) -> float:
    """How much a reply counts.

    Raises:
        TypeError: it carries no weight, but one is needed.
    """
    if uniform:
        return 1.0
    if weight is None:
        raise TypeError("a weighted mean of products needs messages with a weight (Weighted), or uniform=True")
    return weight


def mean_of(total: Total, weight: float) -> Tensor:
    """The plain numbers' mean.

    Raises:
        ValueError: all weights are 0.
    """
    plain = total.over(weight)
    assert isinstance(plain, Tensor)
    return plain


def fitting(products: tuple[tuple[Tensor, Tensor], ...], count: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The products, if there is one for each module.

    Raises:
        ValueError: there are more or fewer.
    """
    if len(products) != count:
        raise ValueError(
            f"a reply holds products for {len(products)} modules, another for {count}; "
            "all clients must adapt the same modules"
        )
    return products
