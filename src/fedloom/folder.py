"""A run's folder: made once, never overwritten, read by the report, the chat and the export.

- config.yaml: the configuration, resolved; `fedloom run config.yaml` repeats the run
- env.json: versions, device, and "format": the version of this layout
- events.jsonl: every event (fedloom.events), one JSON object a line
- metrics.csv, clients.csv, rounds.csv: fedloom.recorder
- partition.json: {"clients": [{"name", "train", "validation", "test", "categories": {category: train rows}}]}
- checkpoints/, adapters/final/, report.html
"""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from fedloom.errors import UserError
from fedloom.recorder import Value, read_csv

FORMAT = 1
REQUIRED = ("config.yaml", "env.json")
UNFINISHED = "unfinished"


class RunFolder:
    """Reads one run folder.

    Args:
        path: the folder.
        new: it was just made and its files are still to come; nothing is checked.

    Raises:
        UserError: `path` is no run folder, or one of another format.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        if not new:
            self._check()

    def _check(self) -> None:
        path = self.path
        if not path.is_dir():
            raise UserError(f"{path} is not a run folder: there is no such folder. Runs are usually in runs/.")
        missing = [name for name in REQUIRED if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path} is not a run folder: {' and '.join(missing)} missing.{_runs_within(path)}")
        found = self.env().get("format")
        if found != FORMAT:
            raise UserError(
                f"{path} was written by another version of fedloom (format {found!r}, this version reads {FORMAT}). "
                "Use the version named in its env.json."
            )

    @classmethod
    def create(cls, parent: Path, name: str, fingerprint: str, now: datetime) -> "RunFolder":
        """Make the empty folder `parent/<YYYYMMDD-HHMMSS>-<name>-<6 hex>`; -2, -3, ... is added if it exists.

        The caller writes REQUIRED into it (env.json with "format": FORMAT); from then on it can be opened again.

        Args:
            parent: made if missing.
            name: the run's name, as checked by `RunConfig.name`.
            fingerprint: hexadecimal digest of the configuration; the first six digits are used.
            now: local time of the start.
        """
        stem = f"{now:%Y%m%d-%H%M%S}-{name}-{fingerprint[:6]}"
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = parent / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return cls(path, new=True)

    @property
    def name(self) -> str:
        """The run's name; several runs may share it, unlike `path.name`."""
        return str(self.config().get("run", {}).get("name", self.path.name))

    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        found = _parse_yaml(self.path / "config.yaml")
        if not isinstance(found, dict):
            raise UserError(f"{self.path / 'config.yaml'} holds no settings; it was changed by hand or is damaged.")
        return found

    def env(self) -> dict[str, Any]:
        """Versions, device and start of the run."""
        return _json_object(self.path / "env.json")

    def rounds(self) -> list[dict[str, Value]]:
        """rounds.csv; empty while no round has finished."""
        return self._table("rounds.csv")

    def metrics(self) -> list[dict[str, Value]]:
        """metrics.csv; empty while nothing was evaluated."""
        return self._table("metrics.csv")

    def clients(self) -> list[dict[str, Value]]:
        """clients.csv; empty while no client was evaluated."""
        return self._table("clients.csv")

    def partition(self) -> list[dict[str, Any]]:
        """Who holds how many rows of which category, a dictionary per client; empty if it was not written yet."""
        path = self.path / "partition.json"
        return list(_json_object(path).get("clients", [])) if path.exists() else []

    def events(self) -> list[dict[str, Any]]:
        """events.jsonl in order, without a last line that a killed process did not finish.

        Raises:
            UserError: a line before the last is no JSON object.
        """
        path = self.path / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        found: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            event = _event(line)
            if event is not None:
                found.append(event)
            elif number < len(lines):
                raise UserError(f"line {number} of {path} is no event; the file was changed by hand or is damaged.")
        return found

    @property
    def status(self) -> str:
        """How the run ended: finished, early_stopped, interrupted; unfinished if it runs, was killed or is resumed."""
        last = [event for event in self.events() if event["event"] in {"RunStarted", "RunFinished"}][-1:]
        return str(last[0].get("status", UNFINISHED)) if last else UNFINISHED

    @property
    def notes(self) -> list[str]:
        """Warnings, each once."""
        warnings = (e for e in self.events() if e["event"] == "Noted" and e["level"] == "warning")
        return list(dict.fromkeys(str(event["message"]) for event in warnings))

    def missing(self) -> dict[str, int]:
        """Replies that did not count, by reason; those of rounds a resume did over are counted once."""
        gone: list[tuple[int, str]] = []
        for event in self.events():
            if event["event"] == "RunStarted":
                gone = [(round, reason) for round, reason in gone if round <= event["first_round"]]
            elif event["event"] == "ReplyMissing":
                gone.append((event["round"], event["reason"]))
        return dict(Counter(reason for _, reason in gone))

    def _table(self, name: str) -> list[dict[str, Value]]:
        path = self.path / name
        try:
            return read_csv(path) if path.exists() else []
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}. It was changed by hand or is damaged.") from error


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None if the line holds none."""
    try:
        event = json.loads(line)
    except ValueError:  # also bytes that are not UTF-8
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); it was changed by hand or is damaged.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; it was changed by hand or is damaged.")
    return found


def _parse_yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({error}); it was changed by hand or is damaged.") from error


def _runs_within(path: Path) -> str:
    """A hint when the folder above the runs was given."""
    runs = sorted(child.name for child in path.iterdir() if (child / REQUIRED[0]).is_file())
    return f" It holds runs; name one of them, the latest is {path / runs[-1]}." if runs else ""
