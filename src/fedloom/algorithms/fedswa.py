"""FedAvg with stochastic weight averaging on the server. Caldarola et al. 2022, Improving Generalization in Federated
Learning by Seeking Flat Minima, https://arxiv.org/abs/2203.11834, algorithm 1.

Notation: x shared weights [P], r rounds behind us (0 in the first), c the rounds from one sample to the next. x after
the rounds r = start, start + c, start + 2 c, ... enters a plain running mean. The mean is what is evaluated and
exported; it never goes back into training. Clients may train at a rate that falls anew in every c rounds.
(The FedSWA of 2025 is another method: `lookahead`.)
"""

from dataclasses import dataclass

import torch

from fedloom.algorithms import fedavg
from fedloom.algorithms.fedavg import FedAvg, Result, Start
from fedloom.contracts import Client, Federation, Model, NobodyReplied
from fedloom.params import Params


@dataclass(frozen=True)
class State(fedavg.State):
    """FedAvg's, and the mean of the shared weights so far."""

    average: Params
    """[P], or nothing before the first sample."""
    count: int
    """Samples in the mean."""


@dataclass(frozen=True, kw_only=True)
class FedSwa(FedAvg):
    """FedAvg that ends in the mean of its later rounds.

    The mean is over the trained numbers themselves: factors of LoRA pairs are averaged apart, which is close while they
    move little between samples. Spaces that move what was learned into the base cannot be averaged so.
    """

    start: int
    """Rounds before the first sample; the paper takes three quarters of the run."""
    every: int
    """c, rounds from one sample to the next."""
    cycle: float | None = None
    """The rate the cycle falls to: from `start` on, with t = ((r mod c) + 1) / c, clients train at (1 - t) lr + t cycle
    whatever the recipe's schedule says. None: no cycle."""
    lr: float | None = None
    """The rate the cycle falls from."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}, but there is at least 1 round from one sample to the next")
        if self.cycle is None:
            return
        if self.lr is None:
            raise ValueError(f"the rate's cycle ends at {self.cycle} but begins nowhere; give lr, the clients' rate")
        if self.every == 1:
            raise ValueError("every is 1, but a cycle of one round has no room to fall; raise every or leave cycle out")

    def init(self, start: Params) -> State:
        """Everybody begins at `start`, with nothing averaged."""
        s = super().init(start)
        return State(s.x, s.carry, s.memory, start.new_zeros(0), 0)

    def round(self, s: State, fed: Federation) -> State:  # type: ignore[override]  # a page meets its own states only
        """One round of FedAvg, then perhaps a sample.

        Raises:
            ValueError: what was learned leaves the shared weights for the base.
        """
        try:
            base = super().round(s, fed)
        except NobodyReplied:  # the shared weights stay, and are sampled all the same
            base = s
        if base.carry:
            raise ValueError(
                "fedswa averages the trained numbers of several rounds, but this space moves what was learned into the "
                "base after each; choose a space that does not (factors, turns), or another algorithm"
            )
        average, count = s.average, s.count
        if fed.round >= self.start and (fed.round - self.start) % self.every == 0:
            average, count = joined(average, count, base.x), count + 1
        return State(base.x, base.carry, base.memory, average, count)

    def rate(self, round: int) -> float | None:
        """The clients' rate in a round; None: the recipe's."""
        if self.cycle is None or self.lr is None or round < self.start:
            return None
        t = (round % self.every + 1) / self.every
        return (1 - t) * self.lr + t * self.cycle

    def model(self, s: State) -> Model:  # type: ignore[override]
        """The mean, once there is one."""
        return Model(s.average if s.count else s.x, s.carry)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train from x at the round's rate, send what came out."""
        return self.result(await self.train(down, client, lr=self.rate(down.round)), down, client)


def joined(average: Params, count: int, x: Params) -> Params:
    """The mean of `count` vectors as one more joins them, [P]."""
    if count == 0:
        return x
    return torch.lerp(average.to(torch.float64), x.to(torch.float64), 1 / (count + 1)).to(x.dtype)
