"""A server and its clients over a mailroom in memory: real pages, a toy engine; each side may be killed anywhere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from contract.links import Passing
from fedloom.channel.codec import decode, encode
from fedloom.contracts import Missing, Model
from fedloom.events import Event, ReplyMissing
from fedloom.rounds import advance
from fedloom.runtime.deploy_config import DeployConfig
from fedloom.runtime.federation import FederationState, Hub
from fedloom.runtime.letters import Ready, Recipe
from fedloom.runtime.remote import Remote
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Dispatch, Reply, Tasks
from fedloom.runtime.station import Built, Station
from fedloom.runtime.store import OnDisk
from fedloom.runtime.versions import Versions
from fedloom.runtime.wire import Marshal
from runtime.mailroom_of_memory import Door, Room
from seam.quadratic import World
from seam.table import Row
from seam.table import rows as all_rows

RUN = "2026-01-01-toy"
NODE = 100
"""Of client 0."""
POINTS = ("before asking", "after asking", "after some replies", "after the fold", "before the commit", "after it")
"""Where a server may be killed in a round."""

rows = cache(all_rows)


class Crash(BaseException):
    """The server is killed."""


@dataclass
class Memoried:
    """A run over remote clients, from its first start to its end."""

    row: Row
    folder: Path
    room: Room = field(default_factory=Room)
    deploy: DeployConfig = DeployConfig(clients=1)
    rounds: int = 6
    every: int = 1
    retries: int = 0
    crashes: list[tuple[int, str]] = field(default_factory=list)
    """(round from 0, where), in the order in which they happen."""
    alter: Callable[[int, Any], None] = lambda client, site: None
    """Changes a client's site."""
    before: Callable[["Memoried"], None] = lambda run: None
    """Called before every round."""
    joined: int | None = None
    """Clients waited for at every start; None: all."""

    def __post_init__(self) -> None:
        self.world = self.row.world
        self.events: list[Event] = []
        self.words: dict[int, list[str]] = {i: [] for i in range(self.world.clients)}
        self.saved: dict[int, tuple[bytes, bytes]] = {}
        self.final: dict[int, Model] = {}
        self.away: dict[int, set[int]] = {}
        """By round, from 0: who could not be asked."""
        self.lost: dict[int, set[tuple[int, str]]] = {}
        """By round, from 0: (client, task) of the replies that did not count."""
        self.trained: list[tuple[int, int]] = []
        """(client, round) of every task that was really done."""
        self.room.revive = lambda node: self.station(node - NODE)
        self.room.alarm = self._alarm
        self._asked = False
        for i in range(self.world.clients):
            self.room.start(NODE + i, self.station(i))

    # -- clients

    def station(self, client: int) -> Station:
        """A client's process on its folder."""
        folder, door = self.folder / f"client-{client}", Door(self.room, NODE + client)
        return Station(door, folder, self._build, self.words[client].append, lambda: self.room.now)

    def shelf(self, client: int) -> OnDisk:
        return OnDisk(self.folder / f"client-{client}" / "runs" / RUN / "memory")

    def _build(self, recipe: Recipe, place: Path) -> Built:
        tasks = Tasks(self.row.algorithm)
        site = self.world.site(tasks, self.row.stages)
        site.store = Versions({recipe.client: OnDisk(place / "memory")})
        run = site.run

        def noted(dispatches: Any) -> Any:
            self.trained += [(d.client, d.round) for d in dispatches]
            return run(dispatches)

        site.run = noted  # type: ignore[method-assign]
        self.alter(recipe.client, site)

        def end(letter: Any, client: int, data: memoryview, folder: Path) -> str:
            self.final[client] = decode(Model, bytes(data))
            return "taken"

        return Built(site, self._marshal(tasks), lambda ticket: Ready(ticket, {}, {"train": 3}), end)

    # -- the server

    def run(self) -> bytes:
        """The state at the end, as bytes; the server is started again as often as it is killed."""
        while True:
            try:
                return self._serve()
            except Crash:
                self.room.forget_all()

    @property
    def missing(self) -> set[tuple[int, int]]:
        """(client, round from 0) of every reply that did not count."""
        return {(e.client, e.round - 1) for e in self.events if isinstance(e, ReplyMissing)}

    def memories(self) -> dict[int, bytes]:
        """What each client remembers, as bytes."""
        found = self.remote.memories()
        return {client: encode(self.shelf(client).read(client, version)) for client, version in found.items()}

    def make(self) -> Remote:
        """The server's link."""
        clients = self.world.clients

        def recipe(client: int, ticket: str) -> Recipe:
            return Recipe(RUN, ticket, "0", self.row.algorithm.__class__.__name__, client, clients, f"site-{client}")

        return Remote(
            self.room, {f"site-{i}": NODE + i for i in range(clients)}, RUN, recipe,
            self._marshal(Tasks(self.row.algorithm)), self.deploy, self.world.min_replies, lambda name, ready: None,
            events=self.events.append, clock=lambda: self.room.now, sleep=self.room.sleep,
        )  # fmt: skip

    def _serve(self) -> bytes:
        page, self.remote = self.row.algorithm, self.make()
        self.hub = hub = self.world.hub(page, self.row.stages, wrap=lambda _: _Noting(self), events=self.events.append)
        state = page.init(self.world.start())
        if self.saved:
            hub.round = max(self.saved)
            hub.restore(decode(FederationState, self.saved[hub.round][1]))
            state = decode(type(state), self.saved[hub.round][0])
            hub.commit(*self.saved)
            hub.rewind(hub.round)
        else:
            self._save(state)
        self.remote.gather(self.world.clients if self.joined is None else self.joined)
        state = advance(page, state, hub, self.rounds, self.retries, before=self._before, after=self._after)
        self.remote.farewell("finished", hub.round, encode(page.model(state)), 20.0)
        return encode(state)

    def _marshal(self, tasks: Tasks) -> Marshal:
        return Marshal(tasks, self.world.layout(-1).fingerprint, "toy", RUN)

    def _save(self, state: Any) -> None:
        self.saved[self.hub.round] = encode(state), encode(self.hub.snapshot())
        self.saved = {round: self.saved[round] for round in sorted(self.saved)[-2:]}
        self._maybe_crash("before the commit")
        self.hub.commit(*self.saved)

    # -- where it may be killed

    def _before(self) -> None:
        self._replies, self._asked = 0, False
        self.away[self.hub.round], self.lost[self.hub.round] = set(), set()
        self.before(self)
        self._maybe_crash("before asking")
        self._asked = True

    def _alarm(self) -> None:
        if self._asked:
            self._maybe_crash("after asking")

    def settled(self) -> None:
        """One more reply was judged."""
        self._replies += 1
        if self._replies == 2:
            self._maybe_crash("after some replies")

    def _after(self, state: Any) -> None:
        self._asked = False
        self._maybe_crash("after the fold")
        if self.hub.round % self.every == 0 or self.hub.round == self.rounds:
            self._save(state)
        self._maybe_crash("after it")

    def _maybe_crash(self, point: str) -> None:
        over = point in ("after the fold", "before the commit", "after it")
        if self.crashes and self.crashes[0] == (self.hub.round - over, point):
            self.crashes.pop(0)
            raise Crash


