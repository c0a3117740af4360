"""What a person sees while a run goes on: bars on a terminal, one line a round elsewhere, JSON for programs.

Each view is a sink (fedloom.events) and a context manager. None of them changes the run.
"""

import json
import math
import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fedloom.cli import wording
from fedloom.events import (
    BestModel,
    CheckpointSaved,
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
    record,
)

WIDTH: Final = 80
_BEFORE_NOTE: Final = len("rounds ") + 1 + 10 + 1 + len("/") + 1
"""Columns of a bar's line before its note, but for the two numbers of rounds."""


class View(Protocol):
    """A sink with a beginning and an end."""

    def __call__(self, event: Event) -> None:
        """Show the event."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view(console: Console, quiet: bool = False, as_json: bool = False) -> View:
    """The view that fits: JSON lines, warnings only, bars on a terminal, else plain lines."""
    if as_json:
        return Json(sys.stdout)
    if quiet:
        return Lines(console, quiet=True)
    return Bars(console) if console.is_terminal else Lines(console)


@dataclass
class Watch:
    """Remembers where the run is, for messages after it ended in whatever way."""

    folder: str | None = None
    resumable: str | None = None
    """The folder, once it holds a checkpoint."""

    def __call__(self, event: Event) -> None:
        """Listen."""
        match event:
            case RunStarted():
                self.folder = event.folder
            case CheckpointSaved():
                self.resumable = self.folder


class Json:
    """Every event as one line of JSON."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, event: Event) -> None:
        """Write the event."""
        self._file.write(json.dumps(record(event)) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()


@dataclass
class _Pace:
    """Time per round, to say what is left."""

    rounds: int = 0
    seconds: list[float] = field(default_factory=list)

    def left(self, event: RoundFinished) -> str:
        """Time left after this round, from the mean of the last five."""
        self.seconds = [*self.seconds[-4:], event.seconds]
        remaining = (self.rounds - event.round) * sum(self.seconds) / len(self.seconds)
        return f"{wording.duration(remaining)} left" if event.round < self.rounds else ""


class Lines:
    """One line a round and one an evaluation; with `quiet`, warnings only."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._pace = _Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Print the event, if it is worth a line."""
        match event:
            case Noted(level="warning"):
                self._say(f"warning: {event.message}", even_if_quiet=True)
            case Noted():
                self._say(event.message)
            case ReplyMissing():
                self._say(wording.missing(event), even_if_quiet=True)
            case RunStarted():
                self._pace.rounds = event.rounds
                for line in wording.headline(event):
                    self._say(line)
            case RoundFinished():
                left = self._pace.left(event)
                line = f"round {event.round:>3}/{self._pace.rounds}  {wording.finished(event)}  {left}".rstrip()
                self._say(_with_room(line, drift(event), WIDTH))
            case Evaluated():
                self._say(wording.evaluated(event))
            case RoundStarted(attempt=again) if again:
                self._say(f"round {event.round}: too few replies, tried again ({again})", even_if_quiet=True)
            case EarlyStopped():
                self._say(f"{event.metric} has not improved for {event.patience} evaluations: stopped early")
            case _:
                pass

    def _say(self, text: str, even_if_quiet: bool = False) -> None:
        if even_if_quiet or not self._quiet:
            plainly(self._console, text)


class Bars:
    """One bar for the rounds, one for the clients of the round; evaluations and warnings scroll above them."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<7}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._lines = Lines(console)
        self._pace = _Pace()
        self._metric = ""
        self._loss = ""
        self._speed = ""
        self._drift = ""
        self._rounds: TaskID | None = None
        self._clients: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._clients is not None:
            self._progress.remove_task(self._clients)
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Move the bars."""
        if not isinstance(event, RoundFinished):
            self._lines(event)
        match event:
            case RunStarted():
                self._pace.rounds = event.rounds
                add = self._progress.add_task
                self._rounds = add("rounds", total=event.rounds, completed=event.first_round, note="")
                self._clients = add("clients", total=None, note="scoring")
            case RoundStarted():
                self._begin(len(event.cohort))
            case ClientTrained() | ReplyMissing():
                self._advance(event.name)
            case RoundFinished():
                self._loss = wording.loss(event)
                self._drift = drift(event)
                self._speed = f"{wording.speed(event)}  {self._pace.left(event)}".strip()
                self._rest(event.round)
            case Evaluated():
                best = wording.main_metric(event.metrics)
                if best is not None and event.split not in ("global", "emulator"):
                    self._metric = f"{best[0]} {wording.number(*best)}"
                    self._note()
            case BestModel() | RunFinished() | _:
                pass

    def _begin(self, cohort: int) -> None:
        if self._clients is not None:
            self._progress.reset(self._clients, total=cohort, note="")

    def _advance(self, name: str) -> None:
        if self._clients is not None:
            self._progress.update(self._clients, advance=1, note=name)

    def _rest(self, done: int) -> None:
        """Between rounds the server averages, evaluates and writes the checkpoint."""
        if self._rounds is not None and self._clients is not None:
            self._progress.update(self._rounds, completed=done)
            self._progress.update(self._clients, note="averaging, scoring")
        self._note()

    def _note(self) -> None:
        if self._rounds is not None:
            note = "  ".join(part for part in (self._loss, self._metric, self._speed) if part)
            room = min(WIDTH, self._progress.console.width) - _BEFORE_NOTE - 2 * len(str(self._pace.rounds))
            self._progress.update(self._rounds, note=_with_room(note, self._drift, room))


def drift(event: RoundFinished) -> str:
    """How far clients ended from their mean, against how far that mean moved; empty where nothing was noted."""
    value = event.figures.get("drift")
    if value is None or not math.isfinite(value):
        return ""
    return f"drift {value:.2g}" if value < 100 else f"drift {value:.0f}"


def _with_room(text: str, more: str, width: int) -> str:
    """Both, or the first alone where they would not fit."""
    return f"{text}  {more}" if more and len(text) + 2 + len(more) <= width else text


def plainly(console: Console, text: str) -> None:
    """Print text as it is: no markup, no colours of its own, wrapped by the terminal only."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=not console.is_terminal)
