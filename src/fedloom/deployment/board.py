"""Keeps a picture of the running server for people: a sink of events that also hears of members as they come and go.

The picture goes to `status.json` in the server's folder, whole or not at all, at most twice a second; a new phase and
the end are always written. A thread writes what was held back, and shows every few seconds that the process lives.
"""

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Final, Self, Unpack

from fedloom import atomic
from fedloom.deployment.phrases import doing
from fedloom.deployment.picture import ENDED, FILE, FORMAT, STOP, Changes, Member, Note, Phase, Picture, clean, plain
from fedloom.errors import FedloomError
from fedloom.events import (
    BestModel,
    ClientTrained,
    EarlyStopped,
    Evaluated,
    Event,
    Noted,
    ReplyMissing,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)

PAUSE: Final = 0.5
"""Seconds between two writes at least."""
PULSE: Final = 5.0
"""Seconds after which the file is written although nothing happened."""
_NOTES: Final = 20
_PACE: Final = 5
"""Rounds whose length says how long the rest will take."""
_HERE: Final = frozenset({"joined", "idle", "working"})
_GONE: Final = frozenset({"away", "refused", "revoked"})


class Board:
    """A sink of events; `member` tells what no event says. May be called from several threads.

    As a context manager it writes from a thread too, and says at the end how the block was left. Without, it writes
    only when it is called.

    Args:
        home: the server's folder; the file is `status.json` in it.
        invited: names of clients that may join.
        clock: the time of day, in seconds since 1970.
    """

    def __init__(self, home: Path, invited: Iterable[str] = (), clock: Callable[[], float] = time.time) -> None:
        self.home = home
        self._clock = clock
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._run: Picture | None = None
        self._round, self._done, self._attempt = 0, 0, 0
        self._last: Picture | None = None
        self._scores: dict[str, Picture] = {}
        self._members = {name: Member(name) for name in invited}
        self._notes: deque[Note] = deque(maxlen=_NOTES)
        self._ends: deque[tuple[int, float]] = deque(maxlen=_PACE + 1)
        self._asked: frozenset[int] = frozenset()
        self._answered: set[int] = set()
        self._phase: Phase = "starting"
        self._wanted: int | None = None
        self._why = ""
        self._started = self._updated = clock()
        self._written = 0.0
        self._dirty = True
        self._unwritable = False

    def __enter__(self) -> Self:
        self._write()
        self._thread = threading.Thread(target=self._keep, name="fedloom status", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._phase not in ENDED:
            self.stopped(_left_by(error))
        self._write()

    def __call__(self, event: Event) -> None:
        """Listen."""
        with self._lock:
            before = self._phase
            self._hear(event)
            due = self._due(at_once=self._phase != before or isinstance(event, RoundStarted | RoundFinished))
        if due:
            self._write()

    def member(self, name: str, **changes: Unpack[Changes]) -> None:
        """Something about one client. Without `seen`, it was heard of now if a state of one that is here is told, or
        more bytes came from it.
        """
        with self._lock:
            one = self._members.setdefault(name, Member(name))
            before = one.state
            heard = "state" in changes or changes.get("bytes_up", 0) > one.bytes_up
            for key, value in changes.items():
                setattr(one, key, clean(value) if isinstance(value, str) else value)
            if heard and "seen" not in changes and one.state in _HERE:
                one.seen = self._clock()
            if before == "working" and one.state == "idle" and one.number in self._asked:
                self._answered.add(one.number)
            due = self._due(at_once=one.state != before)
        if due:
            self._write()

    def forget(self, name: str) -> None:
        """Take a client off the board."""
        with self._lock:
            self._members.pop(name, None)
            due = self._due()
        if due:
            self._write()

    def waiting(self, wanted: int | None) -> None:
        """So many clients must be there before it goes on; None: they are. May be told again and again."""
        with self._lock:
            new, self._wanted = wanted != self._wanted, wanted
            due = new and self._due(at_once=True)
        if due:
            self._write()

    def stopped(self, why: str) -> None:
        """The server ends before the run does; `why` completes "stopped: ..."."""
        with self._lock:
            self._phase, self._wanted, self._why = "stopped", None, clean(why)
            self._due()
        self._write()

    def picture(self) -> Picture:
        """All of it, as an object for JSON that nobody else holds."""
        with self._lock:
            phase = "waiting" if self._wanted is not None and self._phase not in ENDED else self._phase
            picture: Picture = {
                "format": FORMAT,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": self._started,
                "updated": self._updated,
                "written": self._clock(),
                "phase": phase,
                "why": self._why,
                "stop_asked": phase not in ENDED and (self.home / STOP).exists(),
                "run": plain(self._run),
                "round": {"number": self._round, "attempt": self._attempt, "finished": self._done},
                "replies": {"asked": len(self._asked), "came": len(self._answered & self._asked)},
                "joined": {"wanted": self._wanted, "here": sum(m.state in _HERE for m in self._members.values())},
                "seconds_left": self._left(phase),
                "last_round": plain(self._last),
                "evaluation": plain(self._scores),
                "members": [plain(asdict(one)) for one in self._members.values()],
                "notes": [asdict(note) for note in self._notes],
            }
            return {**picture, "words": doing(picture)}

    def _hear(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._run = _some(event, "name", "folder", "algorithm", "model", "clients", "rounds")
                self._done = self._round = event.first_round
                self._phase = "starting" if event.first_round else "evaluating"
            case RoundStarted():
                self._round, self._attempt, self._phase = event.round, event.attempt, "round"
                self._begin(frozenset(event.cohort))
            case ClientTrained():
                self._counted(event)
            case ReplyMissing():
                self._answered.add(event.client)
                if (one := self._known(event.client, event.name)) is not None:
                    one.missing[event.reason] = one.missing.get(event.reason, 0) + 1
                    self._rest(one)
            case RoundFinished():
                self._last = _some(event, "round", "clients", "missing", "loss", "seconds", "bytes_down", "bytes_up")
                self._done, self._phase = event.round, "evaluating"
                self._ends.append((event.round, self._clock()))
            case Evaluated():
                self._scores[event.split] = {"round": event.round, "metrics": dict(event.metrics)}
            case BestModel():
                pass
            case EarlyStopped():
                self._say(f"{event.metric} has not improved for {event.patience} evaluations: stopped early")
            case Noted():
                self._say(event.message, event.level)
            case RunFinished():
                self._phase = "stopped" if event.status == "interrupted" else "finished"
                self._wanted, self._why = None, event.status.replace("_", " ")
            case _:
                pass

    def _begin(self, cohort: frozenset[int]) -> None:
        """A round, or another attempt at it: who is asked now works, unless it is known to be gone."""
        self._asked, self._answered = cohort, set()
        for one in self._members.values():
            if one.number in cohort and one.state not in _GONE:
                one.state = "working"
        if self._attempt:
            self._say(f"round {self._round}: too few replies, tried again ({self._attempt})", "warning")

    def _counted(self, event: ClientTrained) -> None:
        self._answered.add(event.client)
        one = self._known(event.client, event.name)
        if one is not None:
            one.rounds += 1
            one.loss = event.loss
            self._rest(one, heard=True)

    def _known(self, number: int, name: str) -> Member | None:
        """The member an event is about; None: the server's own worker."""
        if number < 0:
            return None
        one = self._members.setdefault(name, Member(name))
        one.number = number
        return one

    def _rest(self, one: Member, heard: bool = False) -> None:
        """A member whose reply was dealt with is idle; the server may know better by now."""
        if one.state in ("invited", "joined", "working"):
            one.state = "idle"
            if heard:
                one.seen = self._clock()

    def _say(self, message: str, level: str = "info") -> None:
        self._notes.append(Note(self._clock(), level, clean(message)))

    def _left(self, phase: str) -> float | None:
        """Seconds the rest of the run takes if rounds go on as the last few."""
        if self._run is None or phase in ENDED or len(self._ends) < 2:
            return None
        (first, begun), (last, ended) = self._ends[0], self._ends[-1]
        if last <= first:
            return None
        return (ended - begun) / (last - first) * max(0, int(self._run["rounds"]) - last)

    def _due(self, at_once: bool = False) -> bool:
        """Something changed; whether to write now, since it matters or the last time is long ago, or leave it to later.

        Written is after the lock is let go: a slow disk must not hold up who looks or tells.
        """
        self._updated, self._dirty = self._clock(), True
        return at_once or not 0 <= self._updated - self._written < PAUSE

    def _keep(self) -> None:
        """The thread: writes what was held back, and the time although nothing happened."""
        while not self._over.wait(PAUSE):
            if self._dirty or not 0 <= self._clock() - self._written < PULSE:
                self._write()

    def _write(self) -> None:
        """Replace the file. A disk that refuses is noted on the board and tried again: the run does not hang on it."""
        with self._writing:
            self._dirty = False
            picture = self.picture()
            try:
                atomic.write_text(self.home / FILE, json.dumps(picture, ensure_ascii=False) + "\n")
                self._unwritable = False
            except OSError as error:
                if not self._unwritable:
                    with self._lock:
                        self._say(f"{FILE} cannot be written: {error.strerror or error}", "warning")
                self._unwritable = True
            self._written = picture["written"]


def _some(event: Event, *names: str) -> Picture:
    return {name: getattr(event, name) for name in names}


def _left_by(error: BaseException | None) -> str:
    """How a block ended that was left without an end of the run; of bugs the type only."""
    if error is None:
        return "the server was closed"
    if isinstance(error, KeyboardInterrupt):
        return "from the keyboard"
    if isinstance(error, FedloomError):
        return str(error)
    return f"an error ({type(error).__name__}); see the server's own output"
