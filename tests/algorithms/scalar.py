"""Two clients and one number to learn, small enough for paper: f_i(w) = h_i (w - m_i)^2 / 2, n_i rows, full gradients.

A row is the pair (h, m), so a batch of all rows of a client has the client's own gradient, and the pooled rows have
the example-weighted one. The pages, hub, site and store are the real ones; only the engine is this small.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom.contracts import HOME, Call, Client, Message, Model, Profile, Trained
from fedloom.engine.config import LocalConfig, OptimizerConfig
from fedloom.engine.requests import Descend
from fedloom.params import Layout, Leaf
from fedloom.runtime.client import LocalPlan
from fedloom.runtime.federation import Hub
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.store import InMemory, Store

ORACLES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "oracles.json").read_text())
LAYOUT = Layout.of([Leaf("w", (1,))])


@dataclass(frozen=True)
class Row:
    h: float
    m: float


@dataclass(frozen=True)
class Rows:
    rows: tuple[Row, ...]

    def get(self, split: str) -> Sequence[Row]:
        return self.rows


@dataclass
class Engine:
    """Plain gradient descent, one client at a time; or, where given, a difference instead of a training."""

    deltas: Callable[[int], float] | None = None
    calls: list[Call[Any]] = field(default_factory=list)

    def room(self) -> int:
        return 1 - len(self.calls)

    def admit(self, call: Call[Any]) -> None:
        self.calls.append(call)

    def abandon(self) -> None:
        self.calls = []

    def advance(self) -> list[tuple[int, Any]]:
        call = self.calls.pop()
        run: Descend = call.request
        w, examples = run.start.clone(), 0
        for batch, lr in zip(run.batches, run.lrs, strict=True):
            g = sum(row.h * (w - row.m) for row in batch) / len(batch)
            w = w - lr * g
            examples += len(batch)
        if self.deltas is not None:
            w = run.start + self.deltas(call.client)
        return [(call.client, Trained(w, len(run.lrs), sum(run.lrs), examples, examples, 0.0))]


class Scripted(Hub):
    """A hub whose cohorts are written down, one for each round."""

    script: Sequence[Sequence[int]] = ()

    def draw(self) -> list[int]:
        return list(self.script[self.round])


@dataclass(frozen=True)
class Own(Message):
    x: Tensor


class Personal:
    """Asks every client what it would use itself."""

    def __init__(self, page: Any) -> None:
        self.page = page

    async def own(self, down: Model, client: Client) -> Own:
        return Own(await self.page.personal(down, client))


@dataclass(frozen=True)
class Scalars:
    """The federation of the oracle sheet."""

    h: tuple[float, ...] = (1.0, 2.0)
    m: tuple[float, ...] = (1.0, -1.0)
    n: tuple[int, ...] = (30, 10)
    lr: float = 0.1
    steps: int = 2
    weighting: Any = "examples"
    cohorts: Sequence[Sequence[int]] = ((0, 1),) * 400

    def rows(self, client: int) -> Rows:
        if client == HOME:
            return Rows(sum((self.rows(i).rows for i in range(len(self.n))), ()))
        return Rows((Row(self.h[client], self.m[client]),) * self.n[client])

    def hub(self, page: Any, engine: Engine | None = None) -> Scripted:
        plan = LocalPlan(
            LocalConfig(steps=self.steps, batch_size=sum(self.n), lr=self.lr, optimizer=OptimizerConfig(name="sgd")),
            rounds=10,
            weighting=self.weighting,
        )

        def profile(client: int) -> Profile:
            return Profile(client, f"client-{client}", LAYOUT)

        tasks = Tasks(page, Personal(page))
        site = Site(
            tasks=tasks, engine=engine or Engine(), store=Store(InMemory()), profile=profile, data=self.rows,
            plan=lambda client: plan, root=0,
        )  # fmt: skip
        link = InProcess(site)
        hub = Scripted(
            link=link, home=link, tasks=tasks, clients=range(len(self.n)), profile=profile, cohort=len(self.n), root=0
        )
        hub.script = self.cohorts
        return hub


def trajectory(page: Any, hub: Hub, rounds: int, start: float = 0.0) -> tuple[list[float], Any]:
    """The shared number after each round, and the last state."""
    state, seen = page.init(torch.tensor([start], dtype=torch.float64)), []
    for _ in range(rounds):
        state = page.round(state, hub)
        hub.round += 1
        seen.append(float(page.model(state)))
    return seen, state
