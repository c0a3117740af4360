"""Federations small enough for paper, and an engine that does everything a training may ask for, by autograd.

A world says what each client holds. A row knows its own loss, so numbers, pairs of numbers and LoRA factors share one
engine; a batch's loss is the mean of its rows'. Scalars: f_i(w) = h_i (w - m_i)^2 / 2 with n_i equal rows and full
batches, so a batch of a client has the client's own gradient, and the pooled rows have the example-weighted one. The
pages, hub, site and store are the real ones.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.aggregate.rules import Gather
from fedloom.contracts import HOME, Call, Carry, Client, Message, Model, Profile, Trained
from fedloom.engine import optimizers
from fedloom.engine.config import LocalConfig, OptimizerConfig
from fedloom.engine.requests import Descend, Logits, Probe
from fedloom.params import Layout, Leaf
from fedloom.runtime.client import LocalPlan
from fedloom.runtime.federation import Hub
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.store import InMemory, Store

ORACLES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "oracles.json").read_text())
LAYOUT = Layout.of([Leaf("w", (1,))])
PAIR = Layout.of([Leaf("u", (1,)), Leaf("v", (1,))])
SGD = OptimizerConfig(name="sgd")

Leaves = Mapping[str, Tensor]


# -- rows


@dataclass(frozen=True)
class Row:
    """h (w - m)^2 / 2."""

    h: float
    m: float

    def loss(self, leaves: Leaves, layout: Layout, carry: Carry) -> Tensor:
        return self.h * (leaves["w"] - self.m).square().sum() / 2


@dataclass(frozen=True)
class Target:
    """(u v - t)^2 / 2."""

    t: float

    def loss(self, leaves: Leaves, layout: Layout, carry: Carry) -> Tensor:
        return (leaves["u"] * leaves["v"] - self.t).square().sum() / 2


@dataclass(frozen=True)
class Rows:
    rows: tuple[Any, ...]

    def get(self, split: str) -> Sequence[Any]:
        return self.rows


def mean_loss(batch: Sequence[Any], leaves: Leaves, layout: Layout, carry: Carry) -> Tensor:
    """Equal rows are looked at once."""
    counted = Counter(batch).items()
    return torch.stack([count * row.loss(leaves, layout, carry) for row, count in counted]).sum() / len(batch)


# -- engine


@dataclass
class Engine:
    """One client at a time; or, where given, a difference instead of a training."""

    deltas: Callable[[int], Any] | None = None
    calls: list[Call[Any]] = field(default_factory=list)
    served: list[tuple[int, Descend, Trained]] = field(default_factory=list)
    """Every training: its client, what was asked for, what came out."""

    def room(self) -> int:
        return 1 - len(self.calls)

    def admit(self, call: Call[Any]) -> None:
        self.calls.append(call)

    def abandon(self) -> None:
        self.calls = []

    def advance(self) -> list[tuple[int, Any]]:
        call = self.calls.pop(0)
        match call.request:
            case Descend():
                made = self.trained(call.client, call.request)
                self.served.append((call.client, call.request, made))
                return [(call.client, made)]
            case Probe(points=points, layout=layout, examples=batch, carry=carry):
                return [(call.client, [float(mean_loss(batch, layout.views(x), layout, carry)) for x in points])]
            case Logits(x=x, layout=layout, examples=batch, carry=carry):
                rows = [row.loss(layout.views(x), layout, carry) for row in batch]
                return [(call.client, torch.stack(rows))]
        raise AssertionError(call.request)

    def trained(self, client: int, run: Descend) -> Trained:
        made = descend(run)
        if self.deltas is None:
            return made
        y = run.start + torch.as_tensor(self.deltas(client), dtype=run.start.dtype)
        return Trained(y, made.steps, made.lr_sum, made.examples, made.tokens, made.loss, 0, made.gradient, made.inner)


def descend(run: Descend) -> Trained:
    """All steps: raw gradient, `correct`, clipping, torch's optimiser on the leaves that move."""
    layout, names = run.layout, run.layout.names if run.train is None else tuple(run.train)
    assert names, "a training in which nothing moves"
    assert set(names) <= set(layout.names), f"{names} are not all leaves of {layout.names}"
    assert all(vector.shape == run.start.shape for vector in run.with_), "with_ holds vectors like the weights"
    leaves = {name: nn.Parameter(view.detach().clone()) for name, view in layout.views(run.start).items()}
    optimizer = optimizers.make(run.optimizer, [leaves[name] for name in names], run.lrs[0] if run.lrs else 0.0)
    optimizers.recall(optimizer, run.inner or {})
    moves = layout.gather({n: torch.full_like(t, n in names).detach() for n, t in leaves.items()}, torch.float64) > 0
    total, losses, examples = torch.zeros_like(run.start), [], 0
    for batch, lr in zip(run.batches, run.lrs, strict=True):
        loss = mean_loss(batch, leaves, layout, run.carry)
        if run.penalty is not None:
            loss = loss + run.penalty(leaves, *run.with_)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        raw = _flat([torch.zeros_like(t) if g is None else g for t, g in zip(leaves.values(), found, strict=True)])
        raw = raw * moves
        total += raw
        g = _corrected(run, raw, _flat(list(leaves.values()))) * moves
        if run.max_grad_norm is not None and float(g.norm()) > run.max_grad_norm:
            g = g * (run.max_grad_norm / float(g.norm()))
        for name, part in layout.views(g).items():
            leaves[name].grad = part.clone() if name in names else None
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.item())
        examples += len(batch)
    return Trained(
        _flat(list(leaves.values())), len(losses), sum(run.lrs), examples, examples,
        sum(losses) / len(losses) if losses else None,
        gradient=total / max(1, len(losses)) if run.gradient else None,
        inner=None if run.inner is None else optimizers.memory(optimizer),
    )  # fmt: skip


