"""A server's link over a mailroom in memory, and clients that say whatever a test wants."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.channel.codec import encode
from fedloom.contracts import Client, Message, Profile, Summary, Weighted
from fedloom.events import Event, Noted, ReplyMissing
from fedloom.params import Layout, Leaf
from fedloom.runtime import letters
from fedloom.runtime.deploy_config import DeployConfig
from fedloom.runtime.federation import Hub
from fedloom.runtime.letters import Answer, Ready, Recipe
from fedloom.runtime.remote import Remote
from fedloom.runtime.site import Tasks
from fedloom.runtime.wire import Marshal
from runtime.mailroom_of_memory import Door, Letter, Room

NODE = 100
LAYOUT = Layout.of([Leaf("w", (3,))])
Says = Callable[["Puppet", Letter], tuple[dict[str, Any], bytes] | None]


@dataclass(frozen=True)
class Down(Message):
    x: Tensor


@dataclass(frozen=True)
class Up(Weighted):
    y: Tensor


@dataclass(frozen=True)
class Other(Message):
    y: Tensor


class Page:
    async def local(self, down: Down, client: Client) -> Up:
        raise AssertionError("puppets answer")

    async def other(self, down: Down, client: Client) -> Other:
        raise AssertionError("puppets answer")


PAGE = Page()
MARSHAL = Marshal(Tasks(PAGE), LAYOUT.fingerprint, "toy", "run")


def envelope(head: dict[str, Any], kind: type = Up, **changes: Any) -> Any:
    """What the answer to a task must be in."""
    return MARSHAL.envelope(kind, **{"round": head["round"], "dispatch": head["number"], "client": head["client"],
                                     **changes})  # fmt: skip


def answer(head: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The head of a good answer."""
    return {**letters.head(Answer(head["ticket"], Summary(2, 0, 8, 80, 0.5), None, True)), **changes}


def up(client: int) -> Up:
    return Up(weight=1.0, y=torch.full((3,), float(client)))


def well(puppet: "Puppet", letter: Letter) -> tuple[dict[str, Any], bytes]:
    """What a good client answers to a task."""
    return answer(letter.head), encode(up(letter.head["client"]), envelope(letter.head))


@dataclass
class Puppet:
    """A client's process: joins, and says what it is told to say to tasks."""

    door: Door
    says: Says = well
    joins: Says = lambda puppet, letter: (letters.head(Ready(letter.head["ticket"], {}, {})), b"")
    here: bool = False
    over: str | None = None
    restless: float = 30.0
    last: float = 0.0

    def step(self) -> float:
        now = self.door.room.now
        letter = self.door.letter() if self.here else None
        if letter is None and (not self.here or now - self.last > self.restless):
            self.door.announce()
            self.here, self.last = True, now
        if letter is None:
            return 0.5
        said = (self.joins if letter.head["what"] == "Recipe" else self.says)(self, letter)
        if said is not None:
            self.door.answer(letter, *said)
        self.door.done(letter)
        self.last = max(now, self.door.room.due[self.door.node])
        return 0.0


@dataclass
class Table:
    """A server with puppets."""

    says: dict[int, Says] = field(default_factory=dict)
    joins: dict[int, Says] = field(default_factory=dict)
    clients: int = 3
    deploy: DeployConfig = DeployConfig(round_timeout=100, join_timeout=1000)
    room: Room = field(default_factory=Room)
    check: Callable[[str, Ready], str | None] = lambda name, ready: None

    def __post_init__(self) -> None:
        self.events: list[Event] = []
        self.told: list[tuple[str, str]] = []
        self.ticks = 0
        self.room.revive = self.puppet
        for i in range(self.clients):
            self.room.start(NODE + i, self.puppet(NODE + i))
        self.open()

    def puppet(self, node: int) -> Puppet:
        made = Puppet(Door(self.room, node), self.says.get(node - NODE, well))
        made.joins = self.joins.get(node - NODE, made.joins)
        return made

    def open(self) -> None:
        """Start the server."""

        def tick() -> None:
            self.ticks += 1

        self.remote = Remote(
            self.room, {f"site-{i}": NODE + i for i in range(self.clients)}, "run",
            lambda client, ticket: Recipe("run", ticket, "0", "text", client, self.clients, f"site-{client}"),
            MARSHAL, self.deploy, 1, self.check, self.events.append,
            lambda name, state, _: self.told.append((name, state)), tick, lambda: self.room.now, self.room.sleep,
        )  # fmt: skip
        self.hub = Hub(
            link=self.remote, tasks=Tasks(PAGE), clients=range(self.clients), cohort=self.clients, root=0,
            min_replies=0, profile=lambda i: Profile(i, f"site-{i}", LAYOUT), events=self.events.append,
        )  # fmt: skip

    def ask(self, to: Any = None, task: Any = PAGE.local) -> Any:
        """One round of everybody."""
        got = self.hub.collect(task, lambda _: Down(torch.zeros(3)), range(self.clients) if to is None else to, Mean())
        self.hub.round += 1
        return got

    @property
    def missing(self) -> list[ReplyMissing]:
        return [event for event in self.events if isinstance(event, ReplyMissing)]

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Noted)]
