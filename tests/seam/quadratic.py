"""A toy world for the seam: clients with least-squares problems, and an engine that advances many of them together.

A client's rows are (h, b) with loss (h·w - b)² / 2. Everything is float64. A client's vector may be the weights
themselves or LoRA factors of a square matrix with a bias (then w = vec(scale B A + carry) + bias is what meets the
rows). "Dropout" zeroes entries of the gradient with numbers keyed by (seed, step), as an adapter's dropout does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedloom import masks, noise, rng
from fedloom.contracts import (
    HOME,
    Call,
    ClientFailed,
    ClientId,
    Distilled,
    Drift,
    Fitted,
    Model,
    Profile,
    Trained,
    Wandered,
)
from fedloom.drift import Footing, moved, rounded
from fedloom.engine.config import LocalConfig, OptimizerConfig
from fedloom.engine.lessons import Align, Distil
from fedloom.engine.requests import Descend, Evaluate, Logits, Probe, Stand, Wander
from fedloom.events import Event
from fedloom.params import Layout, Leaf
from fedloom.runtime.client import LocalPlan
from fedloom.runtime.federation import Hub
from fedloom.runtime.link import Link
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.store import InMemory, OnDisk, Store

SIDE = 3
SIZE = SIDE * SIDE
PLAIN = Layout.of([Leaf("w", (SIZE,))])


class Row(NamedTuple):
    h: Tensor
    b: Tensor


def lora(rank: int, transposed: bool = False, scale: float | None = None, density: float | None = None) -> Layout:
    """One LoRA pair of a SIDE x SIDE matrix (stored the other way round, as GPT-2's Conv1D does), and a bias.

    With a density, a sparse update stands beside the pair.
    """
    common: Any = {"module": "w", "scale": 2.0 / rank if scale is None else scale, "transposed": transposed}
    sparse = [] if density is None else [Leaf("w.S", (len(masks.entries(0, "w", SIDE, SIDE, density)),), module="w")]
    return Layout.of(
        [
            Leaf("w.A", (rank, SIDE), factor="A", **common),
            Leaf("bias", (1,)),
            Leaf("w.B", (SIDE, rank), factor="B", **common),
            *sparse,
        ]
    )


def weights(x: Tensor, layout: Layout, carry: Sequence[Tensor] = ()) -> Tensor:
    """The numbers that meet the rows, [SIZE]; differentiable."""
    if layout == PLAIN:
        return x
    views = layout.views(x)
    pair = next(leaf for leaf in layout.leaves if leaf.factor == "B")
    w = pair.scale * views["w.B"] @ views["w.A"]
    if carry:
        w = w + carry[0] @ carry[1]
    if "w.S" in views:
        density = len(views["w.S"]) / SIZE
        w = w + masks.dense(views["w.S"], masks.entries(0, "w", SIDE, SIDE, density), SIDE, SIDE)
    return (w.T if pair.transposed else w).reshape(-1) + views["bias"]


@dataclass(frozen=True)
class Rows:
    """One client's rows; the same for every split."""

    rows: tuple[Row, ...]

    def get(self, split: str) -> Sequence[Row]:
        return self.rows


def rows_of(client: ClientId, clients: int, far: float = 1.0, seed: int = 3) -> Rows:
    """Client i holds 6 + 2 i rows of its own problem, with weights of size `far`; the server's worker everybody's."""
    if client == HOME:
        return Rows(sum((rows_of(i, clients, far, seed).rows for i in range(clients)), ()))
    own = rng.normal(rng.key(seed, "problem"), SIZE) + 0.3 * rng.normal(rng.key(seed, "own", client), SIZE)
    own = far * own
    h = rng.normal(rng.key(seed, "rows", client), 6 + 2 * client, SIZE)
    return Rows(tuple(Row(row, row @ own) for row in h))


@dataclass
class _Job:
    call: Call[Any]
    w: Tensor
    step: int = 0
    losses: tuple[float, ...] = ()
    examples: int = 0
    raw: Tensor | None = None
    momentum: Tensor | None = None
    footing: Footing | None = None
    slopes: tuple[tuple[float, ...], ...] = ()
    astray: bool = False


class QuadraticEngine:
    """Advances every admitted training by one step at a time; at most `slots` at once."""

    def __init__(
        self, slots: int, layouts: Any = lambda client: PLAIN, dropout: float = 0.2, origin: Tensor | None = None
    ) -> None:
        self.slots, self.layouts, self.dropout, self.origin = slots, layouts, dropout, origin
        self.jobs: list[_Job] = []
        self.together = 0  # the most clients ever advanced in one call

    def room(self) -> int:
        return self.slots - len(self.jobs)

    def admit(self, call: Call[Any]) -> None:
        assert len(self.jobs) < self.slots
        start = call.request.start if isinstance(call.request, Descend | Wander) else torch.zeros(0)
        if isinstance(start, Drift):
            assert self.origin is not None
            footing = Footing(self.origin.clone(), self.layouts(call.client))
            footing.to(start)
            self.jobs.append(_Job(call, footing.w, footing=footing))
        else:
            self.jobs.append(_Job(call, start.clone()))

    def abandon(self) -> None:
        self.jobs = []

    def advance(self) -> list[tuple[ClientId, Any]]:
        self.together = max(self.together, len(self.jobs))
        done = [(job.call.client, result) for job in self.jobs if (result := self._serve(job)) is not None]
        gone = {client for client, _ in done}
        self.jobs = [job for job in self.jobs if job.call.client not in gone]
        return done

    def _serve(self, job: _Job) -> Any:
        layout, request = self.layouts(job.call.client), job.call.request
        match request:
            case Descend():
                return self._step(job, layout, request)
            case Wander():
                return self._walk(job, layout, request)
            case Probe():
                return [float(loss(weights(p, layout, request.carry), request.examples)) for p in request.points]
            case Stand():
                return moved(self.origin, layout, request.drift)
            case Logits():
                return torch.stack([row.h @ weights(request.x, layout, request.carry) for row in request.examples])
            case Evaluate():
                x = request.x if request.drift is None else moved(self.origin, layout, request.drift)
                return float(loss(weights(x, layout, request.carry), request.examples))
            case Distil():
                return distilled(layout, request)
            case Align():
                return fitted(layout, request)
        raise AssertionError(request)

    def _step(self, job: _Job, layout: Layout, request: Descend) -> Any:
        k, batch = job.step, request.batches[job.step]
        assert request.layout == layout
        w = job.w.clone().requires_grad_()
        value = loss(weights(w, layout, request.carry), batch)
        if request.penalty is not None:
            value = value + request.penalty(layout.views(w), *request.with_)
        (g,) = torch.autograd.grad(value, w)
        keep = rng.uniform(rng.key(request.seed, "mask", k), len(g)) >= self.dropout
        g = g * keep
        if request.train is not None:
            g = layout.put(torch.zeros_like(g), request.train, layout.take(g, request.train))
        job.raw = g if job.raw is None else job.raw + g
        if request.correct is not None:
            g = request.correct(g, job.w, *request.with_)
        if request.max_grad_norm is not None:
            g = g * min(1.0, request.max_grad_norm / (float(g.norm()) + 1e-6))
        if not torch.isfinite(g).all():
            return ClientFailed(f"loss is {value.item()} at step {k}", "nonfinite")
        if request.inner is not None:  # momentum that is kept between rounds
            kept = request.inner.get("v", torch.zeros_like(g)) if job.momentum is None else job.momentum
            g = job.momentum = 0.5 * kept + g
        job.w, job.step = job.w - request.lrs[k] * g, k + 1
        job.losses += (value.item(),)
        job.examples += len(batch)
        if job.step < len(request.batches):
            return None
        mean = sum(job.losses) / job.step
        inner = None if job.momentum is None else {"v": job.momentum}
        gradient = job.raw / job.step if request.gradient else None
        lr_sum = sum(request.lrs[: job.step])
        return Trained(job.w, job.step, lr_sum, job.examples, job.examples, mean, gradient=gradient, inner=inner)

    def _walk(self, job: _Job, layout: Layout, request: Wander) -> Any:
        """One step along random directions."""
        k, batch, lr = job.step, request.batches[job.step], request.lrs[job.step]

        def value(w: Tensor) -> float:
            return float(loss(weights(w, layout, request.carry), batch))

        directions = [noise.direction(seed, layout, request.kind, job.w.dtype) for seed in request.seeds[k]]
        here, width = value(job.w), request.epsilon * (1 if request.forward else 2)
        pairs = [
            (value(job.w + request.epsilon * z), here if request.forward else value(job.w - request.epsilon * z))
            for z in directions
        ]
        job.step += 1
        slopes = [(up - low) / width for up, low in pairs]
        far = request.limit is not None and max(abs(up - low) for up, low in pairs) > request.limit
        finite = bool(torch.tensor(slopes).isfinite().all())
        if far or not finite:
            job.astray = job.astray or not finite
            job.slopes += ((float("nan"),) * len(slopes),)
        else:
            job.astray, job.slopes = False, (*job.slopes, tuple(slopes))
            job.losses += (sum(low if request.forward else (up + low) / 2 for up, low in pairs) / len(pairs),)
            job.examples += len(batch)
            if request.step:
                moves = [(s, -lr * g / len(slopes)) for s, g in zip(request.seeds[k], slopes, strict=True)]
                self._moved(job, layout, request, moves, lr)
        if job.step < len(request.batches):
            return None
        if job.astray:
            return ClientFailed(f"loss not finite at step {k}", "nonfinite")
        found, rates = torch.tensor(job.slopes, dtype=torch.float64), torch.tensor(request.lrs, dtype=torch.float64)
        taken = len(job.losses)
        return Wandered(
            job.w.clone() if request.keep else None, tuple(map(tuple, request.seeds)), found, rates, taken,
            float(rates[found[:, 0].isfinite()].sum()), job.examples, job.examples,
            sum(job.losses) / taken if taken else None, job.step - taken,
        )  # fmt: skip

    def _moved(self, job: _Job, layout: Layout, request: Wander, moves: list[tuple[int, float]], lr: float) -> None:
        """The step itself: exact along a drift."""
        if job.footing is not None:
            amounts = dict(job.footing.amounts)
            for seed, amount in moves:
                amounts[seed] = rounded(amounts.get(seed, 0.0) + amount)
            job.footing.go(amounts)
            return
        if request.weight_decay:
            for name, view in layout.views(job.w).items():
                if name in request.decayed:
                    view.mul_(1 - lr * request.weight_decay)
        for seed, amount in moves:
            job.w += amount * noise.direction(seed, layout, request.kind, job.w.dtype)


def distilled(layout: Layout, request: Distil) -> Distilled:
    """A teacher that is weights [SIZE] of its own; student and teacher are drawn to each other."""
    teacher = torch.full((SIZE,), 0.1, dtype=torch.float64) if request.teacher is None else request.teacher
    for course in request.alone:
        for batch, lr in zip(course.batches, course.lrs, strict=True):
            teacher = stepped(teacher, lambda t, batch=batch: loss(t, batch), lr)
    x, both, losses = request.x, request.together, (0.0, 0.0)
    assert both is not None
    for batch, lr in zip(both.batches, both.lrs, strict=True):
        w = weights(x, layout, request.carry)
        losses = float(loss(w, batch)), float(loss(teacher, batch))

        def student(x: Tensor, batch: Any = batch, goal: Tensor = teacher) -> Tensor:
            own = weights(x, layout, request.carry)
            return loss(own, batch) + (own - goal).square().mean() / 10

        x, teacher = (
            stepped(x, student, lr),
            stepped(teacher, lambda t, batch=batch, w=w: loss(t, batch) + (t - w).square().mean() / 10, lr),
        )
    return Distilled(x, teacher, 17, len(both.batches), 0, *losses)


def fitted(layout: Layout, request: Align) -> Fitted:
    """Some leaves learn from the public rows; the others stay."""
    x, losses = request.x, list[float]()
    for batch, lr in zip(request.course.batches, request.course.lrs, strict=True):
        w = stepped(x, lambda x, batch=batch: loss(weights(x, layout), batch), lr)
        losses.append(float(loss(weights(x, layout), batch)))
        x = layout.put(x, request.train, layout.take(w, request.train))
    return Fitted(x, len(losses), 0, sum(losses) / len(losses), request.kd_weight)


def stepped(x: Tensor, value: Callable[[Tensor], Tensor], lr: float) -> Tensor:
    """One step of gradient descent."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(value(x), x)
    return (x - lr * g).detach()


def loss(w: Tensor, batch: Sequence[Row]) -> Tensor:
    h, b = torch.stack([row.h for row in batch]), torch.stack([row.b for row in batch])
    return (h @ w - b).square().mean() / 2


@dataclass(frozen=True)
class World:
    """How a toy federation is set up; plain values, so that a second process can build the same."""

    clients: int = 5
    cohort: int = 4
    slots: int = 3
    window: int = 64
    seed: int = 0
    ranks: tuple[int, ...] = ()
    transposed: bool = False
    scale: float | None = None
    """Of all ranks; None: 2 / rank."""
    density: float | None = None
    """Of a sparse update beside the pair."""
    unequal: bool = True
    far: float = 1.0
    """Size of the weights that solve the clients' problems."""
    lr: float = 0.05
    min_replies: int = 1
    nan: int | None = None
    """A client whose rows hold NaN."""
    store: str | None = None
    """Folder of the client states; None: memory."""

    def layout(self, client: ClientId) -> Layout:
        if not self.ranks:
            return PLAIN
        rank = self.ranks[client % len(self.ranks)] if client >= 0 else max(self.ranks)
        return lora(rank, self.transposed, self.scale, self.density)

    def profile(self, client: ClientId) -> Profile:
        return Profile(client, f"client-{client}", self.layout(client), speed=1.0 / (1 + 0.7 * max(client, 0)))

    def plan(self, client: ClientId) -> LocalPlan:
        steps = 2 + client % 3 if self.unequal else 3
        return LocalPlan(
            LocalConfig(
                steps=max(steps, 1), batch_size=4, lr=self.lr, optimizer=OptimizerConfig(name="sgd"), max_grad_norm=None
            ),
            rounds=10,
        )

    def data(self, client: ClientId) -> Rows:
        rows = rows_of(client, self.clients, self.far)
        return Rows(tuple(Row(row.h * float("nan"), row.b) for row in rows.rows)) if client == self.nan else rows

    def site(self, tasks: Tasks, stages: Sequence[Any] = ()) -> Site:
        return Site(
            tasks=tasks,
            engine=QuadraticEngine(self.slots, self.layout, origin=self.start()),
            store=Store(OnDisk(Path(self.store)) if self.store else InMemory()),
            profile=self.profile,
            data=self.data,
            plan=self.plan,
            root=self.seed,
            window=self.window,
            stages=stages,
        )

    def hub(
        self,
        algorithm: Any,
        stages: Sequence[Any] = (),
        wrap: Callable[[InProcess], Link] = lambda link: link,
        events: Callable[[Event], None] = lambda event: None,
    ) -> Hub:
        """A federation in this process; `wrap` may put something between it and the clients."""
        tasks = Tasks(algorithm)
        link = wrap(InProcess(self.site(tasks, stages)))
        return Hub(
            link=link,
            home=link,
            events=events,
            tasks=tasks,
            clients=range(self.clients),
            profile=self.profile,
            cohort=self.cohort,
            root=self.seed,
            min_replies=self.min_replies,
            stages=stages,
        )

    def start(self) -> Tensor:
        """The vector everybody begins at."""
        layout = self.layout(-1)
        if not self.ranks:
            return torch.zeros(SIZE, dtype=torch.float64)
        return rng.normal(5, layout.size) * 0.5

    def total(self, model: Model) -> float:
        """Mean loss over all clients of a shared model."""
        x = model.x if model.drift is None else moved(self.start(), self.layout(-1), model.drift)
        w = weights(x, self.layout(-1), model.carry)
        return sum(float(loss(w, rows_of(i, self.clients, self.far).rows)) for i in range(self.clients)) / self.clients
