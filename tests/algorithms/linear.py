"""Clients that fit linear maps with LoRA factors: f_i = sum over modules of ||(s B A + carried) x_i - y_i||^2 / 2.

The world of the sheet's LoRA entries (one module, base weight 0), with as many modules and ranks as wanted.
`fit` is the same descent written out by hand, for references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from algorithms.scalar import Leaves, World
from fedloom.contracts import HOME, Carry, Model
from fedloom.params import Layout, Leaf

Vector = tuple[float, ...]


def lora(rank: int, modules: int = 1, inputs: int = 2, outputs: int = 2, scale: float = 2.0) -> Layout:
    """`modules` LoRA pairs called m0, m1, ..."""
    leaves = []
    for m in range(modules):
        leaves.append(Leaf(f"m{m}.A", (rank, inputs), factor="A", module=f"m{m}", scale=scale))
        leaves.append(Leaf(f"m{m}.B", (outputs, rank), factor="B", module=f"m{m}", scale=scale))
    return Layout.of(leaves)


def pairs(layout: Layout, x: Tensor) -> list[tuple[Tensor, Tensor, float]]:
    """(A, B, scale) of each module."""
    views, half = layout.views(x), range(0, len(layout.leaves), 2)
    return [(views[layout.names[i]], views[layout.names[i + 1]], layout.leaves[i].scale) for i in half]


def vector(layout: Layout, factors: Sequence[tuple[Any, Any]]) -> Tensor:
    """[P] from (A, B) of each module."""
    tensors = {}
    for m, (a, b) in enumerate(factors):
        tensors[f"m{m}.A"], tensors[f"m{m}.B"] = (torch.as_tensor(numpy.array(t), dtype=torch.float64) for t in (a, b))
    return layout.gather(tensors, torch.float64)


def weights(layout: Layout, model: Model) -> list[Tensor]:
    """What each module computes: s B A and what is carried."""
    found = [scale * b @ a for a, b, scale in pairs(layout, model.x)]
    for m in range(len(model.carry) // 2):
        found[m] = found[m] + model.carry[2 * m] @ model.carry[2 * m + 1]
    return found


@dataclass(frozen=True)
class Row:
    """An input and a wanted output of each module."""

    x: tuple[Vector, ...]
    y: tuple[Vector, ...]

    def loss(self, leaves: Leaves, layout: Layout, carry: Carry) -> Tensor:
        total = torch.zeros((), dtype=next(iter(leaves.values())).dtype)
        for m, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            a, b = leaves[f"m{m}.A"], leaves[f"m{m}.B"]
            x_m, y_m = a.new_tensor(x), a.new_tensor(y)
            out = layout.leaves[2 * m].scale * b @ (a @ x_m)
            if carry:
                out = out + carry[2 * m] @ (carry[2 * m + 1] @ x_m)
            total = total + (out - y_m).square().sum() / 2
        return total


SHEET = Row(((1.0, 2.0),), ((1.0, 0.0),)), Row(((2.0, -1.0),), ((0.0, 1.0),))
"""The two clients of the sheet."""
TWO = (
    Row(((1.0, 2.0), (0.5, -1.0)), ((1.0, 0.0), (0.3, 0.8))),
    Row(((2.0, -1.0), (1.5, 0.4)), ((0.0, 1.0), (-0.6, 0.2))),
    Row(((-0.7, 0.9), (0.2, 1.1)), ((0.5, 0.5), (0.9, -0.4))),
)
"""Three clients with two modules."""


@dataclass(frozen=True)
class Linear(World):
    """Each client holds one row, n times."""

    n: tuple[int, ...] = (10, 30)
    lr: float = 0.05
    held: tuple[Row, ...] = SHEET
    ranks: tuple[int, ...] = (2, 2)

    def row(self, client: int, number: int) -> Row:
        return self.held[client]

    def layout(self, client: int) -> Layout:
        row, rank = self.held[0], max(self.ranks) if client == HOME else self.ranks[client]
        return lora(rank, len(row.x), len(row.x[0]), len(row.y[0]))

    @property
    def shared(self) -> Layout:
        return self.layout(HOME)


def fit(
    factors: Sequence[tuple[Any, Any]],
    row: Row,
    lr: float,
    steps: int,
    *,
    train: str = "AB",
    scale: float = 2.0,
    carried: Sequence[Any] = (),
    masks: Sequence[Any] = (),
    pull: Any = None,
) -> list[tuple[Any, Any]]:
    """Gradient descent on the factors (A, B) of each module, written out.

    `masks` [r] of each module keep slots still; `pull` gives what is added to the gradients.
    """
    now = [(numpy.array(a, dtype=float), numpy.array(b, dtype=float)) for a, b in factors]
    for _ in range(steps):
        moves = []
        extra = pull(now) if pull else [(0.0, 0.0)] * len(now)
        for m, (a, b) in enumerate(now):
            x, y = numpy.array(row.x[m]), numpy.array(row.y[m])
            error = scale * b @ a @ x - y
            if len(carried):
                error = error + carried[m] @ x
            da = scale * numpy.outer(b.T @ error, x) + extra[m][0]
            db = scale * numpy.outer(error, a @ x) + extra[m][1]
            if len(masks):
                da, db = da * masks[m][:, None], db * masks[m]
            moves.append((da * ("A" in train), db * ("B" in train)))
        now = [(a - lr * da, b - lr * db) for (a, b), (da, db) in zip(now, moves, strict=True)]
    return now
