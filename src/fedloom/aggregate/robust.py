"""Robust aggregation: what a guard is, and all there are.

A guard turns a space's linear rule into one that a few hostile or broken replies cannot steer far. It has to look at
single replies, so nothing may hide them from the server.

Whole replies are compared by their forms, and then averaged as the space averages. Where a space averages LoRA factors
and compares their products, a reply may stand at distance 0 with factors far away; only Krum, which takes one reply as
it is, is safe from that. The others that look at whole replies belong in spaces that average products.
"""

from typing import Protocol

from fedloom.aggregate.coordinates import Bulyan, Median, TrimmedMean
from fedloom.aggregate.reweighting import GeometricMedian, NormBound
from fedloom.aggregate.selection import Form, Krum, MultiKrum
from fedloom.contracts import Rule, Term

__all__ = ["Bulyan", "Form", "GeometricMedian", "Guard", "Krum", "Median", "MultiKrum", "NormBound", "TrimmedMean"]


class Guard(Protocol):
    """How replies are combined when some may be hostile."""

    @property
    def least(self) -> int:
        """Fewest replies it can work with."""

    @property
    def coordinates(self) -> bool:
        """Whether it works number by number, and so only in spaces whose terms are vectors."""

    @property
    def takes_one(self) -> bool:
        """Whether the result is one of the replies, rather than an average of several."""

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round.

        Args:
            rule: how the space averages; linear.
            point: where the shared model stands, a term like the replies.
            form: what distances are measured in, of a reply or of the point: free of gauge, so that two replies that
                stand for the same model are at distance 0.

        Raises:
            ValueError: the guard cannot work in this space.
        """
