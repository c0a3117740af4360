"""The trained numbers themselves are averaged, A and B of a LoRA pair apart (FedIT).

Zhang et al. 2023, Towards Building the Federated GPT, https://arxiv.org/abs/2305.05644. The mean of products is not
the product of means: Σ p_i B_i A_i - mean(B) mean(A) = Σ p_i (B_i - mean B)(A_i - mean A), small when clients stay
close. With A frozen in the adapter (FFA-LoRA, Sun et al. 2024, https://arxiv.org/abs/2403.12313) only B is there to
be averaged, and nothing is lost. All clients share one layout; without LoRA this is the plain mean of the weights.
"""

from dataclasses import dataclass

from fedloom.aggregate.rules import Mean
from fedloom.contracts import Carry, Rule, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.steady import Steady, alike


@dataclass(frozen=True)
class Factors(Steady):
    """Average what was trained, number by number."""

    layout: Layout
    rule: Rule = Mean()

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The shared vector as it is.

        Raises:
            ValueError: the client's layout is of another size.
        """
        return alike(shared, self.layout, layout)

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """The client's vector as it is."""
        return y

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
