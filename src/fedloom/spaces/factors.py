"""The trained numbers themselves are averaged, A and B of a LoRA pair apart (FedIT).

Zhang et al. 2023, Towards Building the Federated GPT, https://arxiv.org/abs/2305.05644. The mean of products is not
the product of means: sum p_i B_i A_i - mean(B) mean(A) = sum p_i (B_i - mean B)(A_i - mean A), small when clients stay
close. All clients share one layout.
"""

from dataclasses import dataclass, field

from fedloom.aggregate.rules import Mean
from fedloom.contracts import Rule, Term
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Factors:
    """Average what was trained, number by number."""

    rule: Rule = field(default_factory=Mean)

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The shared vector as it is."""
        return shared

    def lift(self, y: Params, layout: Layout) -> Term:
        """The client's vector as it is."""
        return y

    def close(self, shared: Params, mean: Params) -> Params:
        """The mean as it is."""
        return mean
