"""A stand-in for fedloom.experiment: no model, no data, but the events and files of a run."""

import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import fedloom
from fedloom.config import Config, dump
from fedloom.events import (
    BestModel,
    CheckpointSaved,
    ClientTrained,
    Evaluated,
    Event,
    Events,
    JsonLines,
    Noted,
    ReplyMissing,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    Sink,
)
from fedloom.folder import RunFolder
from fedloom.recorder import Recorder


@dataclass(frozen=True)
class Run:
    folder: Path
    status: str
    metrics: dict[str, float]


def play(folder: str, rounds: int = 3, clients: int = 2) -> Iterator[Event]:
    """The events of a small run: exact match goes from 0 to 0.9, the loss from 2.0 down."""
    yield RunStarted("toy", folder, "fedavg", "nano", "reference (asked for)", "cpu", "float32", 2_345_678, 123_456,
                     clients, clients, rounds)  # fmt: skip
    yield _evaluated(0, rounds)
    yield Noted("three rows are too long")
    yield Noted("lr looks [high] to me", "warning")
    for number in range(1, rounds + 1):
        yield RoundStarted(number, tuple(range(clients)))
        for client in range(clients):
            if number == 2 and client == 1:
                yield ReplyMissing(number, client, f"client-{client}", "nonfinite", "loss is NaN in step 3")
            else:
                yield ClientTrained(number, client, f"client-{client}", 80, 900, 8, 0, 2.0 / number)
        missing = int(number == 2)
        yield RoundFinished(number, clients - missing, missing, 2.0 / number, 160, 1800, 16, 0, 1e-3, 100, 100, 0.5)
        yield CheckpointSaved(number, f"{folder}/checkpoints/round-{number:04d}", 0.01)
        yield _evaluated(number, rounds)
        yield BestModel(number, "loss", 2.0 / number)
    yield RunFinished(rounds, 1.5, "finished")


def _evaluated(number: int, rounds: int) -> Evaluated:
    right = 0.9 * number / rounds
    metrics = {"loss": 2.0 / (number + 1), "exact_match": right, "exact_match_worst_decile": right / 2}
    return Evaluated(number, "test", metrics, {"client-0": {"examples": 4, "loss": 1.0}}, 0.1)


@dataclass
class StandIn:
    """What `fedloom.experiment` does when a command calls it."""

    folder: Path
    before_end: Callable[[], None] = lambda: None
    before_begin: Callable[[], None] = lambda: None
    status: str = "finished"
    configs: list[Config] = field(default_factory=list)
    resumed: list[Path] = field(default_factory=list)

    def run(self, config: Config, sinks: Sequence[Sink] = ()) -> Run:
        self.configs.append(config)
        self.before_begin()
        made = RunFolder.create(self.folder, config.run.name, "abcdef0", datetime(2026, 1, 2, 3, 4, 5)).path
        (made / "config.yaml").write_text(dump(config))
        (made / "env.json").write_text(json.dumps({"format": 1, "fedloom": "0"}))
        (made / "partition.json").write_text('{"clients": []}')
        return self._play(made, sinks)

    def resume(self, folder: Path, sinks: Sequence[Sink] = (), workers: int | None = None) -> Run:
        self.resumed.append(folder)
        return self._play(folder, sinks)

    def _play(self, folder: Path, sinks: Sequence[Sink]) -> Run:
        files: list[Any] = [JsonLines(folder / "events.jsonl"), Recorder(folder)]
        events = Events([*files, *sinks])
        for event in play(str(folder)):
            if isinstance(event, RunFinished):
                self.before_end()
            events(event)
        for file in files:
            file.close()
        return Run(folder, self.status, {"loss": 0.5})


@pytest.fixture
def story() -> Callable[..., Iterator[Event]]:
    """The events of a small run."""
    return play


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Commands that train find this instead of the real thing."""
    stand_in = StandIn(tmp_path / "runs")
    module = types.ModuleType("fedloom.experiment")
    module.run, module.resume, module.Run = stand_in.run, stand_in.resume, Run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fedloom.experiment", module)
    monkeypatch.setattr(fedloom, "experiment", module, raising=False)
    return stand_in
