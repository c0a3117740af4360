"""DeComFL. Li et al. 2024, Achieving Dimension-Free Communication in Federated Learning via Zeroth-Order Optimization,
https://arxiv.org/abs/2405.15861, algorithm 2.

Notation: x shared weights, z_k,p the directions of a round, the same for all its clients: P in each of its K local
steps; g a slope along one of them, eta the learning rate. A client goes K steps x <- x - eta (1/P) sum_p g z_k,p,
sends the K P amounts -eta g / P and forgets those steps; x moves by the mean of the amounts, every client counting
alike. Whoever was away is sent what the rounds since were moved by, and replays them (`fedloom.algorithms.seeded`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import misfit
from fedloom.algorithms.seeded import Agreed, History, Log, Replay, origin, stranger
from fedloom.contracts import Client, ClientFailed, ClientId, Drift, Federation, Fits, Message, Model, Needs, Rule
from fedloom.drift import pool
from fedloom.noise import Kind
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Result(Message):
    """Uplink."""

    amounts: Tensor
    """[K P] float32: -eta g / P."""
    origin: str
    """What the client's directions are made of (`seeded.origin`)."""


@dataclass(frozen=True)
class DeComFl:
    """Clients that measure slopes along common directions, and replay what the others did."""

    layout: Layout
    root: int
    """Of the directions."""
    steps: int = 1
    """K."""
    directions: int = 1
    """P."""
    epsilon: float = 1e-3
    forward: bool = False
    """g = (L(x + epsilon z) - L(x)) / epsilon instead of the central difference."""
    limit: float | None = None
    """A step whose two losses differ by more is left out: its amounts are 0."""
    noise: Kind = "gaussian"
    log: int | None = None
    """Rounds after which directions come again."""
    needs: Needs = Needs()

    def init(self, start: Params) -> History:
        """Everybody is at the start."""
        return self.past.empty()

    @property
    def width(self) -> int:
        """Numbers of a round, K P."""
        return self.steps * self.directions

    @property
    def past(self) -> Log:
        """How rounds are kept."""
        return Log(self.width, self.log)

    def round(self, s: History, fed: Federation) -> History:
        """One round of the server."""
        rules: dict[str, Rule] = {"amounts": Mean(uniform=True), "origin": Agreed()}
        got = fed.collect(self.local, self.past.down(s), fed.cohort(), rules, self.fits(fed))
        return self.past.after(s, got, got.value.amounts)

    def fits(self, fed: Federation) -> Fits:
        """Whether a reply's numbers are of our directions."""

        def fits(client: ClientId, up: Result) -> str | None:
            why = stranger(up.origin, client, fed, self.layout)
            return why or misfit("amounts", up.amounts, (self.width,), torch.float32)

        return fits

    def model(self, s: History) -> Model:
        """The start, moved."""
        return Model(torch.zeros(0), drift=self.drift(s.table))

    def drift(self, table: Tensor) -> Drift:
        """The shared model of a table."""
        return Drift(self.root, table.reshape(-1), self.noise)

    async def local(self, down: Replay, client: Client) -> Result:
        """One client: catch up, look at the slopes along this round's directions, tell them, forget the steps."""
        table = self.past.caught_up(down, client)
        run = await client.wander(
            self.drift(table), epsilon=self.epsilon, seeds=self.seeds(down.rounds), limit=self.limit,
            forward=self.forward, kind=self.noise, keep=False, step=self.steps > 1,
        )  # fmt: skip
        if not run.steps:
            raise ClientFailed("it took no step: each of them was beyond algorithm.limit, or had nothing to learn")
        self.past.remember(down, table, client)
        amounts = (run.slopes * (-run.rates / self.directions)[:, None]).nan_to_num(0.0)
        return Result(amounts.reshape(-1).float(), origin(client.layout))

    def seeds(self, round: int) -> list[list[int]]:
        """Directions of a round, [K][P]."""
        first = self.past.row(round) * self.width
        return [
            [pool(self.root, first + step * self.directions + j) for j in range(self.directions)]
            for step in range(self.steps)
        ]

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down
