"""Products are averaged slice by slice of their rank, each over the clients that have it (raFLoRA).

Wu et al. 2026, Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity,
https://arxiv.org/abs/2602.13486, algorithm 1. With s_i, r_i, w_i the scale, rank and weight of client i and slices
(l, h] between the rank levels of the whole federation: W = Σ_h Σ_{i: r_i >= h} (w_i / N_h) s_i B_i[:, l:h] A_i[l:h,
:] with N_h = Σ_{i: r_i >= h} w_i. The mean over everybody (FlexLoRA) would shrink the components only large ranks
hold, round by round. Slices mean something because everybody starts from components in the order of their singular
values. Ranks should share one scale; each client's own is used, so others work, with more weight on larger scales. A
slice nobody of the round holds keeps its last value, or is lost with `empty="zero"` (the formula to the letter).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedloom import lowrank
from fedloom.aggregate.rules import Total
from fedloom.contracts import Carry, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.products import best
from fedloom.spaces.stack import Pile, fitting, mean_of, weighed
from fedloom.spaces.steady import Steady


class Sliced(tuple[Tensor, ...]):
    """A term that also knows how many components of each product somebody held."""

    held: tuple[int, ...] = ()


@dataclass
class Slice:
    """One slice of one module: its sum and the weight of those who hold it."""

    pile: Pile
    weight: float = 0.0


@dataclass
class Cut:
    """The running sums of all slices."""

    plain: Total = field(default_factory=Total)
    modules: list[list[Slice]] | None = None
    """For each module, a slice for each level; None before the first reply."""
    weight: float = 0.0


@dataclass(frozen=True)
class SliceMean:
    """The mean of products with the weights renormalised inside each slice."""

    levels: tuple[int, ...]
    """All ranks there are, rising."""
    uniform: bool = False
    """Ignore the messages' weights: every reply counts the same."""
    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "all"

    def __post_init__(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 1:
            raise ValueError(
                f"rank levels {self.levels} must be different, rising numbers from 1 up: all ranks there are"
            )

    def start(self) -> Cut:
        """Empty sums."""
        return Cut()

    def add(self, acc: Cut, value: Term, weight: float | None) -> Cut:
        """One more reply.

        Raises:
            TypeError: the message carries no weight and the mean is not uniform.
            ValueError: it holds other modules than those before, or a rank that is no level.
        """
        w = weighed(weight, self.uniform)
        plain, products = terms.split(value)
        if acc.modules is None:
            acc.modules = [
                [Slice(Pile(left.shape[0], right.shape[1], left.dtype)) for _ in self.levels]
                for left, right in products
            ]
        acc.plain.add(plain, w)
        for slices, (left, right) in zip(acc.modules, fitting(products, len(acc.modules)), strict=True):
            if left.shape[1] not in self.levels:
                raise ValueError(
                    f"a reply of rank {left.shape[1]} fits none of the rank levels {self.levels}; "
                    "give the space every rank of the federation"
                )
            low = 0
            for piece, high in zip(slices, self.levels, strict=True):
                if high <= left.shape[1]:
                    piece.pile.add(left[:, low:high], right[low:high], w)
                    piece.weight += w
                low = high
        acc.weight += w
        return acc

    def merge(self, left: Cut, right: Cut) -> Cut:
        """Both sums as one."""
        if left.modules is None or right.modules is None:
            return right if left.modules is None else left
        modules = [
            [Slice(a.pile.merged(b.pile), a.weight + b.weight) for a, b in zip(ours, theirs, strict=True)]
            for ours, theirs in zip(left.modules, right.modules, strict=True)
        ]
        return Cut(left.plain.merged(right.plain), modules, left.weight + right.weight)

    def finish(self, acc: Cut) -> Sliced:
        """The mean, without the slices nobody held.

        Raises:
            ValueError: all weights are 0.
        """
        plain, factors, held = mean_of(acc.plain, acc.weight), list[Tensor](), []
        for slices in acc.modules or ():
            there = [piece for piece in slices if piece.weight != 0]
            means = [piece.pile.over(piece.weight) for piece in there]
            factors += [torch.cat([left for left, _ in means], dim=1), torch.cat([right for _, right in means])]
            held.append(self.levels[len(there) - 1])
        mean = Sliced((plain, *factors))
        mean.held = tuple(held)
        return mean


@dataclass(frozen=True)
class Slices(Steady):
    """Average rank slices over those who hold them."""

    layout: Layout
    """The shared one, with the largest rank."""
    levels: tuple[int, ...]
    """Every rank some client has in some module, rising. Levels a module does not have change nothing in it."""
    empty: Literal["keep", "zero"] = "keep"
    """What becomes of a slice nobody of the round holds."""
    uniform: bool = False
    """Ignore the messages' weights."""

    @property
    def rule(self) -> SliceMean:
        """The mean of each slice."""
        return SliceMean(self.levels, self.uniform)

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The first components, as many as the client has room for.

        Raises:
            ValueError: the client adapts other modules, or its rank is above the shared one.
        """
        return shared if layout == self.layout else lowrank.leading(shared, self.layout, layout)

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """Plain leaves, and scale B and A of every pair; their width tells the rank."""
        return terms.of(y, layout)

    def point(self, shared: Params, phase: int) -> Term:
        """The shared vector in the same way."""
        return terms.of(shared, self.layout)

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The best factors of the shared rank, empty slices filled from the last value.

        Raises:
            ValueError: empty slices are to be kept, but a server optimiser mixed the mean with something else.
        """
        if self.empty == "keep":
            term = self._filled(shared, term)
        return best(shared, self.layout, term), carry

    def _filled(self, shared: Params, term: Term) -> Term:
        if not isinstance(term, Sliced):
            raise ValueError(
                "which slices nobody held is known only for the mean itself; with a server learning rate other than 1 "
                'or momentum use empty="zero"'
            )
        plain, products = terms.split(term)
        old = terms.products(terms.of(shared, self.layout))
        filled = list[Tensor]()
        for (left, right), (before, rows), held in zip(products, old, term.held, strict=True):
            filled += [torch.cat([left, before[:, held:]], dim=1), torch.cat([right, rows[held:]])]
        return (plain, *filled)