def _corrected(run: Descend, g: Tensor, w: Tensor) -> Tensor:
    """A correction is element by element: on each number alone it must give what it gives on all."""
    if run.correct is None:
        return g
    whole = run.correct(g.clone(), w.clone(), *run.with_)
    alone = [run.correct(g[i : i + 1], w[i : i + 1], *(v[i : i + 1] for v in run.with_)) for i in range(len(g))]
    assert torch.allclose(whole, torch.cat(alone), rtol=1e-6, atol=1e-12), "a correction that mixes numbers"
    return whole


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


# -- federation


class Scripted(Hub):
    """A hub whose cohorts are written down, one for each round; whoever is not wanted now is left out."""

    script: Sequence[Sequence[int]] = ()
    engine: Engine
    store: Store

    def cohort(self, count: int | None = None, without: Collection[int] = ()) -> list[int]:
        chosen = sorted([i for i in self.script[self.round] if i not in without][:count])
        self.last_cohort = tuple(chosen)
        return chosen

    def memory(self, client: int) -> dict[str, Any]:
        """What a client keeps for itself."""
        return dict(self.store.open(client).memory.entries)


@dataclass(frozen=True)
class Own(Message):
    x: Tensor
    carry: Carry


class Personal:
    """Asks every client what it would use itself."""

    def __init__(self, page: Any) -> None:
        self.page = page

    async def own(self, down: Model, client: Client) -> Own:
        model = await self.page.personal(down, client)
        return Own(model.x, model.carry)


