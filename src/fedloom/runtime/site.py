"""Where clients run: takes dispatched tasks, drives the clients' coroutines on an engine, hands replies back.

A simulation has one site in its own process; the loopback runtime has one in a second process; in deployment every
organisation has its own. A site never sees the server's state.
"""

import inspect
import typing
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedloom import rng
from fedloom.channel.codec import size
from fedloom.contracts import HOME, Client, ClientFailed, ClientId, Engine, Message, Missing, Profile, Stage, Summary
from fedloom.engine.driver import drive
from fedloom.runtime.client import ClientData, LocalClient, LocalPlan
from fedloom.runtime.noted import Attacker
from fedloom.runtime.store import PendingState

T = typing.TypeVar("T")


@dataclass(frozen=True)
class Dispatch:
    """One task for one client."""

    number: int
    """Key of the send it belongs to; with the client it keys the task's random numbers."""
    round: int
    """Rounds behind the server when it was sent."""
    client: ClientId
    task: str
    down: Message


@dataclass(frozen=True)
class Reply:
    """What came back of a dispatch."""

    dispatch: Dispatch
    up: Message | None
    missing: Missing | None
    """Why there is no message."""
    summary: Summary
    bytes_up: int
    """Of the encoded message, without the envelope and framing of a transport."""


BOUND = ("__func__", "__self__")
"""What makes two methods the same: the function, and the object it belongs to."""


class Tasks:
    """The coroutines a site can be asked for, by name, with the messages they take and give."""

    def __init__(self, *owners: object) -> None:
        """Look through the owners; the first is the algorithm, whose tasks are what stages work on."""
        self._tasks: dict[str, Callable[[Any, Client], Coroutine[Any, Any, Any]]] = {}
        self._staged = frozenset[str]()
        for owner in owners:
            for name, method in inspect.getmembers(owner, inspect.iscoroutinefunction):
                if not name.startswith("_") and name != "personal":
                    if name in self._tasks:
                        raise ValueError(f"two tasks are named {name}; rename one")
                    self._tasks[name] = method
            self._staged = self._staged or frozenset(self._tasks)

    def staged(self, dispatch: Dispatch) -> bool:
        """Whether stages work on the reply: a client's, to a task of the algorithm.

        Not the server's own worker's, which sends over no channel, nor an evaluation's, which must change nothing.
        """
        return dispatch.client != HOME and dispatch.task in self._staged

    def name(self, task: Callable[..., Any]) -> str:
        """The name a page's coroutine is sent under.

        Raises:
            ValueError: it is none of this run's tasks.
        """
        name = getattr(task, "__name__", "")
        known = self._tasks.get(name)
        if known is None or any(getattr(task, part, None) is not getattr(known, part, 0) for part in BOUND):
            raise ValueError(f"{task!r} is not a task of this run; tasks: {', '.join(sorted(self._tasks))}")
        return name

    def get(self, name: str) -> Callable[[Any, Client], Coroutine[Any, Any, Any]]:
        """The coroutine function of that name."""
        if name not in self._tasks:
            raise ValueError(f"task {name!r} is unknown here; tasks: {', '.join(sorted(self._tasks))}")
        return self._tasks[name]

    def messages(self, name: str) -> tuple[type, type]:
        """The classes of the message down and the message up, from the coroutine's annotations."""
        task = self.get(name)
        hints = typing.get_type_hints(task)
        down = next(iter(inspect.signature(task).parameters))
        return hints[down], hints["return"]


class Memories(Protocol):
    """The clients' memories: `Store`, or versions whose numbers a server gives."""

    def open(self, client: ClientId) -> PendingState:
        """The client's memory as a task sees it now; what it writes is pending."""

    def keep(self, client: ClientId, round: int, state: PendingState) -> None:
        """What was written becomes that version."""

    def commit(self, *rounds: int) -> None:
        """The checkpoints on disk are those of `rounds`."""

    def rewind(self, round: int, search: bool = True) -> None:
        """Forget every version after `round`."""


class Site:
    """Runs tasks of many clients on one engine."""

    def __init__(
        self,
        *,
        tasks: Tasks,
        engine: Engine,
        store: Memories,
        profile: Callable[[ClientId], Profile],
        data: Callable[[ClientId], ClientData],
        plan: Callable[[ClientId], LocalPlan],
        root: int,
        window: int = 64,
        stages: Sequence[Stage] = (),
        attack: Callable[[ClientId], Attacker | None] = lambda client: None,
    ) -> None:
        self.tasks, self.engine, self.store, self.root, self.window, self.stages = (
            tasks, engine, store, root, window, tuple(stages),
        )  # fmt: skip
        self._profile, self._data, self._plan, self._attack = profile, data, plan, attack
        self._pending: dict[ClientId, PendingState] = {}
        self.whole = True
        """All clients of a collect are asked here; False: other processes ask some of them."""

    def run(self, dispatches: Iterable[Dispatch]) -> Iterator[Reply]:
        """Replies in the order of the dispatches; what a client wrote stays pending until `settle`."""
        begun: dict[ClientId, tuple[Dispatch, LocalClient]] = {}

        def jobs() -> Iterator[tuple[ClientId, Coroutine[Any, Any, Message]]]:
            for dispatch in dispatches:
                client = self._client(dispatch)
                begun[dispatch.client] = dispatch, client
                yield dispatch.client, self._task(dispatch, client)

        for client_id, up in drive(jobs(), self.engine, self.window):
            dispatch, client = begun.pop(client_id)
            self._pending[client_id] = client.state
            if isinstance(up, ClientFailed):
                yield Reply(dispatch, None, up.missing, client.summary(), 0)
            else:
                yield Reply(dispatch, up, None, client.summary(), size(up))

    def call(self, client: ClientId, round: int, task: Callable[[Any, Client], Coroutine[Any, Any, T]], down: Any) -> T:
        """One coroutine for one client, beside the tasks; what it writes is forgotten.

        Raises:
            ClientFailed: it failed.
        """
        one = self._client(Dispatch(0, round, client, "", down))
        (_, result) = next(iter(drive([(client, task(down, one))], self.engine, 1)))
        if isinstance(result, ClientFailed):
            raise result
        return result

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        """The server's word on a client's last reply: what it wrote is kept as of `round`, or never happened."""
        state = self._pending.pop(client)
        if counted:
            self.store.keep(client, round, state)

    def commit(self, *rounds: int) -> None:
        """The server's checkpoints on disk are those of `rounds`."""
        self.store.commit(*rounds)

    def rewind(self, round: int, search: bool = True) -> None:
        """Forget what clients wrote after `round`; for `search` see `Store.rewind`."""
        self._pending.clear()
        self.store.rewind(round, search)

    def _client(self, dispatch: Dispatch) -> LocalClient:
        return LocalClient(
            profile=self._profile(dispatch.client),
            data=self._data(dispatch.client),
            state=self.store.open(dispatch.client),
            plan=self._plan(dispatch.client),
            round=dispatch.round,
            root=rng.key(self.root, "client", dispatch.number, dispatch.client),
            attack=self._attack(dispatch.client),
            whole=self.whole,
        )

    async def _task(self, dispatch: Dispatch, client: LocalClient) -> Message:
        up = await self.tasks.get(dispatch.task)(dispatch.down, client)
        for stage in self.stages if self.tasks.staged(dispatch) else ():
            up = await stage.outgoing(up, client, dispatch.down)
        return up
