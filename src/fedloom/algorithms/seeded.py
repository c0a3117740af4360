"""What pages have in common whose clients send numbers along directions that everybody draws alike.

Pages with new directions in every round keep a table of amounts, a row a round. The shared model is a function of the
table, whatever the order its numbers were added in (`fedloom.drift`). So whoever was away is sent each row as it is
now; who was away for long, or lost its memory, is sent all rows, and has the same bits. With a length the directions
of round t are those of t - length again, and the table grows no longer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedloom import noise
from fedloom.contracts import Client, ClientFailed, ClientId, Federation, Got, Message
from fedloom.noise import Kind
from fedloom.params import Layout


def origin(layout: Layout, kinds: tuple[Kind, ...] = ("gaussian", "rademacher")) -> str:
    """What two machines must agree on to mean the same by a number along a direction: how they draw random numbers, and
    which tensors these are for.
    """
    return f"noise {noise.fingerprint(kinds)}, tensors {layout.fingerprint}"


def stranger(said: str, client: ClientId, fed: Federation, layout: Layout, wanted: str | None = None) -> str | None:
    """Why a client's numbers mean something else here, or None.

    Args:
        said: the client's `origin`.
        client: who said it.
        fed: knows which tensors it was meant to train.
        layout: the shared one.
        wanted: the origin it should have said; None: the usual one.
    """
    wanted, theirs = wanted or origin(layout), fed.profile(client).layout
    if theirs != layout:
        return (
            f"its adapter has other tensors ({theirs.fingerprint}) than the shared model ({layout.fingerprint}), so no "
            "direction is the same in both; give all clients the same ranks"
        )
    if said == wanted:
        return None
    return (
        f"it says {said[:80]}, expected is {wanted}: its directions are others than ours; it needs the same version "
        "of fedloom and the same adapter"
    )


@dataclass(frozen=True)
class Replay(Message):
    """Downlink: what a client missed."""

    rounds: int
    """Rounds that made the shared model."""
    known: int
    """How many of them the client should remember; 0: none, it begins anew."""
    rows: Tensor
    """[n, width] float32: the rows of the last n rounds."""


@dataclass(frozen=True)
class History:
    """All there is of the shared model, and what each client has seen of it."""

    table: Tensor
    """[rows, width] float32, amounts moved along each direction; the row of round t is t, or t modulo the length."""
    rounds: int
    seen: Mapping[int, int]
    """Rounds each client knew of when it last replied."""


@dataclass(frozen=True)
class Log:
    """A table of amounts: its server's half and its clients'."""

    width: int
    """Amounts of a round."""
    length: int | None
    """Rounds after which directions come again."""

    def empty(self) -> History:
        """Everybody is at the start."""
        return History(torch.zeros(0, self.width), 0, {})

    def row(self, round: int) -> int:
        """Where a round stands in the table."""
        return round if self.length is None else round % self.length

    def since(self, s: History, known: int) -> Tensor:
        """The rows [n, width] of the rounds behind `known`, in order; at most all there are."""
        missed = range(max(known, s.rounds - len(s.table)), s.rounds)
        return s.table[[self.row(round) for round in missed]]

    def down(self, s: History) -> Callable[[ClientId], Replay]:
        """What each client is sent."""
        made = dict[int, Replay]()

        def down(client: ClientId) -> Replay:
            known = s.seen.get(client, 0)
            if known not in made:
                made[known] = Replay(s.rounds, known, self.since(s, known))
            return made[known]

        return down

    def after(self, s: History, got: Got, amounts: Tensor) -> History:
        """Behind a round that moved by these amounts [width]."""
        lost = {client for client, why in got.missing.items() if why.reason == "failed"}
        seen = {client: known for client, known in s.seen.items() if client not in lost}
        table = written(s.table, self.row(s.rounds), amounts)
        return History(table, s.rounds + 1, {**seen, **dict.fromkeys(got.clients, s.rounds)})

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
        whole = torch.zeros(down.rounds if self.length is None else min(down.rounds, self.length), self.width)
        whole[: len(table)] = table
        whole[[self.row(round) for round in range(down.rounds - len(down.rows), down.rounds)]] = down.rows
        return whole

    def remember(self, down: Replay, table: Tensor, client: Client) -> None:
        """Keep the table for the next time."""
        client.state["table"], client.state["rounds"] = table, down.rounds


def written(table: Tensor, row: int, amounts: Tensor) -> Tensor:
    """The table with amounts added to a row, which may be one beyond its end."""
    if row == len(table):
        return torch.cat([table, amounts[None]])
    table = table.clone()
    table[row] += amounts
    return table


@dataclass
class Held:
    """The first value."""

    value: str | None = None


@dataclass(frozen=True)
class Agreed:
    """A text that is the same in every reply that fits."""

    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Held:
        """Nothing yet."""
        return Held()

    def add(self, acc: Held, value: str, weight: float | None) -> Held:
        """One more, the same."""
        return acc if acc.value is not None else Held(value)

    def merge(self, left: Held, right: Held) -> Held:
        """Either."""
        return right if left.value is None else left

    def finish(self, acc: Held) -> str:
        """What all said."""
        assert acc.value is not None
        return acc.value
