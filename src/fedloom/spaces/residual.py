"""LoRA factors are averaged apart, and what that misses is carried beside them (FedEx-LoRA).

Singhal et al. 2025, FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language Models,
https://arxiv.org/abs/2410.09432. After every round the carry grows by Σ p_i s B_i A_i - s mean(B) mean(A), both with
the same weights, so that carry and adapter together are the exact mean. The means of the authors' code are uniform.
The residual has up to (clients + 1) times the rank many components.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedloom.aggregate.rules import Mean, Total
from fedloom.contracts import Carry, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.stack import Piled, Stack
from fedloom.spaces.steady import Steady, alike


@dataclass
class Both:
    """Running sums of the numbers, and of the products they make."""

    numbers: Total
    products: Piled


@dataclass(frozen=True)
class MeanAndProducts:
    """(mean of the vectors, mean of their products): the plain mean and the exact one with the same weights."""

    layout: Layout
    uniform: bool = True
    """Ignore the messages' weights: every reply counts the same."""
    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "all"

    def start(self) -> Both:
        """Empty sums."""
        return Both(Total(), Piled())

    def add(self, acc: Both, value: Term, weight: float | None) -> Both:
        """One more vector [P], or a term with products of its own (a guard adds the point it started from)."""
        x, products = terms.split(value)
        own = terms.of(x, self.layout)
        whole = (own[0], *(factor for product in products for factor in product)) if products else own
        numbers = Mean(self.uniform).add(acc.numbers, x, weight)
        return Both(numbers, Stack(self.uniform).add(acc.products, whole, weight))

    def merge(self, left: Both, right: Both) -> Both:
        """Both sums as one."""
        return Both(left.numbers.merged(right.numbers), Stack().merge(left.products, right.products))

    def finish(self, acc: Both) -> tuple[Tensor, ...]:
        """(mean [P], L_1, R_1, ...)."""
        mean = Mean().finish(acc.numbers)
        assert isinstance(mean, Tensor)
        return (mean, *Stack().finish(acc.products)[1:])


@dataclass(frozen=True)
class Residual(Steady):
    """Average factors and carry the rest; the plain part of its terms is the whole vector [P]."""

    layout: Layout
    uniform: bool = True
    """Every client counts the same, as in the authors' code; False: by the messages' weights."""

    @property
    def rule(self) -> MeanAndProducts:
        """Both means."""
        return MeanAndProducts(self.layout, self.uniform)

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
        """The shared vector, and the products of its pairs."""
        return (shared, *terms.of(shared, self.layout)[1:])

    def form(self, term: Term, phase: int) -> Term:
        """Plain leaves and products: of a client's vector, or of a term with products of its own."""
        x, products = terms.split(term)
        own = terms.of(x, self.layout)
        return (own[0], *(factor for product in products for factor in product)) if products else own

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The mean vector; the carry with the difference of both means added."""
        x, _ = terms.split(term)
        return x, terms.carried(carry, (1.0, term), (-1.0, terms.of(x, self.layout)))
