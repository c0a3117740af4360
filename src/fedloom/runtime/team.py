"""The link of a simulation on several processes: each trains its share of the clients, all see all replies.

Every process runs the whole server (the page's `round`, the hub, the rules) on the same replies in the same order, so
that all hold the same state to the bit, whatever their number; only process 0 writes it down. What one process has to
tell the others goes through `Group.gather`.

With `sums`, replies stay where they were made: each process adds up its own, and one accumulator of each is merged.
"""

import json
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final, NoReturn, TypeVar

from fedloom.contracts import HOME, ClientId, Missing, Summary
from fedloom.errors import RunStopped, UserError
from fedloom.runtime.folding import Fold
from fedloom.runtime.group import Group
from fedloom.runtime.link import Near
from fedloom.runtime.place import Elsewhere
from fedloom.runtime.site import Dispatch, Reply, Site
from fedloom.runtime.wire import Marshal

T = TypeVar("T")
Cost = Callable[[ClientId, str], float]
"""(client, task) -> expected tokens, or anything in proportion to them; the same in all processes."""
PIECE: Final = 1 << 26
"""Bytes of replies that are exchanged at a time, unless one alone is larger."""


class Team(Near):
    """One process's link: its own site, and the others'."""

    def __init__(self, site: Site, group: Group, marshal: Marshal, cost: Cost, window: int) -> None:
        """Prepare.

        Args:
            site: of this process.
            group: all processes.
            marshal: how replies become bytes.
            cost: what is known of a task's length.
            window: dispatches of each process between two exchanges, on average.
        """
        self.site, self.group, self._marshal, self._cost, self._window = site, group, marshal, cost, window
        self._own: set[ClientId] = set()
        self._failed: Exception | None = None
        site.whole = False

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Run this process's share, and yield everybody's replies in the order of the dispatches.

        Raises:
            Elsewhere: a page, or a disk, failed in another process.
            UserError: a task cannot work on several processes.
        """
        self._own = set()
        for wave in self._waves(dispatches):
            mine = self._share(wave)
            frames = self._try(mine, self._marshal.reply_frame)
            heads = self._tell([{**head, "bytes": len(data)} for head, data in frames])
            data = {dispatch.client: data for dispatch, (_, data) in zip(mine, frames, strict=False)}
            yield from self._exchanged(wave, heads, data)
        self._settled()

    def reduce(
        self, dispatches: Sequence[Dispatch], fold: Fold, add: Callable[[Reply], Missing | None]
    ) -> Iterator[tuple[Reply, Missing | None]]:
        """Run this process's share into its fold, and yield all verdicts in the order of the dispatches.

        The replies yielded hold no message; when all are yielded, the fold holds everybody's.

        Args:
            dispatches: as for `ask`.
            fold: empty.
            add: puts a reply into the fold, or says why not.
        """
        self._own = set()
        for wave in self._waves(dispatches):
            mine = self._share(wave)
            heads = self._tell(self._try(mine, lambda reply: _verdict(reply, add(reply))))
            for dispatch in wave:
                head = heads[dispatch.client]
                why = None if head["missing"] is None else Missing(**head["missing"])
                yield Reply(dispatch, None, why, Summary(**head["summary"]), head["bytes"]), why
        sums = b""
        with self._later():
            sums = fold.packed()
        self._settled()
        everybody = range(self.group.size)  # one part after the other: no more than one is held
        fold.merge(self.group.gather("sums", sums if r == self.group.rank else b"")[r] for r in everybody)

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        """Tell the site, if the client was asked here."""
        if client in self._own:
            with self._later():
                self.site.settle(client, round, counted)

    def commit(self, *rounds: int) -> None:
        """Tell the site."""
        self.site.commit(*rounds)

    def rewind(self, round: int) -> None:
        """Tell the site; nobody goes on before all have forgotten."""
        with self._later():
            self.site.rewind(round, search=self.group.rank == 0)
        self._settled()

    def close(self) -> None:
        """The group belongs to the run."""

    # -- inside

    def _waves(self, dispatches: Sequence[Dispatch]) -> Iterator[list[Dispatch]]:
        """The dispatches in even parts, so that what is exchanged does not grow with the cohort."""
        count = math.ceil(len(dispatches) / (self._window * self.group.size))
        for i in range(count):
            yield list(dispatches[len(dispatches) * i // count : len(dispatches) * (i + 1) // count])

    def _share(self, wave: Sequence[Dispatch]) -> list[Dispatch]:
        costs = [(d.client, 0.0 if d.client == HOME else self._cost(d.client, d.task)) for d in wave]
        owner = split(costs, self.group.size)
        mine = [dispatch for dispatch in wave if owner[dispatch.client] == self.group.rank]
        self._own |= {dispatch.client for dispatch in mine}
        return mine

    def _try(self, mine: Sequence[Dispatch], then: Callable[[Reply], T]) -> list[T]:
        """What becomes of the replies of this process's share; nothing, where one of them raises."""
        with self._later():
            return [then(reply) for reply in self.site.run(mine)]
        return []

    @contextmanager
    def _later(self) -> Iterator[None]:
        """Errors wait for the next meeting, where they are told and all raise: nobody is left waiting."""
        try:
            yield
        except Exception as error:
            self._failed = self._failed or error

    def _tell(self, heads: list[dict[str, Any]]) -> dict[ClientId, dict[str, Any]]:
        """Everybody's heads, by client, with the process each is of."""
        said = self._meet("replies", {"heads": heads})
        return {head["client"]: {**head, "rank": rank} for rank, one in enumerate(said) for head in one["heads"]}

    def _settled(self) -> None:
        """Nobody goes on before all have written down what counted."""
        self._meet("clients' memories", {})

    def _meet(self, what: str, said: dict[str, Any]) -> list[dict[str, Any]]:
        """Exchange JSON; where one process failed, all raise.

        Raises:
            Exception: what was raised here.
            Elsewhere: what was raised in another process, in words.
            UserError, RunStopped: the same, where it was one of these.
        """
        failed, self._failed = self._failed, None
        if failed is not None:
            said = {"error": _described(failed)}
        heard = [json.loads(one) for one in self.group.gather(what, json.dumps(said).encode())]
        if failed is not None:
            raise failed
        for rank, one in enumerate(heard):
            if "error" in one:
                _raise(one["error"], rank, self.group.size)
        return heard

    def _exchanged(
        self, wave: Sequence[Dispatch], heads: dict[ClientId, dict[str, Any]], data: dict[ClientId, bytes]
    ) -> Iterator[Reply]:
        """All replies of a wave; of what others made, no more than a piece is held."""
        for piece in _pieces(wave, heads):
            heard = self.group.gather("replies", b"".join(data.pop(d.client, b"") for d in piece))
            read = [0] * self.group.size
            for dispatch in piece:
                head = heads[dispatch.client]
                begin, end = read[head["rank"]], read[head["rank"]] + head["bytes"]
                yield self._marshal.reply(head, heard[head["rank"]][begin:end], dispatch)
                read[head["rank"]] = end


