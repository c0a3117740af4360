"""The products of LoRA factors are averaged, and everybody gets the best factors of their own rank (FlexLoRA).

Bai et al. 2024, Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources,
https://arxiv.org/abs/2402.11505. With s_i the scale and r_i the rank of client i, the mean W = Σ p_i s_i B_i A_i is
exact for any mixture of ranks. From its SVD U S V^T comes B = U_r S_r / s, A = V_r^T at rank r, off by sqrt(Σ_{j>r}
σ_j²), the least possible (Eckart and Young 1936). Plain leaves are averaged beside it.
"""

from dataclasses import dataclass

from torch import Tensor

from fedloom import lowrank
from fedloom.contracts import Carry, Rule, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.stack import Stack
from fedloom.spaces.steady import Steady


@dataclass(frozen=True)
class Products(Steady):
    """Average products; keep as much of the average as the shared rank holds."""

    layout: Layout
    """The shared one, with the largest rank."""
    rule: Rule = Stack()

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The best factors of the client's rank; as they are where it has the shared rank.

        A product that is zero (before the first round) says nothing about directions: then the first rows of A. What
        `close` leaves is in the order of singular values already, so that no client needs an SVD of its own.

        Raises:
            ValueError: the client adapts other modules, or its rank is above the shared one.
        """
        if layout == self.layout:
            return shared
        views, found = self.layout.views(shared), {}
        for mine, its in lowrank.matched(self.layout, layout):
            a, b = views[mine.a.name], views[mine.b.name]
            if its.rank == mine.rank or not b.any() or lowrank.in_order(a, b):
                found[mine.module] = a[: its.rank], lowrank.rescaled(b[:, : its.rank], mine.scale, its.scale)
            else:
                found[mine.module] = lowrank.refactor(b * mine.scale, a, its.rank, its.scale)
        return lowrank.vector(layout, lowrank.plain_vector(shared, self.layout), found)

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """Plain leaves, and scale B and A of every pair, with the client's own scale and rank."""
        return terms.of(y, layout)

    def point(self, shared: Params, phase: int) -> Term:
        """The shared vector in the same way."""
        return terms.of(shared, self.layout)

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The best factors of the shared rank."""
        return best(shared, self.layout, term), carry


def best(shared: Params, layout: Layout, term: Term) -> Params:
    """The vector [P] that comes closest to a term; where a product is zero, A stays what it is in `shared`."""
    plain, products = terms.split(term)
    views = layout.views(shared)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for pair, (left, right) in zip(lowrank.pairs(layout), products, strict=True):
        if left.any() and right.any():
            found[pair.module] = lowrank.refactor(left, right, pair.rank, pair.scale)
        else:
            found[pair.module] = views[pair.a.name], views[pair.b.name].new_zeros(pair.b.shape)
    return lowrank.vector(layout, plain, found)