@dataclass(frozen=True)
class World:
    """What does not depend on what is learnt."""

    n: tuple[int, ...] = (30, 10)
    """Rows of each client."""
    lr: float = 0.1
    steps: int | tuple[int, ...] = 2
    """Local steps: of all, or of each."""
    weighting: Any = "examples"
    cohorts: Sequence[Sequence[int]] = ((0, 1),) * 400
    optimizer: OptimizerConfig = SGD
    speeds: tuple[float, ...] = ()
    max_grad_norm: float | None = None
    batch: int | None = None
    """Rows of a batch; default: all there are."""

    def row(self, client: int, number: int) -> Any:
        """One of a client's rows."""
        raise NotImplementedError

    def layout(self, client: int) -> Layout:
        return LAYOUT

    def rows(self, client: int) -> Rows:
        if client == HOME:
            return Rows(sum((self.rows(i).rows for i in range(len(self.n))), ()))
        return Rows(tuple(self.row(client, number) for number in range(self.n[client])))

    def plan(self, client: int) -> LocalPlan:
        steps = self.steps if isinstance(self.steps, int) else self.steps[client]
        local = LocalConfig(
            steps=steps, batch_size=self.batch or sum(self.n), lr=self.lr, optimizer=self.optimizer,
            max_grad_norm=self.max_grad_norm,
        )  # fmt: skip
        return LocalPlan(local, rounds=10, weighting=self.weighting)

    def profile(self, client: int) -> Profile:
        speed = self.speeds[client] if self.speeds and client != HOME else 1.0
        return Profile(client, f"client-{client}", self.layout(client), speed)

    def hub(self, page: Any, engine: Engine | None = None) -> Scripted:
        engine, store, tasks = engine or Engine(), Store(InMemory()), Tasks(page, Personal(page))
        site = Site(
            tasks=tasks, engine=engine, store=store, profile=self.profile, data=self.rows, plan=self.plan, root=0
        )
        link = InProcess(site)
        hub = Scripted(
            link=link, home=link, tasks=tasks, clients=range(len(self.n)), profile=self.profile, cohort=len(self.n),
            root=0,
        )  # fmt: skip
        hub.script, hub.engine, hub.store = self.cohorts, engine, store
        return hub


@dataclass(frozen=True)
class Scalars(World):
    """The federation of the oracle sheet: one number to learn."""

    h: tuple[float, ...] = (1.0, 2.0)
    m: tuple[float, ...] = (1.0, -1.0)
    spread: float = 0.0
    """Each row's minimum lies this much beyond the one before, so that batches differ."""

    def row(self, client: int, number: int) -> Row:
        return Row(self.h[client], self.m[client] + self.spread * number)


@dataclass(frozen=True)
class Pairs(World):
    """Two numbers to learn, u and v: f_i = (u v - t_i)^2 / 2."""

    t: tuple[float, ...] = (1.0, -1.0)

    def row(self, client: int, number: int) -> Target:
        return Target(self.t[client])

    def layout(self, client: int) -> Layout:
        return PAIR


def world(inputs: Mapping[str, Any], **changes: Any) -> Scalars:
    """The federation an oracle's inputs describe."""
    known: dict[str, Any] = {"h": tuple(inputs["h"]), "m": tuple(inputs["m"]), "lr": inputs["lr"]}
    known["n"] = tuple(int(n) for n in inputs.get("n", [1] * len(inputs["h"])))
    if "local_steps" in inputs:
        known["steps"] = inputs["local_steps"]
    if "participation" in inputs:
        known["cohorts"] = inputs["participation"]
    return Scalars(**{**known, **changes})


# -- running


def advance(page: Any, hub: Scripted, rounds: int, start: Tensor) -> list[Any]:
    """The state after each round."""
    state, seen = page.init(start), []
    for _ in range(rounds):
        state = page.round(state, hub)
        hub.round += 1
        seen.append(state)
    return seen


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def trajectory(page: Any, hub: Scripted, rounds: int, start: float = 0.0) -> tuple[list[float], Any]:
    """The shared number after each round, and the last state."""
    states = advance(page, hub, rounds, number(start))
    return [float(page.model(state).x) for state in states], states[-1]


def owns(hub: Scripted, down: Model, clients: Sequence[int] = (0, 1)) -> list[Model]:
    """What each client would use when the shared model is `down`."""
    got = hub.survey(hub.tasks.get("own"), lambda _: down, clients, Gather())
    return [Model(x, carry) for (x, _), (carry, _) in zip(got.value.x, got.value.carry, strict=True)]
