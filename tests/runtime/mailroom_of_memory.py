"""A mailroom in memory with a clock that is moved by hand, and with a fault for every letter and answer that has one.

The room is the server's `Post`; a `Door` is a client's `Mailbox`. Clients are actors: the room lets them work while the
server sleeps. Everything happens in one thread and in the same order every time.

Faults are texts by (what, node, n), where n counts the letters to a node, or its answers, from 0:

    letter   lost · broken (taken, the line breaks) · twice · given up · garbage · tampered (its body)
             dies read|body|answer|done SECONDS (the client is killed there, and back after so long)
    answer   lost · broken (not taken, the client hears so) · deaf (taken, the client does not hear so) · twice · ticket
             truncated · garbage · foreign (another's) · given up · slow SECONDS (of work)
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.channel.codec import CodecError
from fedloom.runtime.station import Lost, Stranger

LISTED = 20.0
"""Seconds after its last sign of life a client is listed no more."""
Faults = Mapping[tuple[str, int, int], str]


class Killed(BaseException):
    """A process ends here, as by kill -9."""


class Body(bytearray):
    """Bytes of which it is known whether somebody still holds them."""


@dataclass
class Letter:
    """A letter in a mailbox."""

    id: str
    node: int
    head: dict[str, Any]
    body: bytes
    until: float
    fault: str = ""


@dataclass(frozen=True)
class Arrived:
    """An answer in the mailroom."""

    ask: str
    error: str | None
    head: dict[str, Any] | None = None
    body: bytes = b""
    at: float = 0.0
    serial: int = 0


@dataclass
class Room:
    """Mailboxes, clients that work, and the time."""

    faults: Faults = field(default_factory=dict)
    revive: Callable[[int], Any] = lambda node: None
    """A client's new process, given its node."""
    gap: float = 0.0
    """Seconds a client is not listed when it announces itself anew."""
    now: float = 0.0
    alarm: Callable[[], None] = lambda: None
    """Called whenever the server slept."""
    most_held: int = 0
    """Bodies of answers the server held at once, at most."""

    def __post_init__(self) -> None:
        self.actors: dict[int, Any] = {}
        self.due: dict[int, float] = {}
        self.born: dict[int, float] = {}
        self.seen: dict[int, float] = {}
        self.ended: dict[int, BaseException] = {}
        self.count: Counter[tuple[str, int]] = Counter()
        self.tasks: list[tuple[int, int]] = []
        """(node, round) of every task letter."""
        self._held: list[weakref.ref[Body]] = []
        self._serial = 0
        self.forget_all()

    def forget_all(self) -> None:
        """The mailroom ends, and is made anew."""
        self.stamps: dict[int, str] = {}
        self.hidden: dict[int, float] = {}
        self.boxes: defaultdict[int, list[Letter]] = defaultdict(list)
        self.letters: dict[str, Letter] = {}
        self.answers: list[Arrived] = []
        self.told: set[int] = set()
        self.closed: set[str] = set()
        """Letters whose answer the server heard of; nobody would ever look for another."""
        self.last: dict[int, tuple[dict[str, Any], bytes]] = {}

    # -- time and clients

    def start(self, node: int, actor: Any) -> None:
        self.actors[node], self.due[node] = actor, self.now

    def kill(self, node: int, back: float | None = None) -> None:
        """Its process ends; another begins after `back` seconds."""
        self.actors.pop(node, None)
        self.seen[node] = self.now
        if back is not None:
            self.born[node] = self.now + back

    def sleep(self, seconds: float) -> None:
        """Let time go by, and clients work."""
        end = self.now + seconds
        while True:
            times = [(self.due[node], node) for node in self.actors] + [(t, node) for node, t in self.born.items()]
            when, node = min(times, default=(end + 1, -1))
            if when > end:
                break
            self.now = max(self.now, when)
            if self.born.pop(node, None) is not None:
                self.start(node, self.revive(node))
            self._step(node)
        self.now = end
        self.alarm()

    def _step(self, node: int) -> None:
        actor = self.actors[node]
        try:
            pause = actor.step()
        except Killed as killed:
            self.kill(node, *killed.args)
            return
        except Exception as error:
            self.ended[node] = error
            self.kill(node)
            return
        self.due[node] = max(self.due[node], self.now + max(pause, 0.01))
        if getattr(actor, "over", None) is not None:
            self.kill(node)

    # -- the server's hand

    def present(self) -> dict[int, str]:
        self.seen |= dict.fromkeys(self.actors, self.now)
        return {
            node: stamp
            for node, stamp in self.stamps.items()
            if self.now - self.seen.get(node, 0.0) <= LISTED and self.hidden.get(node, -1.0) < self.now
        }

    def sent(self) -> None:
        """Nothing is kept besides the letters."""

    def send(self, node: int, head: dict[str, Any], body: bytes, ttl: float) -> str:
        if node not in self.stamps:
            return ""
        n = self.count["letter", node]
        self.count["letter", node] += 1
        if head.get("what") == "TaskLetter":
            self.tasks.append((node, head["round"]))
        fault = self.faults.get(("letter", node, n), "")
        letter = Letter(f"{node}-{n}", node, head, body, self.now + ttl, fault)
        self.letters[letter.id] = letter
        if fault == "given up":
            self._put(Arrived(letter.id, "the client is gone"))
        elif fault == "garbage":
            letter.head = {"what": "Cake", "n": [1]}
        elif fault == "tampered":
            letter.body = body[:-1] + bytes([body[-1] ^ 1]) if body else b"x"
        if fault not in ("lost", "given up"):
            self.boxes[node] += [letter] * (2 if fault == "twice" else 1)
        return letter.id

    def arrived(self, ids: Sequence[str]) -> list[Arrived]:
        wanted, found = set(ids), [a for a in self.answers if a.at <= self.now]
        fresh = [a for a in found if a.ask in wanted and a.serial not in self.told]
        self.told |= {a.serial for a in fresh}
        self.closed |= {a.ask for a in fresh}
        return fresh

    def open(self, answer: Arrived) -> tuple[dict[str, Any], memoryview]:
        self.drop(answer)
        if answer.head is None:
            raise CodecError("its head is no JSON object")
        body = Body(answer.body)
        self._held = [ref for ref in self._held if ref() is not None] + [weakref.ref(body)]
        self.most_held = max(self.most_held, len(self._held))
        return answer.head, memoryview(body)

    def drop(self, answer: Arrived) -> None:
        self.answers.remove(answer)

    def forget(self, id: str) -> None:
        if self.letters[id].until < self.now:
            del self.letters[id]

    def _put(self, answer: Arrived) -> None:
        if answer.ask in self.closed:
            return
        self._serial += 1
        self.answers.append(Arrived(answer.ask, answer.error, answer.head, answer.body, answer.at, self._serial))

    # -- a client's hand

    def announce(self, node: int) -> None:
        self._serial += 1
        again = node in self.stamps
        self.stamps[node], self.seen[node] = f"{self._serial}", self.now
        if again and self.gap:
            self.hidden[node] = self.now + self.gap

    def take(self, node: int) -> Letter | None:
        if node not in self.stamps:
            raise Stranger("who are you?")
        letter = self.boxes[node].pop(0) if self.boxes[node] else None
        if letter is not None and letter.fault == "broken":
            raise Lost("the line broke")
        return letter

    def answer(self, letter: Letter, head: dict[str, Any], body: bytes) -> None:
        node = letter.node
        if node not in self.stamps or letter.id not in self.letters:
            raise Stranger("who are you?")
        n = self.count["answer", node]
        self.count["answer", node] += 1
        fault, _, seconds = self.faults.get(("answer", node, n), "").partition(" ")
        if fault == "broken":
            raise Lost("the line broke")
        others = [said for other, said in self.last.items() if other != node]
        self.last[node] = head, body
        wait = float(seconds) if fault == "slow" else 0.0
        said = Arrived(letter.id, None, head, body, self.now + wait)
        self.due[node] = self.now + wait
        if fault == "ticket":
            said = Arrived(letter.id, None, {**head, "ticket": "x" * 32}, body)
        elif fault == "truncated":
            said = Arrived(letter.id, None, head, body[: len(body) // 2])
        elif fault == "garbage":
            said = Arrived(letter.id, None, None)
        elif fault == "given":
            said = Arrived(letter.id, "it was too large")
        elif fault == "foreign" and others:
            said = Arrived(letter.id, None, *others[0])
        for _ in range({"lost": 0, "twice": 2}.get(fault, 1)):
            self._put(said)
        if fault == "deaf":
            raise Lost("the line broke")


@dataclass
class Door:
    """A client's way to the room."""

    room: Room
    node: int

    def announce(self) -> None:
        self.room.announce(self.node)

    def letter(self) -> Letter | None:
        letter = self.room.take(self.node)
        if letter is not None:
            self._maybe_die(letter, "read")
        return letter

    def body(self, letter: Letter) -> memoryview:
        self._maybe_die(letter, "body")
        return memoryview(letter.body)

    def done(self, letter: Letter) -> None:
        self._maybe_die(letter, "done")

    def answer(self, letter: Letter, head: dict[str, Any], body: bytes) -> None:
        self._maybe_die(letter, "answer")
        self.room.answer(letter, head, body)

    def leave(self) -> None:
        self.room.stamps.pop(self.node, None)

    def _maybe_die(self, letter: Letter, moment: str) -> None:
        if letter.fault.startswith(f"dies {moment} "):
            seconds = float(letter.fault.split()[-1])
            letter.fault = ""
            raise Killed(seconds)
