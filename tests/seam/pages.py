"""Toy pages: hard cases the seam must hold without a special case. Real pages are in `fedloom.algorithms`."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedloom import rng
from fedloom.aggregate.rules import Max, Mean, Total
from fedloom.contracts import Client, Federation, Message, Model, Needs, Rule, Weighted
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

    def model(self, s: Any) -> Model:
        return Model(s.x)

    async def personal(self, down: Model, client: Client) -> Model:
        return down


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

    def model(self, s: AccumulatorState) -> Model:
        return Model(self.rebuild(s.a))

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

    def model(self, s: ConsensusState) -> Model:
        return Model(s.y, whole=False)

    def round(self, s: ConsensusState, fed: Federation) -> ConsensusState:
        got = fed.collect(self.local, lambda _: Consensus(s.y), fed.cohort(), Mean(uniform=True))
        return ConsensusState(got.value.y)

    async def local(self, down: Consensus, client: Client) -> Consensus:
        w = client.state.get("w")
        run = await client.descend(torch.zeros(SIZE, dtype=torch.float64) if w is None else w)
        client.state["w"] = run.y
        return Consensus((await client.logits(run.y))[:6])


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

    async def outgoing(self, up: Update, client: Client, down: Point) -> Update:
        peers = await client.exchange("hello", Hello(client.id))
        dy, weight = up.dy * up.weight, up.weight
        for peer in peers:
            if peer != client.id:
                pair = rng.key(4, "pair", min(peer, client.id), max(peer, client.id))
                mask = rng.normal(pair, len(dy) + 1)
                sign = 1.0 if client.id < peer else -1.0
                dy, weight = dy + sign * mask[1:], weight + sign * float(mask[0])
        return Update(dy=dy, weight=weight)

    def incoming(self, up: Update, down: Point) -> Update:
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
