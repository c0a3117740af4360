"""Toy pages: hard cases the seam must hold without a special case. Real pages are in `fedloom.algorithms`."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fedloom import rng
from fedloom.aggregate.rules import Gather, Gathered, Max, Mean, Total
from fedloom.contracts import Client, Federation, Message, Model, Needs, Rule, Weighted
from fedloom.params import Layout
from seam.quadratic import SIZE


@dataclass(frozen=True)
class Point(Message):
    x: Tensor


@dataclass(frozen=True)
class Update(Weighted):
    dy: Tensor


@dataclass(frozen=True)
class State:
    x: Tensor


class Shared:
    """What most toy pages share: one vector, used by everybody."""

    needs = Needs()

    def init(self, start: Tensor) -> State:
        return State(start)

    def model(self, s: Any) -> Tensor | None:
        return s.x

    async def personal(self, down: Model, client: Client) -> Tensor:
        return down.x


# -- SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II)


@dataclass(frozen=True)
class Control(Message):
    x: Tensor
    c: Tensor


@dataclass(frozen=True)
class Delta(Message):
    dy: Tensor
    dc: Tensor


@dataclass(frozen=True)
class ControlState:
    x: Tensor
    c: Tensor


class Scaffold(Shared):
    needs = Needs(sgd_only=True)

    def init(self, start: Tensor) -> ControlState:
        return ControlState(start, torch.zeros_like(start))

    def round(self, s: ControlState, fed: Federation) -> ControlState:
        got = fed.collect(self.local, lambda _: Control(s.x, s.c), fed.cohort(), Mean(uniform=True))
        share = len(got.clients) / len(fed.clients)
        return ControlState(s.x + got.value.dy, s.c + got.value.dc * share)

    async def local(self, down: Control, client: Client) -> Delta:
        c_i = client.state.get("c", like=down.x)
        run = await client.descend(down.x, correct=lambda g, y, c_i, c: g - c_i + c, with_=(c_i, down.c))
        new = c_i - down.c + (down.x - run.y) / run.lr_sum
        client.state["c"] = new
        return Delta(run.y - down.x, new - c_i)


# -- Ditto: two trainings a round, a private model


class Ditto(Shared):
    def round(self, s: State, fed: Federation) -> State:
        got = fed.collect(self.local, lambda _: Point(s.x), fed.cohort(), Mean())
        return State(s.x + got.value.dy)

    async def local(self, down: Point, client: Client) -> Update:
        run = await client.descend(down.x)
        v = client.state.get("v")
        own = await client.descend(
            down.x if v is None else v, correct=lambda g, y, x: g + 0.5 * (y - x), with_=(down.x,)
        )
        client.state["v"] = own.y
        return Update(dy=run.y - down.x, weight=client.weight(run))

    async def personal(self, down: Model, client: Client) -> Tensor:
        v = client.state.get("v")
        return down.x if v is None else v


# -- Krum: a rule that looks at single replies


@dataclass(frozen=True)
class Krum(Gather):
    f: int = 1

    def finish(self, acc: Gathered) -> Any:
        v = torch.stack([value for value, _ in acc.values])
        d = torch.cdist(v, v).square().sort(dim=1).values[:, 1 : len(v) - self.f - 1].sum(dim=1)
        return v[int(d.argmin())]


class KrumAverage(Shared):
    needs = Needs(single_replies=True)

    def round(self, s: State, fed: Federation) -> State:
        got = fed.collect(self.local, lambda _: Point(s.x), list(fed.clients), Krum())
        return State(s.x + got.value.dy)

    async def local(self, down: Point, client: Client) -> Update:
        run = await client.descend(down.x)
        return Update(dy=run.y - down.x, weight=client.weight(run))


# -- a learning rate that needs further collects (FedMeZO's model_diff)


@dataclass(frozen=True)
class Spread(Message):
    a: float


@dataclass(frozen=True)
class Number(Message):
    a: float


@dataclass(frozen=True)
class RateDown(Message):
    x: Tensor
    mean: float
    worst: float


@dataclass(frozen=True)
class RateState:
    x: Tensor
    mean: float
    worst: float


class ModelDiffRate(Shared):
    def init(self, start: Tensor) -> RateState:
        return RateState(start, 0.0, 0.0)

    def round(self, s: RateState, fed: Federation) -> RateState:
        to = fed.cohort()
        moved = fed.collect(self.local, lambda _: RateDown(s.x, s.mean, s.worst), to, Mean())
        mean = fed.collect(self.spread, lambda _: Point(moved.value.dy), moved.clients, Mean(uniform=True))
        worst = fed.collect(self.worst, lambda _: Number(mean.value.a), mean.clients, Max())
        return RateState(s.x + moved.value.dy, mean.value.a, worst.value.a)

    async def local(self, down: RateDown, client: Client) -> Update:
        a = client.state.get("a")
        lr = 0.05 if a is None or down.worst == 0 else 0.05 + 0.01 * (a - down.mean) / down.worst
        run = await client.descend(down.x, lr=lr)
        client.state["d"] = run.y - down.x
        return Update(dy=run.y - down.x, weight=client.weight(run))

    async def spread(self, down: Point, client: Client) -> Spread:
        a = float((client.state.get("d", like=down.x) - down.x).norm())
        client.state["a"] = a
        return Spread(a)

    async def worst(self, down: Number, client: Client) -> Spread:
        return Spread(abs(client.state.get("a") - down.a))


# -- seeds and scalars: the server holds accumulators only (FedKSeed)


@dataclass(frozen=True)
class Accumulators(Message):
    a: Tensor


@dataclass(frozen=True)
class AccumulatorState:
    a: Tensor


class SeedsAndScalars(Shared):
    pool, eps, lr = 16, 1e-3, 0.02

    def __init__(self, w0: Tensor) -> None:
        self.w0 = w0

    def init(self, start: Tensor) -> AccumulatorState:
        return AccumulatorState(torch.zeros(self.pool, dtype=torch.float64))

    def model(self, s: AccumulatorState) -> Tensor:
        return self.rebuild(s.a)

    def direction(self, k: int) -> Tensor:
        return rng.normal(rng.key(9, "pool", k), len(self.w0))

    def rebuild(self, a: Tensor) -> Tensor:
        return self.w0 - self.lr * sum(a[k] * self.direction(k) for k in range(self.pool))

    def round(self, s: AccumulatorState, fed: Federation) -> AccumulatorState:
        got = fed.collect(self.local, lambda _: Accumulators(s.a), fed.cohort(), Mean(uniform=True))
        return AccumulatorState(s.a + got.value.a)

    async def local(self, down: Accumulators, client: Client) -> Accumulators:
        w, a = self.rebuild(down.a), torch.zeros(self.pool, dtype=torch.float64)
        seeds = rng.numbers(client.key("seeds"))
        for k in seeds.integers(self.pool, size=6).tolist():
            z = self.direction(k)
            up, low = await client.probe([w + self.eps * z, w - self.eps * z])
            g = (up - low) / (2 * self.eps)
            w = w - self.lr * g * z
            a[k] += g
        return Accumulators(a)


# -- logits on public rows, no shared model (FedMD)


@dataclass(frozen=True)
class Consensus(Message):
    y: Tensor


@dataclass(frozen=True)
class ConsensusState:
    y: Tensor


class LogitsOnly(Shared):
    def init(self, start: Tensor) -> ConsensusState:
        return ConsensusState(torch.zeros(6, dtype=torch.float64))

    def model(self, s: ConsensusState) -> None:
        return None

    def round(self, s: ConsensusState, fed: Federation) -> ConsensusState:
        got = fed.collect(self.local, lambda _: Consensus(s.y), fed.cohort(), Mean(uniform=True))
        return ConsensusState(got.value.y)

    async def local(self, down: Consensus, client: Client) -> Consensus:
        w = client.state.get("w")
        run = await client.descend(torch.zeros(SIZE, dtype=torch.float64) if w is None else w)
        client.state["w"] = run.y
        return Consensus((await client.logits(run.y))[:6])


# -- asynchronous rounds (FedBuff)


@dataclass(frozen=True)
class Stamped(Message):
    x: Tensor
    t: int


@dataclass(frozen=True)
class StampedUpdate(Message):
    dy: Tensor
    t: int


@dataclass(frozen=True)
class StampedState:
    x: Tensor
    t: int


class FedBuff(Shared):
    buffer, at_work = 2, 4

    def init(self, start: Tensor) -> StampedState:
        return StampedState(start, 0)

    def round(self, s: StampedState, fed: Federation) -> StampedState:
        idle = [i for i in fed.clients if i not in fed.busy()]
        fed.send(self.local, lambda _: Stamped(s.x, s.t), idle[: self.at_work - len(fed.busy())])
        got = fed.receive(
            self.buffer, {"dy": Mean(over=self.buffer), "t": Max()}, weigh=lambda up: (1 + s.t - up.t) ** -0.5
        )
        return StampedState(s.x + 0.7 * got.value.dy, s.t + 1)

    async def local(self, down: Stamped, client: Client) -> StampedUpdate:
        run = await client.descend(down.x)
        return StampedUpdate(run.y - down.x, down.t)


# -- mixed ranks in product space: a space for FedAvg's own page (FlexLoRA)


@dataclass
class _Stack:
    b: list[Tensor] = field(default_factory=list)
    a: list[Tensor] = field(default_factory=list)
    weight: float = 0.0


@dataclass(frozen=True)
class StackRule:
    """Σ w_i B_i A_i / Σ w_i as stacked factors."""

    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "all"

    def start(self) -> _Stack:
        return _Stack()

    def add(self, acc: _Stack, value: tuple[Tensor, ...], weight: float | None) -> _Stack:
        assert weight is not None
        return _Stack([*acc.b, weight * value[0]], [*acc.a, value[1]], acc.weight + weight)

    def merge(self, left: _Stack, right: _Stack) -> _Stack:
        return _Stack(left.b + right.b, left.a + right.a, left.weight + right.weight)

    def finish(self, acc: _Stack) -> tuple[Tensor, ...]:
        return torch.cat(acc.b, dim=1) / acc.weight, torch.cat(acc.a, dim=0)


@dataclass(frozen=True)
class Products:
    """The product B A is averaged; a client of rank r starts from its best rank-r factors."""

    full: Layout
    rule: Rule = field(default_factory=StackRule)

    def lower(self, shared: Tensor, layout: Layout) -> Tensor:
        views = self.full.views(shared)
        return self._factors(views["w.B"], views["w.A"], layout)

    def lift(self, y: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        views = layout.views(y)
        return views["w.B"], views["w.A"]

    def close(self, shared: Tensor, mean: tuple[Tensor, ...]) -> Tensor:
        return self._factors(mean[0], mean[1], self.full)

    def _factors(self, b: Tensor, a: Tensor, layout: Layout) -> Tensor:
        rank = layout.leaves[0].shape[0]
        qb, rb = torch.linalg.qr(b)
        qa, ra = torch.linalg.qr(a.T)
        u, s, vh = torch.linalg.svd(rb @ ra.T)
        root = s[:rank].sqrt()
        left, right = (qb @ u)[:, :rank] * root, root[:, None] * (vh @ qa.T)[:rank]
        pad = rank - left.shape[1]
        left, right = torch.nn.functional.pad(left, (0, pad)), torch.nn.functional.pad(right, (0, 0, 0, pad))
        return layout.gather({"w.B": left, "w.A": right}, dtype=torch.float64)


# -- Poisson cohorts, which may be empty, and noise that is added all the same


class PoissonNoise(Shared):
    q, noise = 0.25, 0.01

    def cohort(self, fed: Federation) -> list[int]:
        u = rng.uniform(rng.key(77, "secret cohort", fed.round), len(fed.clients))
        return [i for i in fed.clients if u[i] < self.q]

    def round(self, s: State, fed: Federation) -> State:
        expected = self.q * len(fed.clients)
        rule = Mean(uniform=True, over=expected)
        got = fed.collect(self.local, lambda _: Point(s.x), self.cohort(fed), rule)
        z = rng.normal(rng.key(77, "secret noise", fed.round), len(s.x))
        mean = got.value.x if got.clients else torch.zeros_like(s.x)
        return State(s.x + mean + self.noise * z)

    async def local(self, down: Point, client: Client) -> Point:
        run = await client.descend(down.x)
        d = run.y - down.x
        return Point(d * min(1.0, 1.0 / float(d.norm())))


# -- pairwise masks over an interactive stage: the server sees sums only (Bonawitz et al. 2017, without key exchange)


@dataclass(frozen=True)
class Hello(Message):
    id: int


@dataclass(frozen=True)
class Premultiplied:
    """A weighted mean of values that already carry their weight."""

    inner: Rule
    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Total:
        return Total()

    def add(self, acc: Total, value: Any, weight: float | None) -> Total:
        acc.add(value, 1.0)
        acc.weight += (1.0 if weight is None else weight) - 1.0
        return acc

    def merge(self, left: Total, right: Total) -> Total:
        return left.merged(right)

    def finish(self, acc: Total) -> Any:
        return self.inner.finish(acc)


class PairwiseMasks:
    """Each pair of clients adds and subtracts one random vector, so that only the sum is meaningful."""

    hides = True

    async def outgoing(self, up: Update, client: Client) -> Update:
        peers = await client.exchange("hello", Hello(client.id))
        dy, weight = up.dy * up.weight, up.weight
        for peer in peers:
            if peer != client.id:
                pair = rng.key(4, "pair", min(peer, client.id), max(peer, client.id))
                mask = rng.normal(pair, len(dy) + 1)
                sign = 1.0 if client.id < peer else -1.0
                dy, weight = dy + sign * mask[1:], weight + sign * float(mask[0])
        return Update(dy=dy, weight=weight)

    def incoming(self, up: Update) -> Update:
        return up

    def combine(self, rule: Rule) -> Rule:
        if not rule.linear:
            raise ValueError("only linear rules can be computed on masked replies")
        return Premultiplied(rule)


class DeltaAverage(Shared):
    """FedAvg on differences; with `PairwiseMasks` as a stage the server sees sums only."""

    def round(self, s: State, fed: Federation) -> State:
        got = fed.collect(self.local, lambda _: Point(s.x), fed.cohort(), Mean())
        return State(s.x + got.value.dy)

    async def local(self, down: Point, client: Client) -> Update:
        run = await client.descend(down.x)
        return Update(dy=run.y - down.x, weight=client.weight(run))
