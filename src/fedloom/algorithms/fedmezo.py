"""FedMeZO. Ling et al. 2024, On the Convergence of Zeroth-Order Federated Tuning for Large Language Models,
https://arxiv.org/abs/2402.05926; the local step is MeZO's, Malladi et al. 2023, https://arxiv.org/abs/2305.17333.

Notation: x shared weights, y a client's weights after local training; z a random direction, epsilon how far a probe
goes along it; eta0 the base learning rate, C how far a client's own may lie from it.
A local step looks at two losses, g = (L(y + epsilon z) - L(y - epsilon z)) / 2 epsilon, and goes y <- y - eta (g z +
lambda y): no gradient, nothing saved for one. What comes out is averaged as in FedAvg, in any space, by any rule, with
any server optimiser. Clients may learn at rates of their own: eta_i = eta0 + C d_i / max_j |d_j|, where d_i says how
far the client's last measure lies above the mean of those of the last round. The published code knows three clients,
and divides 0 by 0 where their measures are equal; here that is the base rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch

from fedloom import rng
from fedloom.aggregate.robust import Guard
from fedloom.aggregate.rules import Gather
from fedloom.aggregate.server import ServerOptimizer, ServerSgd
from fedloom.algorithms import fedavg
from fedloom.algorithms.fedavg import FedAvg, Result, Start
from fedloom.contracts import (
    Client,
    ClientFailed,
    ClientId,
    Federation,
    Message,
    Model,
    Needs,
    Space,
    Term,
    Wandered,
    Weighted,
)
from fedloom.noise import Kind
from fedloom.params import Params

Rate: TypeAlias = Literal["frozen", "random", "round_wise", "five_round", "model_diff"]
WINDOW = 5
"""Rounds whose losses `five_round` looks at."""
MOST = 1e6
"""Nats of a mean loss, or a distance of two models, beyond belief."""


@dataclass(frozen=True)
class Spread(Message):
    """How the measures of one round's clients lie."""

    mean: float
    worst: float
    """Largest distance from the mean; 0: all are equal."""


@dataclass(frozen=True)
class Walk(Message):
    """Downlink: where to begin, and what a client compares its own measure with."""

    start: Start
    spread: Spread | None
    """None: nothing to compare with yet."""


@dataclass(frozen=True)
class Measured(Weighted):
    """Uplink of the strategies that compare losses."""

    y: Term
    measure: float | None
    """None: it has not seen enough rounds."""


@dataclass(frozen=True)
class Moved(Message):
    """Downlink at the end of a round: the new shared weights, in the client's own layout."""

    x: Params


@dataclass(frozen=True)
class Deviation(Message):
    """Uplink: how far the client's result lies from them."""

    measure: float


@dataclass(frozen=True)
class State:
    """FedAvg's, and how the measures of the last round lay."""

    shared: fedavg.State
    spread: Spread | None


