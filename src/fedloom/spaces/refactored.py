"""Clients train B beside a shared A; after every round both are made anew from the SVD of their product (FedSVD).

Lee et al. 2025, FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA,
https://arxiv.org/abs/2505.12805. mean(B) = Σ p_i B_i is exact beside one A. With U S V^T its product with A: A = V^T
and B = U S, so that B A stays what it was, A A^T = I, and A follows what was learnt though nobody sends it. While the
product is zero, A stays as it started. Plain leaves are trained, sent and averaged as well. B changes its basis with
A, so a server's momentum would add numbers of different bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedloom import lowrank
from fedloom.aggregate.rules import Mean
from fedloom.contracts import Carry, Rule, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.steady import Steady, alike
from fedloom.spaces.turns import resting


@dataclass(frozen=True)
class Refactored(Steady):
    """Average B, then turn both factors so that A is orthonormal."""

    layout: Layout
    rule: Rule = Mean()

    def active(self, phase: int, layout: Layout) -> Sequence[str]:
        """B of every pair, and all plain leaves."""
        return resting(layout, "A")

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The shared vector as it is.

        Raises:
            ValueError: the client's layout is of another size.
        """
        return alike(shared, self.layout, layout)

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """B and the plain leaves, one behind the other."""
        return layout.take(y, self.active(phase, layout))

    def point(self, shared: Params, phase: int) -> Term:
        """The same of the shared vector."""
        return self.lift(shared, self.layout, phase)

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The shared vector with this B, and both factors turned."""
        part, _ = terms.split(term)
        x = self.layout.put(shared, self.active(0, self.layout), part)
        views = self.layout.views(x)
        for pair in lowrank.pairs(self.layout):
            a, b = views[pair.a.name], views[pair.b.name]
            if a.any() and b.any():
                turned, left = lowrank.refactor(b, a, pair.rank, 1.0)
                a.copy_(turned)
                b.copy_(left)
        return x, carry