def split(costs: Sequence[tuple[ClientId, float]], size: int) -> dict[ClientId, int]:
    """Who trains which client: the longest first, each to the process with the least to do; the server's worker to 0.

    Args:
        costs: (client, expected tokens), each client once.
        size: how many processes.
    """
    load = [0.0] * size
    owner: dict[ClientId, int] = {}
    for client, cost in sorted(costs, key=lambda one: (one[0] != HOME, -one[1], one[0])):
        rank = 0 if client == HOME else min(range(size), key=lambda r: (load[r], r))
        owner[client] = rank
        load[rank] += cost
    return owner


def _pieces(wave: Sequence[Dispatch], heads: dict[ClientId, dict[str, Any]]) -> Iterator[list[Dispatch]]:
    """The wave in parts of at most `PIECE` bytes of replies, or of a single one."""
    piece, held = list[Dispatch](), 0
    for dispatch in wave:
        length = heads[dispatch.client]["bytes"]
        if piece and held + length > PIECE:
            yield piece
            piece, held = [], 0
        piece.append(dispatch)
        held += length
    if piece:
        yield piece


def _verdict(reply: Reply, why: Missing | None) -> dict[str, Any]:
    """What all must know of a reply that stays where it is."""
    missing = None if why is None else asdict(why)
    head = {"client": reply.dispatch.client, "summary": asdict(reply.summary), "bytes": reply.bytes_up}
    return {**head, "missing": missing}


def _described(error: Exception) -> dict[str, str]:
    kind = next((kind.__name__ for kind in (UserError, RunStopped) if isinstance(error, kind)), "")
    if kind:
        return {"kind": kind, "text": str(error)}
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
    trace = "".join(traceback.format_tb(error.__traceback__))
    return {"kind": "", "text": f"{type(error).__name__}: {error}{notes}\n\nThere:\n{trace}"}


def _raise(error: dict[str, str], rank: int, size: int) -> NoReturn:
    match error["kind"]:
        case "UserError":
            raise UserError(error["text"])
        case "RunStopped":
            raise RunStopped(error["text"])
    raise Elsewhere(f"in process {rank} of {size}: {error['text']}")