class _Noting:
    """The server's link; notes who is away and whose replies are missing."""

    def __init__(self, run: Memoried) -> None:
        self._run, self._inner = run, run.remote

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        for reply in self._inner.ask(dispatches):
            if reply.up is None:
                self._run.lost[self._run.hub.round].add((reply.dispatch.client, reply.dispatch.task))
            yield reply
            del reply  # as the hub does: its tensors may lie in the bytes that came

    def settle(self, client: int, round: int, counted: bool) -> None:
        self._inner.settle(client, round, counted)
        self._run.settled()

    def away(self) -> set[int]:
        found = self._inner.away()
        self._run.away[self._run.hub.round] |= found
        return found


class Replaying(Passing):
    """In a simulation, loses what was lost in a remote run, and has away who was away there."""

    def __init__(self, inner: Any, run: Memoried) -> None:
        super().__init__(inner)
        self._run, self._round = run, -1

    def away(self) -> set[int]:
        self._round += 1  # a page draws one cohort a round
        return self._run.away[self._round]

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        for reply in self.inner.ask(dispatches):
            if (reply.dispatch.client, reply.dispatch.task) in self._run.lost[self._round]:
                yield Reply(reply.dispatch, None, Missing("late", "as in the remote run"), reply.summary, 0)
            else:
                yield reply


def simulated(row: Row, world: World | None = None, rounds: int = 6, **hub: Any) -> tuple[bytes, dict[int, bytes]]:
    """The same run in one process: state and memories as bytes."""
    made: Hub = (world or row.world).hub(row.algorithm, row.stages, **hub)
    state = advance(row.algorithm, row.algorithm.init(row.world.start()), made, rounds, 0)
    link: Any = made.link
    while not isinstance(link, InProcess):
        link = link.inner
    store = link.site.store
    return encode(state), {client: encode(store.open(client).memory) for client in store.shelf.clients()}
