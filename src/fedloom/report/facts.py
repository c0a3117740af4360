"""What a report says of one run, drawn from its folder; no formatting, no pictures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedloom.folder import RunFolder
from fedloom.metrics.summary import better
from fedloom.recorder import Value

Rows: TypeAlias = Sequence[Mapping[str, Value]]
Points: TypeAlias = tuple[tuple[float, float], ...]
"""(round, value) in rising rounds; only values that exist and are finite."""

SPLITS = ("test", "validation", "personal", "global", "emulator")
"""Which split speaks for a run, best first."""
HEADLINES = ("preference_accuracy", "exact_match", "rouge_l", "accuracy", "loss")
"""Which metric speaks for a run, best first."""


@dataclass(frozen=True)
class Change:
    """A metric from its first to its last evaluation."""

    metric: str
    split: str
    points: Points

    @property
    def first(self) -> tuple[float, float]:
        """(round, value) of the first evaluation."""
        return self.points[0]

    @property
    def last(self) -> tuple[float, float]:
        """(round, value) of the last evaluation."""
        return self.points[-1]

    @property
    def best(self) -> tuple[float, float]:
        """(round, value) of the best evaluation, the earliest of equals."""
        best = self.points[0]
        for point in self.points[1:]:
            if better(self.metric, point[1], best[1]):
                best = point
        return best


@dataclass(frozen=True)
class Spread:
    """One metric of every client at the first and at the last evaluation that scored clients."""

    metric: str
    split: str
    first_round: float
    first: Mapping[str, float]
    last_round: float
    last: Mapping[str, float]


@dataclass(frozen=True)
class Facts:
    """One run."""

    label: str
    """How the run is called in this report; unique in it."""
    folder: str
    """The folder's own name, without the way to it."""
    status: str
    started: Mapping[str, Any]
    """The last RunStarted event; empty if there is none."""
    config: Mapping[str, Any]
    config_text: str
    env: Mapping[str, Any]
    rounds: Rows
    metrics: Rows
    clients: Rows
    holdings: Sequence[Mapping[str, Any]]
    missing: Mapping[str, int]
    notes: Sequence[str]
    retries: int
    """Rounds begun again because too few replies counted."""
    figures: Mapping[str, Points]
    """What the algorithm noted over rounds, by name."""
    own_models: int
    """Private models written to adapters/clients."""

    @property
    def splits(self) -> list[str]:
        """Splits that were evaluated, the one that speaks for the run first."""
        found = dict.fromkeys(str(row["split"]) for row in self.metrics)
        return sorted(found, key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))

    @property
    def rounds_done(self) -> int:
        """The last finished round."""
        return max((int(x) for x, _ in points(self.rounds, "clients")), default=0)

    @property
    def rounds_planned(self) -> int | None:
        """Rounds of the whole run."""
        planned = self.started.get("rounds", self.config.get("federation", {}).get("rounds"))
        return None if planned is None else int(planned)

    @property
    def seconds(self) -> float:
        """Time in rounds and evaluations, of all sessions together."""
        return total(self.rounds, "seconds") + total(self.metrics, "seconds")

    @property
    def client_count(self) -> int:
        """Clients of the federation, also those that never took part."""
        return int(self.started.get("clients", len(self.holdings)))

    def curve(self, metric: str, split: str) -> Points:
        """A column of metrics.csv over rounds."""
        return points([row for row in self.metrics if row["split"] == split], metric)

    def train_loss(self) -> Points:
        """Mean training loss of every round."""
        return points(self.rounds, "loss")

    def change(self, metric: str) -> Change | None:
        """The metric on the first split that has it; None if no split has a finite value."""
        for split in self.splits:
            curve = self.curve(metric, split)
            if curve:
                return Change(metric, split, curve)
        return None

    def worst_tenth(self, change: Change) -> Points:
        """The change's metric over the worst tenth of clients; nothing for the global rows, which are no client's."""
        return () if change.split == "global" else self.curve(f"{change.metric}_worst_decile", change.split)

    def headline(self) -> Change | None:
        """The change that speaks for the run; None if nothing was evaluated."""
        return next((change for metric in HEADLINES if (change := self.change(metric))), None)

    def spread(self) -> Spread | None:
        """Of the first metric and split that have values per client."""
        for metric in HEADLINES:
            for split in self.splits:
                found = _spread(self.clients, metric, split)
                if found:
                    return found
        return None


def read(folder: RunFolder, label: str) -> Facts:
    """Read all files of a run once."""
    events = folder.events()
    starts = [event for event in events if event["event"] == "RunStarted"]
    return Facts(
        label=label,
        folder=folder.path.resolve().name,
        status=folder.status,
        started=starts[-1] if starts else {},
        config=folder.config(),
        config_text=(folder.path / "config.yaml").read_text(encoding="utf-8"),
        env=folder.env(),
        rounds=folder.rounds(),
        metrics=folder.metrics(),
        clients=folder.clients(),
        holdings=folder.partition(),
        missing=folder.missing(),
        notes=folder.notes,
        retries=sum(event["event"] == "RoundStarted" and event["attempt"] > 0 for event in events),
        figures=_figures(events),
        own_models=sum(path.is_dir() for path in folder.path.glob("adapters/clients/*")),
    )


def points(rows: Rows, column: str) -> Points:
    """A column over rounds; of several rows of a round the last counts."""
    found = {number(row["round"]): row.get(column) for row in rows}
    return tuple(
        (x, y) for x, y in sorted(found.items()) if isinstance(y, float) and math.isfinite(y) and math.isfinite(x)
    )


def _figures(events: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Figures of all rounds that count: those a resume did over replace what was noted first."""
    found: dict[str, dict[float, float]] = {}
    for event in events:
        if event["event"] == "RunStarted":
            first = event["first_round"]
            found = {name: {x: y for x, y in known.items() if x <= first} for name, known in found.items()}
        elif event["event"] == "RoundFinished":
            for name, value in event.get("figures", {}).items():  # runs of earlier versions have none
                found.setdefault(name, {})[float(event["round"])] = float(value)
    finite = {
        name: tuple((x, y) for x, y in sorted(known.items()) if math.isfinite(y)) for name, known in found.items()
    }
    return {name: curve for name, curve in finite.items() if curve}


def total(rows: Rows, column: str) -> float:
    """Sum of a column, values that do not exist left out."""
    return math.fsum(number(row.get(column)) for row in rows)


def number(value: Value) -> float:
    """A field as a number; 0 where it is empty or text."""
    return value if isinstance(value, float) else 0.0


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; lists and empty sections stay values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(configs: Sequence[Mapping[str, Any]], ignored: Iterable[str]) -> dict[str, list[Any]]:
    """Settings that are not the same in all configurations, one value per configuration; None where absent."""
    flat = [flatten(config) for config in configs]
    names = sorted({name for one in flat for name in one} - set(ignored))
    rows = {name: [one.get(name) for one in flat] for name in names}
    return {name: values for name, values in rows.items() if len({_canonical(value) for value in values}) > 1}


def _canonical(value: object) -> str:
    """Text that is equal for equal values only: 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True, default=str)


def _spread(rows: Rows, metric: str, split: str) -> Spread | None:
    found: dict[float, dict[str, float]] = {}
    for row in rows:
        value = row.get(metric)
        if row["split"] == split and isinstance(value, float) and math.isfinite(value):
            found.setdefault(number(row["round"]), {})[str(row["client"])] = value
    if not found:
        return None
    first, last = min(found), max(found)
    return Spread(metric, split, first, found[first], last, found[last])
