"""The FedSWA of 2025, here called lookahead. Liu et al. 2025, FedSWA: Improving Generalization in Federated Learning
with Highly Heterogeneous Data via Momentum-Based Stochastic Controlled Weight Averaging,
https://arxiv.org/abs/2507.20016.

Notation: x shared weights, y a client's weights after K steps, lr the round's rate; x, y are [P]. Inside a round the
rate falls in a line: step k has lr (1 - k/K) + (k/K) rho lr, and the next round starts at lr again. The server goes
beyond the plain mean: x + alpha (mean y - x). rho = 1 and alpha = 1 are FedAvg with equal weights.
"""

from dataclasses import dataclass

import torch

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import vectors
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, ClientFailed, Federation, Message, Model, Needs
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params


@dataclass(frozen=True)
class Result(Message):
    """Uplink."""

    y: Params


@dataclass(frozen=True)
class State:
    """Shared weights."""

    x: Params


@dataclass(frozen=True)
class Lookahead:
    """Averaging with a falling rate inside each round and a long stride of the server."""

    alpha: float = 1.5
    """The server's stride; above 1 it goes beyond the mean."""
    rho: float = 0.1
    """The share of the rate that the steps of a round fall to."""
    layout: Layout | None = None
    """For the figures of LoRA rounds."""
    needs: Needs = Needs()

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        watch = Watch(self.layout)
        rules = {"y": watch.rule(Mean(uniform=True))}
        got = fed.collect(self.local, lambda _: Start(s.x), fed.cohort(), rules, vectors(y=s.x))
        watch.note(fed, s.x, got.value.y)
        return State(torch.lerp(s.x, got.value.y, self.alpha))

    def model(self, s: State) -> Model:
        """The shared weights."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train from x with a falling rate, send what came out."""
        run = await client.descend(down.x, decay=self.rho)
        if not run.steps:
            raise ClientFailed("it took no step, so it has nothing to send")
        return Result(run.y)

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down
