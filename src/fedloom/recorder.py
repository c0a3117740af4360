"""The numbers of a run as three CSV files, written while it runs.

metrics.csv   round, split, the metrics of fedloom.metrics.summary.columns, seconds: a row per evaluation and split
clients.csv   round, split, client, examples, tokens, metrics: a row per evaluation, split and client
rounds.csv    the fields of events.RoundFinished, drift, aggregation_error and what else the algorithm notes in the
              first round: a row per round

Floats are written by repr, so that they are read back to the same bits; an empty field is a value that does not exist.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from fedloom import atomic
from fedloom.events import Evaluated, Event, RoundFinished
from fedloom.metrics.config import MetricName
from fedloom.metrics.summary import columns

Value: TypeAlias = float | str | None
FILES = ("metrics.csv", "clients.csv", "rounds.csv")
FIGURES = ("drift", "aggregation_error")
"""What algorithms note that always has a column of its own. What else the first round notes has one too; what only
later rounds note is in events.jsonl.
"""
TEXT_COLUMNS = frozenset({"split", "client"})
_COUNTS = ("examples", "tokens")


class Recorder:
    """A sink that appends to the three files of a run folder and flushes after every event.

    Columns are fixed when a file is begun: from `metrics` (the names that are evaluated) where given, else from the
    first evaluation. A later value without a column is a ValueError; a column without a value stays empty. A file that
    exists is continued with its own columns.
    """

    def __init__(self, folder: Path, metrics: Sequence[MetricName] | None = None) -> None:
        self._metrics = None if metrics is None else columns(metrics)
        self._per_client = None if metrics is None else [*_COUNTS, *metrics]
        self._tables = {name: _Table(folder / name) for name in FILES}

    def __call__(self, event: Event) -> None:
        """Write the event's row or rows, if it has any."""
        match event:
            case RoundFinished():
                row = {name: value for name, value in asdict(event).items() if name != "figures"}
                table = self._tables["rounds.csv"]
                known = table.header[len(row) :] if table.header else dict.fromkeys((*FIGURES, *event.figures))
                row |= {name: event.figures.get(name) for name in known}
                table.append([row], list(row))
            case Evaluated():
                self._evaluated(event)
            case _:
                pass

    def close(self) -> None:
        """Close the files; further events are an error."""
        for table in self._tables.values():
            table.close()

    def _evaluated(self, event: Evaluated) -> None:
        place: dict[str, Value] = {"round": event.round, "split": event.split}
        metrics = self._metrics or list(event.metrics)
        self._tables["metrics.csv"].append(
            [{**place, **event.metrics, "seconds": event.seconds}], ["round", "split", *metrics, "seconds"]
        )
        if event.clients:
            rows = [{**place, "client": name, **values} for name, values in event.clients.items()]
            per_client = self._per_client or list(dict.fromkeys(key for row in event.clients.values() for key in row))
            self._tables["clients.csv"].append(rows, ["round", "split", "client", *per_client])


def read_csv(path: Path) -> list[dict[str, Value]]:
    """The rows of a file the recorder wrote, by column: text for split and client, None where empty, else a float.

    A last line that a killed process did not finish is left out.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: a row has another number of fields than the header, or a field is no number.
    """
    header, rows = _parse(_whole_lines(path))
    return [
        {column: _value(column, text) for column, text in zip(header, row, strict=True)}
        for row in _checked(path, header, rows)
    ]


def rewind(folder: Path, round: int) -> None:
    """Drop every row of a later round, and a last line that a killed process did not finish (also of events.jsonl).

    Call it before the files are opened for appending: what follows an unfinished line would be lost with it. Each file
    is replaced in one step: a process killed meanwhile leaves the old file or the new one.
    """
    for name in FILES:
        path = folder / name
        if not path.exists():
            continue
        header, rows = _parse(_whole_lines(path))
        if not header:  # killed within the header: as if the file had not been begun
            path.unlink()
            continue
        at = header.index("round")
        kept = [row for row in _checked(path, header, rows) if int(row[at]) <= round]
        atomic.write_text(path, _lines([header, *kept]))
    events = folder / "events.jsonl"
    if events.exists():
        atomic.write_text(events, _whole_lines(events))


class _Table:
    """One CSV file that is appended to; not made before its first row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header = _parse(_whole_lines(path))[0] if path.exists() else []
        """Columns, once the file is begun."""
        self._file = path.open("a", encoding="utf-8", newline="") if self.header else None
        self._closed = False

    def append(self, rows: Sequence[Mapping[str, Value]], header: Sequence[str]) -> None:
        """Write rows by column name; `header` counts only when the file is begun."""
        if self._closed:
            raise ValueError(f"{self._path.name} is closed; no event may follow")
        begun = self._file is not None
        if not begun:
            self.header = list(header)
        unknown = sorted({column for row in rows for column in row} - set(self.header))
        if unknown:
            raise ValueError(f"{self._path} has no column for {', '.join(unknown)}; it has {', '.join(self.header)}")
        lines = [[_text(row.get(column)) for column in self.header] for row in rows]
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8", newline="")
        self._file.write(_lines(lines if begun else [self.header, *lines]))
        self._file.flush()

    def close(self) -> None:
        self._closed = True
        if self._file is not None:
            self._file.close()


def _text(value: Value) -> str:
    """The field for a value; float() first, because NumPy's floats have a repr of their own."""
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _value(column: str, text: str) -> Value:
    if column in TEXT_COLUMNS:
        return text
    return float(text) if text else None


def _whole_lines(path: Path) -> str:
    """The file's text up to the last end of a line; bytes first, as a kill may cut a character in two."""
    whole = path.read_bytes()
    return whole[: whole.rfind(b"\n") + 1].decode("utf-8")


def _lines(rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _parse(text: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows; the header is empty when the text is."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    return (rows[0], rows[1:]) if rows else ([], [])


def _checked(path: Path, header: Sequence[str], rows: list[list[str]]) -> list[list[str]]:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} of {path} has {len(row)} fields, its header {len(header)}")
    return rows
