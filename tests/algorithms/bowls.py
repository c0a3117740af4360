"""Two numbers to learn from losses alone: f_i(w) = (w - b_i)^T diag(1, 2) (w - b_i) / 2, directions written down."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algorithms.scalar import Engine, Leaves, World, mean_loss
from fedloom.contracts import Call, Carry, Drift, Wandered
from fedloom.drift import pool
from fedloom.engine.requests import Wander
from fedloom.params import Layout, Leaf

ORACLES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "oracles_zeroth.json").read_text())
BOWL = Layout.of([Leaf("u", (1,)), Leaf("v", (1,))])


def two(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Bowl:
    b: tuple[float, ...]

    def loss(self, leaves: Leaves, layout: Layout, carry: Carry) -> Tensor:
        u, v = leaves["u"] - self.b[0], leaves["v"] - self.b[1]
        return ((u * u + 2 * v * v) / 2).sum()


@dataclass(frozen=True)
class Bowls(World):
    b: tuple[tuple[float, ...], ...] = ((1.0, 0.0), (0.0, 1.0))

    def row(self, client: int, number: int) -> Bowl:
        return Bowl(self.b[client])

    def layout(self, client: int) -> Layout:
        return BOWL


@dataclass
class Walker(Engine):
    """Walks along directions it is given, without a grid: amounts are float32, all else float64."""

    directions: Mapping[int, Tensor] = field(default_factory=dict)
    start: Tensor | None = None
    ends: dict[int, list[Tensor]] = field(default_factory=dict)
    """Where each client's walks ended."""
    walks: list[tuple[int, Wander]] = field(default_factory=list)

    def at(self, drift: Drift) -> Tensor:
        """The model a drift leads to."""
        assert isinstance(drift.seeds, int) and self.start is not None
        amounts = drift.amounts.double()
        moves = (a * self.directions[pool(drift.seeds, k)] for k, a in enumerate(amounts) if a)
        return sum(moves, self.start.clone())

    def advance(self) -> list[tuple[int, Any]]:
        if not isinstance(self.calls[0].request, Wander):
            return super().advance()
        call: Call[Any] = self.calls.pop(0)
        request: Wander = call.request
        self.walks.append((call.client, request))
        return [(call.client, self.walked(call.client, request))]

    def walked(self, client: int, run: Wander) -> Wandered:
        w = self.at(run.start) if isinstance(run.start, Drift) else run.start.clone()
        slopes, losses = torch.zeros(len(run.batches), len(run.seeds[0]), dtype=torch.float64), []
        for k, (batch, lr, seeds) in enumerate(zip(run.batches, run.lrs, run.seeds, strict=True)):

            def loss(x: Tensor, batch: Sequence[Any] = batch) -> float:
                return float(mean_loss(batch, run.layout.views(x), run.layout, ()))

            there, width = w.clone(), run.epsilon * (1 if run.forward else 2)
            for j, seed in enumerate(seeds):
                z = self.directions[seed]
                low = loss(there) if run.forward else loss(there - run.epsilon * z)
                slopes[k, j] = (loss(there + run.epsilon * z) - low) / width
                if run.step:
                    w = w - lr / len(seeds) * slopes[k, j] * z
            w = w - lr * run.weight_decay * there
            losses.append(loss(there))
        self.ends.setdefault(client, []).append(w)
        steps = len(losses)
        return Wandered(
            w if run.keep else None, tuple(map(tuple, run.seeds)), slopes, two(list(run.lrs)), steps,
            math.fsum(run.lrs), sum(map(len, run.batches)), steps, math.fsum(losses) / steps,
        )  # fmt: skip
