"""What fedloom's spaces promise, each checked in the regime in which it holds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.conformance.answers import Answer, Array, Base, Client
from fedloom.conformance.cells import Case, Cell, grid, sharing
from fedloom.conformance.judge import Report, Target, check
from fedloom.conformance.own import through
from fedloom.contracts import Space
from fedloom.params import Layout
from fedloom.spaces.factors import Factors as FactorMeans
from fedloom.spaces.products import Products
from fedloom.spaces.refactored import Refactored
from fedloom.spaces.residual import Residual
from fedloom.spaces.slices import Slices
from fedloom.spaces.stacked import Stacked
from fedloom.spaces.turns import Turns


@dataclass(frozen=True)
class Row:
    """One promise of one space."""

    name: str
    equals: str
    """What its result is, and where."""
    make: Callable[[Layout, Sequence[Client]], Space]
    cells: Callable[[], Iterable[Cell]]
    target: Target | None = None
    """None: dW*."""
    truncated: bool = False
    full: bool = False
    """The shared adapter has as large a rank as the layer allows."""
    phase: int = 0

    def check(self) -> Report:
        """Run it over its cells."""
        return check(self.aggregate, cells=self.cells(), target=self.target, truncated=self.truncated, name=self.name)

    def aggregate(self, clients: Sequence[Client], base: Base) -> Answer:
        """The space as an aggregation function."""
        run = through(
            lambda layout: self.make(layout, clients), rank="full" if self.full else "largest", phase=self.phase
        )
        return run(clients, base)


def equal_ranks() -> Iterator[Cell]:
    """The cells in which all clients have one rank."""
    return (cell for cell in grid() if cell.ranks == "equal")


def unweighted(it: Case) -> Array:
    """The plain mean of s_i B_i A_i, [out, in]."""
    return it.products.mean(axis=0)


def without_drift(it: Case) -> Array:
    """dW* - s Σ p_i (B_i - B̄)(A_i - Ā): what averaging the factors apart gives, [out, in]."""
    a, b = (np.stack([getattr(client, name) for client in it.clients]).astype(np.float64) for name in "ab")
    own_a, own_b = a - np.tensordot(it.p, a, 1), b - np.tensordot(it.p, b, 1)
    return it.target - it.clients[0].scale * np.einsum("c,cor,cri->oi", it.p, own_b, own_a)


def component_means(it: Case) -> Array:
    """Σ_j of the mean of component j over the clients that have one, weights renormalised among them, [out, in]."""
    total = np.zeros(it.target.shape)
    for j in range(max(client.rank for client in it.clients)):
        holders = [client for client in it.clients if client.rank > j]
        share = sum(client.weight for client in holders)
        for client in holders:
            column, row = client.b[:, j].astype(np.float64), client.a[j].astype(np.float64)
            total += client.weight / share * client.scale * np.outer(column, row)
    return total


def rows() -> tuple[Row, ...]:
    """All promises, one after the other."""
    return (
        Row("factors", "dW*, A shared (FFA-LoRA)", lambda layout, _: FactorMeans(layout), lambda: sharing("A")),
        Row("factors", "dW*, B shared", lambda layout, _: FactorMeans(layout), lambda: sharing("B")),
        Row("factors", "dW* less drift (FedIT)", lambda layout, _: FactorMeans(layout), equal_ranks, without_drift),
        Row("turns", "dW*, round of B (RoLoRA)", lambda layout, _: Turns(layout), lambda: sharing("A")),
        Row("turns", "dW*, round of A (RoLoRA)", lambda layout, _: Turns(layout), lambda: sharing("B"), phase=1),
        Row("refactored", "dW*, A shared (FedSVD)", lambda layout, _: Refactored(layout), lambda: sharing("A")),
        Row("residual", "dW*, equal ranks (FedEx)", lambda layout, _: Residual(layout, uniform=False), equal_ranks),
        Row(
            "residual",
            "dW* of uniform weights",
            lambda layout, _: Residual(layout, uniform=True),
            equal_ranks,
            unweighted,
        ),
        Row("stacked", "dW* (FLoRA)", lambda layout, _: Stacked(layout, 0), grid),
        Row("products", "dW* at full rank (FlexLoRA)", lambda layout, _: Products(layout), grid, full=True),
        Row("products", "the best of rank r (FlexLoRA)", lambda layout, _: Products(layout), grid, truncated=True),
        Row("slices", "dW*, equal ranks (raFLoRA)", _slices, equal_ranks, full=True),
        Row("slices", "component means (raFLoRA)", _slices, grid, component_means, full=True),
        Row("slices", "the best of rank r (raFLoRA)", _slices, grid, component_means, truncated=True),
    )


def _slices(layout: Layout, clients: Sequence[Client]) -> Space:
    return Slices(layout, tuple(sorted({client.rank for client in clients})))