@dataclass(frozen=True)
class FedMezo:
    """FedAvg whose clients learn from losses alone."""

    space: Space
    server: ServerOptimizer = ServerSgd()
    guard: Guard | None = None
    epsilon: float = 1e-3
    directions: int = 1
    weight_decay: float = 0.0
    limit: float | None = None
    """A step whose two losses differ by more is left out."""
    noise: Kind = "gaussian"
    rate: Rate = "frozen"
    """frozen: eta0. random: drawn anew for each client and round. round_wise, five_round: a client whose loss (mean of
    its last five) was above the others' goes faster. model_diff: one whose model ended further from the mean does."""
    spread: float = 5e-6
    """C."""

    @property
    def needs(self) -> Needs:
        """A guard, and whoever compares clients, looks at single replies."""
        return Needs(single_replies=self.guard is not None or self.rate not in ("frozen", "random"))

    @cached_property
    def fedavg(self) -> FedAvg:
        """What is not about local steps."""
        return FedAvg(self.space, self.server, self.guard)

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(self.fedavg.init(start), None)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""

        def walk(start: Start) -> Walk:
            return Walk(start, s.spread)

        if self.rate in ("round_wise", "five_round"):
            shared, got = self.fedavg.average(s.shared, fed, self.measured, walk, beyond_belief, measure=Gather())
            return State(shared, spread([value for value, _ in got.value.measure if value is not None]))
        shared, got = self.fedavg.average(s.shared, fed, self.local, walk)
        if self.rate != "model_diff":
            return State(shared, None)
        # where the new weights are the mean, y - x' is the client's way less the mean way: nobody holds all models
        told = {
            layout: Moved(self.space.lower(shared.x, layout)) for layout in {fed.profile(i).layout for i in got.clients}
        }
        far = fed.collect(self.deviate, lambda i: told[fed.profile(i).layout], got.clients, Gather(), beyond_belief)
        return State(shared, spread([value for value, _ in far.value.measure]))

    def model(self, s: State) -> Model:
        """The shared weights."""
        return self.fedavg.model(s.shared)

    async def local(self, down: Walk, client: Client) -> Result:
        """One client: wander from x, send where it came out."""
        run, y = await self.wander(down, client)
        if self.rate == "model_diff":
            client.state["y"] = y
        return Result(y=self._lifted(y, client), weight=client.weight(run))

    async def measured(self, down: Walk, client: Client) -> Measured:
        """The same, and tell the loss."""
        run, y = await self.wander(down, client)
        measure = run.loss
        if self.rate == "five_round" and run.loss is not None:
            losses = client.state.get("losses")
            known = run_of(() if losses is None else losses.tolist(), run.loss)
            client.state["losses"] = torch.tensor(known, dtype=torch.float64)
            measure = math.fsum(known) / WINDOW if len(known) == WINDOW else None
        if measure is not None:
            client.state["measure"] = measure
        return Measured(y=self._lifted(y, client), measure=measure, weight=client.weight(run))

    async def deviate(self, down: Moved, client: Client) -> Deviation:
        """How far its own result lies from the new shared weights: the sum over tensors of the norms."""
        y = client.state.get("y")
        if y is None:
            raise ClientFailed("it does not remember its last result")
        parts = client.layout.views(y - down.x).values()
        client.state["measure"] = far = math.fsum(float(torch.linalg.vector_norm(part)) for part in parts)
        return Deviation(far)

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return await self.fedavg.personal(down, client)

    async def wander(self, down: Walk, client: Client) -> tuple[Wandered, Params]:
        """Local training without gradients: its numbers, and where it ended [P]."""
        start = down.start
        run = await client.wander(
            start.x, carry=start.carry, epsilon=self.epsilon, directions=self.directions,
            weight_decay=self.weight_decay, limit=self.limit, kind=self.noise, lr=self._rate(down.spread, client),
        )  # fmt: skip
        assert run.y is not None  # kept, unless told otherwise
        return run, run.y

    def _rate(self, spread: Spread | None, client: Client) -> float:
        """The client's learning rate in this round."""
        if self.rate == "random":
            return client.lr + self.spread * (2 * float(rng.uniform(client.key("rate"), 1)) - 1)
        own = client.state.get("measure") if self.rate != "frozen" else None
        if spread is None or own is None or spread.worst == 0:
            return client.lr
        # a client that was away compares an old measure: it goes no further than the furthest of those that were there
        return client.lr + self.spread * max(-1.0, min(1.0, (own - spread.mean) / spread.worst))

    def _lifted(self, y: Params, client: Client) -> Term:
        return self.space.lift(y, client.layout, 0)


def beyond_belief(client: ClientId, up: Measured | Deviation) -> str | None:
    """Why a measure cannot be a loss or a distance; one such lie would make all others look alike."""
    if up.measure is None or abs(up.measure) <= MOST:
        return None
    return f"its measure is {up.measure:g}, beyond any loss or distance ({MOST:g})"


def spread(measures: Sequence[float]) -> Spread | None:
    """How they lie; None: there is none."""
    if not measures:
        return None
    mean = math.fsum(measures) / len(measures)
    worst = max(abs(one - mean) for one in measures)
    return Spread(mean, worst if worst > ROUNDING * abs(mean) else 0.0)


ROUNDING = 1e-9
"""Measures no further apart than this share of their mean are equal: rounding errors must not become rates."""


def run_of(known: Sequence[float], new: float) -> list[float]:
    """The last losses, the new one among them."""
    return [*known, new][-WINDOW:]
