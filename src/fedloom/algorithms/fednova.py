"""FedNova. Wang et al. 2020, Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
https://arxiv.org/abs/2007.07481, equations 4 and 5.

Notation: x shared weights, y a client's weights after tau steps, |a| how many gradients of full size these add up to, p
its share of the weights; x, y are [P]. Clients that take more steps do not count more: with d = (y - x) / |a|, x
becomes x + tau_eff sum p d, where tau_eff = sum p |a|, or sum p tau for proximal steps. |a| is tau for plain SGD. For
optimisers like AdamW there is no exact |a|; tau is used, which evens out the number of steps and no more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.aggregate.server import Momenta, ServerSgd
from fedloom.algorithms.fitting import vectors
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, ClientFailed, ClientId, Federation, Fits, Message, Model, Needs, Rule, Weighted
from fedloom.params import Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params


@dataclass(frozen=True)
class Result(Weighted):
    """Uplink: the way of one gradient, and how many count."""

    d: Tensor
    tau: float


@dataclass(frozen=True)
class State:
    """Shared weights and the server's velocity."""

    x: Params
    memory: Momenta


@dataclass(frozen=True)
class FedNova:
    """Averaging of what clients reached per step.

    A client's share p is by the rows it holds, as in the paper: examples seen grow with the steps, and would bring back
    what is normalised away.
    """

    mu: float = 0.0
    """Clients are held to x as in FedProx: each gradient gains mu (y - x)."""
    momentum: float = 0.0
    """Momentum of the clients' SGD, as the recipe's optimiser has it, fresh each round; here it only enters |a|."""
    server_momentum: float = 0.0
    """Share of the server's last move that is kept."""
    needs: Needs = Needs()

    def __post_init__(self) -> None:
        if self.mu != 0 and self.momentum != 0:
            raise ValueError(
                f"mu is {self.mu} and momentum {self.momentum}, but how much steps with both add up to is not known; "
                "set one of them to 0"
            )

    @property
    def server(self) -> ServerSgd:
        """Moves x; its velocity is in units of weights."""
        return ServerSgd(momentum=self.server_momentum)

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start, self.server.start(start))

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        watch = Watch()
        rules: dict[str, Rule] = {"d": watch.rule(Mean()), "tau": Mean()}
        got = fed.collect(self.local, lambda _: Start(s.x), fed.cohort(), rules, self.fits(s))
        watch.note(fed, torch.zeros_like(s.x))
        moved = s.x + got.value.tau * got.value.d
        x, memory = self.server.step(s.x, moved, s.memory)
        assert isinstance(x, Tensor)
        return State(x, memory)

    def fits(self, s: State) -> Fits:
        """Whether a way fits, and was made of something: a count below 0 would turn the whole round about."""
        shape = vectors(d=s.x)

        def fits(client: ClientId, up: Result) -> str | None:
            return shape(client, up) if up.tau > 0 else f"it says that {up.tau:g} gradients count; they are more than 0"

        return fits

    def model(self, s: State) -> Model:
        """The shared weights."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train from x, send how far it went per gradient."""
        if self.mu == 0:
            run = await client.descend(down.x)
        else:
            run = await client.descend(down.x, correct=lambda g, y, x: g + self.mu * (y - x), with_=(down.x,))
        if run.steps == 0:
            raise ClientFailed("it took no step, so there is nothing to divide by their number")
        size = norm(run.steps, self.momentum, self.mu * run.lr_sum / run.steps)
        tau = float(run.steps) if self.mu else size
        return Result(d=(run.y - down.x) / size, tau=tau, weight=float(client.examples))

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down


def norm(steps: int, momentum: float = 0.0, shrink: float = 0.0) -> float:
    """|a|: how often a gradient of full size is in the way gone.

    Args:
        steps: optimiser steps.
        momentum: share of the last step in the next.
        shrink: learning rate times mu, how much of the way gone each proximal step takes back.
    """
    gone, push = 0.0, 0.0
    for _ in range(steps):
        push = momentum * push + 1
        gone = (1 - shrink) * gone + push
    return gone
