"""Made-up runs in the format of a run folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from fedloom.events import Event, JsonLines, ReplyMissing, RunFinished
from fedloom.folder import FORMAT
from fedloom.recorder import Recorder
from report.made_up import NAMES, evaluation, finished, started

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path) -> MakeRun:
    """make(name, clients=["a", "b"], rounds=4, done=4, every=2, figures={"drift": [...]}, ...) -> the run's folder."""

    def make(
        name: str = "demo",
        clients: Sequence[str] = ("a", "b"),
        rounds: int = 4,
        done: int = 4,
        every: int | None = 2,
        status: str | None = "finished",
        names=NAMES,
        config: dict | None = None,
        extra: Sequence[Event] = (),
        place: str = "",
        figures: Mapping[str, Sequence[float]] | None = None,
    ) -> Path:
        folder = tmp_path / "runs" / place / name
        folder.mkdir(parents=True)
        settings = {"run": {"name": name}, "federation": {"rounds": rounds}, **(config or {})}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "env.json").write_text(json.dumps({"format": FORMAT, "python": "3.11", "started": name}))
        holdings = [{"name": c, "train": 5, "validation": 0, "test": 1, "categories": {f"of {c}": 5}} for c in clients]
        (folder / "partition.json").write_text(json.dumps({"clients": holdings}))
        events: list[Event] = [started(name, len(clients), rounds), *extra]
        if every is not None:
            events.append(evaluation(0, clients, names=names))
        for round in range(1, done + 1):
            noted = {key: values[round - 1] for key, values in (figures or {}).items()}
            events.append(finished(round, len(clients), figures=noted))
            if every is not None and round % every == 0:
                events.append(evaluation(round, clients, names=names))
        if status is not None:
            events.append(RunFinished(done, 9.0, status))
        log, recorder = JsonLines(folder / "events.jsonl"), Recorder(folder)
        for event in events:
            log(event)
            recorder(event)
        log.close()
        recorder.close()
        return folder

    return make


@pytest.fixture
def missing() -> ReplyMissing:
    return ReplyMissing(1, 0, "a", "late", "made up")
