"""DeComFL. Li et al. 2024, Achieving Dimension-Free Communication in Federated Learning via Zeroth-Order Optimization,
https://arxiv.org/abs/2405.15861, algorithm 2.

Notation: x shared weights, z_k,p the directions of a round, the same for all its clients: P in each of its K local
steps; g a slope along one of them, eta the learning rate. A client goes K steps x <- x - eta (1/P) sum_p g z_k,p,
sends the K P amounts -eta g / P and forgets those steps; x moves by the mean of the amounts, every client counting
alike. Whoever was away is sent what the rounds since were moved by, and replays them.
Here x is a function of all amounts so far (`fedloom.drift`), whatever the order they are added in. So a replay sends
each row of amounts as it is now; who was away for long, or lost its memory, is sent all rows, and has the same bits.
With `log` rounds the directions of round t are those of t - log again, and the table of amounts grows no longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import misfit
from fedloom.algorithms.seeded import Agreed, origin, stranger
from fedloom.contracts import Client, ClientFailed, ClientId, Drift, Federation, Fits, Message, Model, Needs, Rule
from fedloom.drift import pool
from fedloom.noise import Kind
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Replay(Message):
    """Downlink: what a client missed."""

    rounds: int
    """Rounds that made the shared model."""
    known: int
    """How many of them the client should remember; 0: none, it begins anew."""
    rows: Tensor
    """[n, K P] float32: the rows of the last n rounds."""


@dataclass(frozen=True)
class Result(Message):
    """Uplink."""

    amounts: Tensor
    """[K P] float32: -eta g / P."""
    origin: str
    """What the client's directions are made of (`seeded.origin`)."""


@dataclass(frozen=True)
class State:
    """All there is of the shared model, and what each client has seen of it."""

    table: Tensor
    """[rows, K P] float32, amounts moved along each direction; the row of round t is t, or t modulo `log`."""
    rounds: int
    seen: Mapping[int, int]
    """Rounds each client knew of when it last replied."""


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

    def init(self, start: Params) -> State:
        """Everybody is at the start."""
        return State(torch.zeros(0, self.width), 0, {})

    @property
    def width(self) -> int:
        """Numbers of a round, K P."""
        return self.steps * self.directions

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        replays: dict[int, Replay] = {}

        def down(client: ClientId) -> Replay:
            known = s.seen.get(client, 0)
            if known not in replays:
                replays[known] = Replay(s.rounds, known, self.since(s, known))
            return replays[known]

        rules: dict[str, Rule] = {"amounts": Mean(uniform=True), "origin": Agreed()}
        got = fed.collect(self.local, down, fed.cohort(), rules, self.fits(fed))
        lost = {client for client, why in got.missing.items() if why.reason == "failed"}
        seen = {client: known for client, known in s.seen.items() if client not in lost}
        return State(
            written(s.table, self.row(s.rounds), got.value.amounts),
            s.rounds + 1,
            {**seen, **dict.fromkeys(got.clients, s.rounds)},
        )

    def row(self, round: int) -> int:
        """Where a round stands in the table."""
        return round if self.log is None else round % self.log

    def since(self, s: State, known: int) -> Tensor:
        """The rows [n, K P] of the rounds behind `known`, in order; at most all there are."""
        missed = range(max(known, s.rounds - len(s.table)), s.rounds)
        return s.table[[self.row(round) for round in missed]]

    def fits(self, fed: Federation) -> Fits:
        """Whether a reply's numbers are of our directions."""

        def fits(client: ClientId, up: Result) -> str | None:
            why = stranger(up.origin, client, fed, self.layout)
            return why or misfit("amounts", up.amounts, (self.width,), torch.float32)

        return fits

    def model(self, s: State) -> Model:
        """The start, moved."""
        return Model(torch.zeros(0), drift=self.drift(s.table))

    def drift(self, table: Tensor) -> Drift:
        """The shared model of a table."""
        return Drift(self.root, table.reshape(-1), self.noise)

    async def local(self, down: Replay, client: Client) -> Result:
        """One client: catch up, look at the slopes along this round's directions, tell them, forget the steps."""
        table = self.caught_up(down, client)
        run = await client.wander(
            self.drift(table), epsilon=self.epsilon, seeds=self.seeds(down.rounds), limit=self.limit,
            forward=self.forward, kind=self.noise, keep=False, step=self.steps > 1,
        )  # fmt: skip
        if not run.steps:
            raise ClientFailed("it took no step: each of them was beyond algorithm.limit, or had nothing to learn")
        client.state["table"], client.state["rounds"] = table, down.rounds
        amounts = (run.slopes * (-run.rates / self.directions)[:, None]).nan_to_num(0.0)
        return Result(amounts.reshape(-1).float(), origin(client.layout))

    def caught_up(self, down: Replay, client: Client) -> Tensor:
        """The table as the server has it, of what the client remembers and what it missed.

        Raises:
            ClientFailed: the server thinks it remembers what it does not; it will then be sent everything.
        """
        own = client.state.get("rounds") or 0
        if down.known not in (0, own):
            raise ClientFailed(f"it remembers {own} rounds, the server thinks {down.known}; next time it gets them all")
        table = client.state.get("table") if down.known else None
        if table is None:
            table = torch.zeros(0, self.width)
        rows = down.rounds if self.log is None else min(down.rounds, self.log)
        whole = torch.zeros(rows, self.width)
        whole[: len(table)] = table
        whole[[self.row(round) for round in range(down.rounds - len(down.rows), down.rounds)]] = down.rows
        return whole

    def seeds(self, round: int) -> list[list[int]]:
        """Directions of a round, [K][P]."""
        first = self.row(round) * self.width
        return [
            [pool(self.root, first + step * self.directions + j) for j in range(self.directions)]
            for step in range(self.steps)
        ]

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down


def written(table: Tensor, row: int, amounts: Tensor) -> Tensor:
    """The table with amounts added to a row, which may be one beyond its end."""
    if row == len(table):
        return torch.cat([table, amounts[None]])
    table = table.clone()
    table[row] += amounts
    return table
