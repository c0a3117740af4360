"""What happens in a run, as typed events. Sinks (files, progress bars, trackers) listen; nothing else knows them.

Every number of a report comes from here. Times are seconds of wall clock; sizes are bytes of the wire format.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeAlias


@dataclass(frozen=True)
class RunStarted:
    """Everything is built; the first round is about to begin."""

    name: str
    folder: str
    algorithm: str
    model: str
    engine: str
    """Which engine trains, and why it was chosen."""
    device: str
    dtype: str
    """The base's number format; trainable numbers are float32."""
    base_parameters: int
    trainable_parameters: int
    clients: int
    cohort: int
    """Clients asked in a round."""
    rounds: int
    first_round: int = 0
    """Rounds already behind us (more than 0 after a resume)."""


@dataclass(frozen=True)
class RoundStarted:
    """The first task of a round, or of another attempt at it, is on its way."""

    round: int
    """Counted from 1."""
    cohort: tuple[int, ...]
    """Who is asked; -1 is the server's own worker."""
    attempt: int = 0
    """How often this round failed for want of replies before."""


@dataclass(frozen=True)
class ClientTrained:
    """One client's reply counted."""

    round: int
    client: int
    name: str
    examples: int
    tokens: int
    """What the loss is a mean over: labelled tokens trained on, or rows, or pairs."""
    steps: int
    skipped: int
    """Steps skipped because loss or gradient was not finite, or there was nothing to learn."""
    loss: float | None
    """Mean over steps of a batch's loss, a mean over tokens, rows or pairs; None when no step was taken."""


@dataclass(frozen=True)
class ReplyMissing:
    """One client's reply did not count."""

    round: int
    client: int
    name: str
    reason: str
    """silent, late, failed, nonfinite or refused."""
    detail: str


@dataclass(frozen=True)
class RoundFinished:
    """A round's new state exists."""

    round: int
    clients: int
    missing: int
    loss: float | None
    """Example-weighted mean training loss of the clients that counted."""
    examples: int
    tokens: int
    steps: int
    skipped: int
    lr: float
    """Base learning rate of the round's local training."""
    bytes_down: int
    """Summed over the clients asked."""
    bytes_up: int
    """Summed over the clients that replied."""
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the algorithm noted, such as drift and aggregation_error."""


@dataclass(frozen=True)
class Evaluated:
    """One split was evaluated after `round` rounds (0: before the first)."""

    round: int
    split: str
    """test or validation (every client scores what it would use itself on its own rows), or global; emulator: as test,
    where the model that speaks for the run is the owner's, and clients have an emulator of it."""
    metrics: Mapping[str, float]
    """Summary over clients: metrics of all rows together, and spreads such as exact_match_worst_decile."""
    clients: Mapping[str, Mapping[str, float]]
    """Per client name; empty for the global set."""
    seconds: float


@dataclass(frozen=True)
class BestModel:
    """The named metric is better than ever before."""

    round: int
    metric: str
    value: float


@dataclass(frozen=True)
class CheckpointSaved:
    """A resumable checkpoint is on disk."""

    round: int
    path: str
    seconds: float


@dataclass(frozen=True)
class EarlyStopped:
    """The named metric has not improved for `patience` evaluations."""

    round: int
    metric: str
    patience: int


@dataclass(frozen=True)
class Noted:
    """Something a person should know; not an error."""

    message: str
    level: str = "info"
    """info or warning."""


@dataclass(frozen=True)
class RunFinished:
    """The run ended in good order."""

    round: int
    seconds: float
    status: str
    """finished, early_stopped or interrupted."""


Event: TypeAlias = (
    RunStarted
    | RoundStarted
    | ClientTrained
    | ReplyMissing
    | RoundFinished
    | Evaluated
    | BestModel
    | CheckpointSaved
    | EarlyStopped
    | Noted
    | RunFinished
)
Sink: TypeAlias = Callable[[Event], None]


@dataclass
class Events:
    """Hands each event to every sink, in order."""

    sinks: list[Sink] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Pass it on."""
        for sink in self.sinks:
            sink(event)


def record(event: Event) -> dict[str, Any]:
    """The event as a flat JSON object with its kind and the time of day (seconds since 1970).

    JSON has no infinite numbers and no NaN: they become the texts "inf", "-inf" and "nan".
    """
    return {"event": type(event).__name__, "time": round(time.time(), 3), **_plain(asdict(event))}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(_plain(item) for item in value) if isinstance(value, list | tuple) else value


class JsonLines:
    """Writes each event as one line of JSON and flushes, so that a killed run leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write it down."""
        self._file.write(json.dumps(record(event)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; further events are an error."""
        self._file.close()
