"""Factors of small ranks are filled up with zeros and averaged number by number (HetLoRA's aggregation).

Cho et al. 2024, Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models,
https://arxiv.org/abs/2401.06432. A client of rank r_i gets the first r_i rows of A and columns of B. The paper weighs
clients by the norms of their products; the weights travel with the messages, so this is the plain weighted mean. Rows
are averaged over all clients, also those that do not have them. All scales must be equal.
"""

from dataclasses import dataclass

from torch import Tensor

from fedloom import lowrank
from fedloom.aggregate.rules import Mean
from fedloom.contracts import Carry, Rule, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.steady import Steady


@dataclass(frozen=True)
class Padded(Steady):
    """Average zero-padded factors."""

    layout: Layout
    """The shared one, with the largest rank."""
    rule: Rule = Mean()

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The first components, as many as the client has room for.

        Raises:
            ValueError: the client adapts other modules, its rank is above the shared one, or its scale is another.
        """
        if layout == self.layout:
            return shared
        self._even(layout)
        return lowrank.leading(shared, self.layout, layout)

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """[P] of the shared layout: the client's factors with zeros behind them.

        Raises:
            ValueError: as for `lower`.
        """
        if layout == self.layout:
            return y
        views, found = layout.views(y), dict[str, tuple[Tensor, Tensor]]()
        for mine, its in self._even(layout):
            a, b = y.new_zeros(mine.a.shape), y.new_zeros(mine.b.shape)
            a[: its.rank] = views[its.a.name]
            b[:, : its.rank] = views[its.b.name]
            found[mine.module] = a, b
        return lowrank.vector(self.layout, lowrank.plain_vector(y, layout), found)

    def point(self, shared: Params, phase: int) -> Term:
        """The shared vector as it is."""
        return shared

    def form(self, term: Term, phase: int) -> Term:
        """The plain leaves and the products of the pairs."""
        x, _ = terms.split(term)
        return terms.of(x, self.layout)

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The mean as it is."""
        x, _ = terms.split(term)
        return x, carry

    def _even(self, layout: Layout) -> tuple[tuple[lowrank.Pair, lowrank.Pair], ...]:
        both = lowrank.matched(self.layout, layout)
        for mine, its in both:
            if mine.scale != its.scale:
                raise ValueError(
                    f"{mine.module}: a client of rank {its.rank} scales its product by {its.scale}, the shared adapter "
                    f"by {mine.scale}; factors of different scales cannot be averaged apart: give all ranks one scale, "
                    "or average products (flexlora)"
                )
        return both
