"""A server by hand: says one letter after the other to one client, and hears what it answers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.links import Passing
from fedloom.channel.codec import encode
from fedloom.runtime import letters
from fedloom.runtime.letters import Answer, Ready, Recipe, TaskLetter
from fedloom.runtime.site import Dispatch, Tasks
from runtime.federation_of_memory import NODE, RUN, Memoried, rows, simulated
from runtime.mailroom_of_memory import Room

ME = 2
RECIPE = Recipe(RUN, "t", "0", "Ditto", ME, 5, "site-2")


@dataclass
class Listening(Passing):
    """Writes down what client 2 is asked in a simulation, and what it answers."""

    inner: Any
    heard: list[tuple[Dispatch, bytes]]

    def ask(self, dispatches: Any) -> Any:
        for reply in self.inner.ask(dispatches):
            if reply.dispatch.client == ME:
                self.heard.append((reply.dispatch, encode(reply.up)))
            yield reply


class Desk:
    """A server by hand, and client 2."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        row = rows()["ditto"]
        row = replace(row, world=replace(row.world, cohort=5))
        self.folder, self.room = folder, Room()
        self.run = Memoried(row, folder, self.room, **changes)
        for client in {*range(5)} - {ME}:
            self.room.kill(NODE + client)
        self.heard: list[tuple[Dispatch, bytes]] = []
        simulated(row, wrap=lambda inner: Listening(inner, self.heard))
        self.marshal = self.run._marshal(Tasks(row.algorithm))
        self.tickets = 0
        self.room.sleep(1)

    def say(self, letter: Any, body: bytes = b"") -> str:
        """Send a letter; its id."""
        head = letter if isinstance(letter, dict) else letters.head(letter)
        return self.room.send(NODE + ME, head, body, 1000.0)

    def hears(self, letter: Any, body: bytes = b"", seconds: float = 4.0) -> tuple[Any, bytes]:
        """Send a letter; the answer, or None."""
        id = self.say(letter, body)
        self.room.sleep(seconds)
        found = self.room.arrived([id])
        if not found:
            return None, b""
        assert len(found) == 1
        assert found[0].head is not None
        self.room.drop(found[0])
        return letters.read_reply(found[0].head), found[0].body

    def task(self, round: int, **changes: Any) -> tuple[TaskLetter, bytes]:
        """The task of a round, on the memory of the round before."""
        dispatch = self.heard[round][0]
        body = self.marshal.down(dispatch)
        memory = self.heard[round - 1][0].number if round else 0
        self.tickets += 1
        letter = TaskLetter(
            RUN, f"ticket-{self.tickets}", dispatch.number, round, ME, "local", letters.digest(body), memory, ()
        )
        return replace(letter, **changes), body

    def does(self, round: int, **changes: Any) -> Answer:
        said, _ = self.hears(*self.task(round, **changes))
        assert isinstance(said, Answer)
        return said

    def joins(self) -> None:
        assert isinstance(self.hears(RECIPE)[0], Ready)

    def restart(self) -> None:
        self.room.kill(NODE + ME, 1.0)
        self.room.sleep(5.0)

    @property
    def place(self) -> Path:
        return self.folder / f"client-{ME}" / "runs" / RUN

    @property
    def versions(self) -> list[int]:
        return self.run.shelf(ME).rounds(ME)

    @property
    def words(self) -> str:
        return "\n".join(self.run.words[ME])
