"""Every round's mean product is carried on top of the base, and adapters start anew (FLoRA).

Wang et al. 2024, FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations,
https://arxiv.org/abs/2409.05976. Σ p_i s_i B_i A_i = [p_1 s_1 B_1, ...] [A_1; ...] is exact for any mixture of ranks
(the weight belongs to one side only). It is added to the carry, which everybody receives, also those who missed
rounds; A is drawn anew from the round's key and B is zero. The base itself stays as it was.
"""

from dataclasses import dataclass

from fedloom import lowrank, rng
from fedloom.contracts import Carry, Rule, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.stack import Stack
from fedloom.spaces.steady import Steady


@dataclass(frozen=True)
class Stacked(Steady):
    """Average products exactly, carry them, begin with a new adapter."""

    layout: Layout
    """The shared one, with the largest rank."""
    seed: int
    """The root of the new adapters' keys."""
    rule: Rule = Stack()

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The first rows of A and columns of B, as many as the client has room for; B is zero, so nothing is lost.

        Raises:
            ValueError: the client adapts other modules, or its rank is above the shared one.
        """
        return shared if layout == self.layout else lowrank.leading(shared, self.layout, layout)

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """Plain leaves, and scale B and A of every pair, with the client's own scale and rank."""
        return terms.of(y, layout)

    def point(self, shared: Params, phase: int) -> Term:
        """The plain leaves, and products of no components while B is zero."""
        term = terms.of(shared, self.layout)
        if any(left.any() for left, _ in terms.products(term)):
            return term
        return (term[0], *terms.zeros(term)[1:])

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """A new adapter beside the term's plain leaves; the carry with the term's products added."""
        plain, _ = terms.split(term)
        new = lowrank.start(self.layout, rng.key(self.seed, "flora", round + 1), shared.dtype)
        names = [leaf.name for leaf in lowrank.plain(self.layout)]
        return self.layout.put(new, names, plain), terms.carried(carry, (1.0, term))
