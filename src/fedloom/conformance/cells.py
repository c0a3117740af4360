"""The grid: what is varied, and the clients of one cell with its exact target dW* = Σ p_i s_i B_i A_i."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import sqrt
from typing import Any, Final, Literal

import numpy as np

from fedloom import rng
from fedloom.conformance.answers import Array, Base, Client

AXES: Final[dict[str, tuple[Any, ...]]] = {
    "ranks": ("equal", "mixed"),
    "scaling": ("alpha/r", "rsLoRA"),
    "layer": ("linear", "conv1d"),
    "shape": ("square", "oblong"),
    "weights": ("equal", "unequal"),
    "drift": ("low", "high"),
    "clients": (1, 2, 5),
    "dtype": ("fp64", "fp32"),
}
TOLERANCE: Final = {"fp64": 1e-12, "fp32": 1e-5}
"""Largest relative error, in the Frobenius norm, that passes."""

ALPHA: Final = 16.0
RANK: Final = 4
MIXED: Final = (2, 8, 3, 5, 4)
"""22 together: less than a square layer has rows, more than an oblong one has inputs."""
EXAMPLES: Final = (30.0, 10.0, 55.0, 5.0, 20.0)
DRIFT: Final = {"low": 0.05, "high": 1.0}
"""How far clients stand from what they have in common, in units of it. Averaging factors apart misses 0.1 %
and 17 to 28 %."""
SHAPE: Final = {"square": (24, 24), "oblong": (40, 16)}
"""(out, in). A square layer hides a transposition from every check of shapes."""


@dataclass(frozen=True)
class Cell:
    """One combination of the axes."""

    ranks: Literal["equal", "mixed"]
    scaling: Literal["alpha/r", "rsLoRA"]
    layer: Literal["linear", "conv1d"]
    shape: Literal["square", "oblong"]
    weights: Literal["equal", "unequal"]
    drift: Literal["low", "high"]
    clients: int
    dtype: Literal["fp64", "fp32"]
    shared: Literal["", "A", "B"] = ""
    """A factor that is the same on all clients; only for rules that promise to be exact then."""

    def __str__(self) -> str:
        outputs, inputs = SHAPE[self.shape]
        number = "1 client" if self.clients == 1 else f"{self.clients} clients"
        shared = f", shared {self.shared}" if self.shared else ""
        return (
            f"{self.ranks} ranks, {self.scaling}, {self.layer} {outputs}x{inputs}, {self.weights} weights, "
            f"{self.drift} drift, {number}, {self.dtype}{shared}"
        )


def grid() -> Iterator[Cell]:
    """All combinations of the axes."""
    for values in product(*AXES.values()):
        yield Cell(*values)


def sharing(factor: Literal["A", "B"]) -> Iterator[Cell]:
    """Cells in which all clients hold one A, or one B; their ranks are equal then."""
    for cell in grid():
        if cell.ranks == "equal":
            yield replace(cell, shared=factor)


@dataclass(frozen=True)
class Case:
    """One cell with its numbers."""

    cell: Cell
    clients: tuple[Client, ...]
    base: Base

    @cached_property
    def p(self) -> Array:
        """[clients], shares: weights over their sum."""
        weights = np.array([client.weight for client in self.clients])
        return weights / weights.sum()

    @cached_property
    def products(self) -> Array:
        """[clients, out, in] float64: s_i B_i A_i."""
        return np.stack([c.scale * (c.b.astype(np.float64) @ c.a.astype(np.float64)) for c in self.clients])

    @cached_property
    def target(self) -> Array:
        """[out, in] float64: dW*."""
        return np.tensordot(self.p, self.products, axes=1)

    def given(self) -> tuple[tuple[Client, ...], Base]:
        """Copies for the function, which may write into what it is given."""
        clients = tuple(replace(client, a=client.a.copy(), b=client.b.copy()) for client in self.clients)
        return clients, replace(self.base, weight=self.base.weight.copy())


def case(cell: Cell) -> Case:
    """The numbers of a cell, the same in every process. Factors are common part plus own part."""
    outputs, inputs = SHAPE[cell.shape]
    dtype = np.float64 if cell.dtype == "fp64" else np.float32
    drift = DRIFT[cell.drift]

    def normal(name: str, *shape: int) -> Array:
        return rng.numbers(rng.key(20, "conformance", name)).standard_normal(shape)

    ranks = MIXED if cell.ranks == "mixed" else (RANK,) * len(MIXED)
    clients = []
    for i, rank in enumerate(ranks[: cell.clients]):
        own_a = 0.0 if cell.shared == "A" else drift
        own_b = 0.0 if cell.shared == "B" else drift
        a = normal("A", max(MIXED), inputs)[:rank] + own_a * normal(f"A {i}", rank, inputs)
        b = normal("B", outputs, max(MIXED))[:, :rank] + own_b * normal(f"B {i}", outputs, rank)
        clients.append(
            Client(
                a=(a / sqrt(inputs)).astype(dtype),
                b=(b / 10).astype(dtype),
                rank=rank,
                alpha=ALPHA,
                scale=ALPHA / rank if cell.scaling == "alpha/r" else ALPHA / sqrt(rank),
                weight=EXAMPLES[i] if cell.weights == "unequal" else EXAMPLES[0],
            )
        )
    weight: Array = (normal("base", outputs, inputs) / sqrt(inputs)).astype(dtype)
    if cell.layer == "conv1d":
        return Case(cell, tuple(clients), Base(weight.T.copy(), transposed=True))
    return Case(cell, tuple(clients), Base(weight, transposed=False))
