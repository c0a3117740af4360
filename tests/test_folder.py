"""Run folders: made without overwriting, opened with a check, read."""

import json
from datetime import datetime

import pytest

from fedloom.errors import UserError
from fedloom.events import (
    Evaluated,
    JsonLines,
    Noted,
    ReplyMissing,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from fedloom.folder import FORMAT, RunFolder
from fedloom.recorder import Recorder

NOW = datetime(2025, 3, 1, 9, 5, 7)
STARTED = RunStarted("demo", "runs/demo", "fedavg", "nano", "reference", "cpu", "float32", 100, 10, 4, 4, 3)
FINISHED = RunFinished(3, 9.0, "finished")


def write(path, events=(), **env):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text("run:\n  name: demo\nseed: 3\n")
    (path / "env.json").write_text(json.dumps({"format": FORMAT, "python": "3.11", **env}))
    log, recorder = JsonLines(path / "events.jsonl"), Recorder(path)
    for event in events:
        log(event)
        recorder(event)
    log.close()
    recorder.close()
    return path


def test_create_names_the_folder_and_never_overwrites(tmp_path):
    runs = tmp_path / "deep" / "runs"
    made = [RunFolder.create(runs, "demo", "abcdef0123", NOW).path for _ in range(3)]
    assert [path.name for path in made] == [
        "20250301-090507-demo-abcdef", "20250301-090507-demo-abcdef-2", "20250301-090507-demo-abcdef-3",
    ]  # fmt: skip
    assert all(path.is_dir() and not list(path.iterdir()) for path in made)
    assert RunFolder(write(made[0])).config()["seed"] == 3


def test_opening_nothing_or_something_else_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        RunFolder(tmp_path / "gone")
    with pytest.raises(UserError, match=r"config\.yaml and env\.json missing"):
        RunFolder(tmp_path)
    path = write(tmp_path / "run")
    with pytest.raises(UserError, match=f"holds runs.*{path.name}"):
        RunFolder(tmp_path)
    (path / "env.json").unlink()
    with pytest.raises(UserError, match=r"run folder: env\.json missing"):
        RunFolder(path)


def test_another_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"written by another version .*format 2"):
        RunFolder(write(tmp_path / "run", format=2))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_env_is_named(tmp_path, text):
    path = write(tmp_path / "run")
    (path / "env.json").write_text(text)
    with pytest.raises(UserError, match=r"env\.json"):
        RunFolder(path)


def test_a_damaged_config_is_named(tmp_path):
    path = write(tmp_path / "run")
    for text in ("", "a: [", "- 1"):
        (path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml"):
            RunFolder(path).config()


def test_tables_and_partition(tmp_path):
    finished = RoundFinished(1, 4, 0, 0.5, 8, 64, 2, 0, 0.1, 100, 200, 1.5)
    evaluated = Evaluated(0, "test", {"loss": 2.0}, {"a": {"loss": 2.0}}, 0.1)
    folder = RunFolder(write(tmp_path / "run", [evaluated, finished]))
    assert folder.rounds()[0]["bytes_up"] == 200
    assert folder.metrics()[0]["loss"] == folder.clients()[0]["loss"] == 2.0
    assert folder.partition() == []
    (folder.path / "partition.json").write_text('{"clients": [{"name": "a"}]}')
    assert folder.partition() == [{"name": "a"}]
    (folder.path / "rounds.csv").write_text("round,clients\n1\n")
    with pytest.raises(UserError, match=r"rounds\.csv cannot be read"):
        folder.rounds()


def test_an_empty_run_reads_as_empty(tmp_path):
    folder = RunFolder(write(tmp_path / "run"))
    (folder.path / "events.jsonl").unlink()
    assert (folder.name, folder.status, folder.notes, folder.missing()) == ("demo", "unfinished", [], {})
    assert folder.rounds() == folder.metrics() == folder.clients() == folder.events() == []


def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_an_error(tmp_path):
    folder = RunFolder(write(tmp_path / "run", [STARTED]))
    path = folder.path / "events.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"event": "RoundSta')
    assert [event["event"] for event in folder.events()] == ["RunStarted"]
    path.write_text('{"event": "RoundSta\n' + whole)
    with pytest.raises(UserError, match="line 1"):
        folder.events()


@pytest.mark.parametrize(
    "events, status",
    [
        ([STARTED], "unfinished"),
        ([STARTED, FINISHED], "finished"),
        ([STARTED, RunFinished(1, 1.0, "interrupted")], "interrupted"),
        ([STARTED, RunFinished(1, 1.0, "interrupted"), STARTED], "unfinished"),
        ([STARTED, RunFinished(1, 1.0, "interrupted"), STARTED, FINISHED], "finished"),
    ],
)
def test_status_is_that_of_the_last_start(tmp_path, events, status):
    assert RunFolder(write(tmp_path / "run", events)).status == status


def test_notes_are_warnings_once(tmp_path):
    notes = [Noted("slow", "warning"), Noted("hello"), Noted("slow", "warning"), Noted("odd", "warning")]
    assert RunFolder(write(tmp_path / "run", notes)).notes == ["slow", "odd"]


def test_missing_replies_by_reason_count_redone_rounds_once(tmp_path):
    """Round 3 failed for client 1, was rewound by a resume after round 2, and failed for client 2 instead."""
    again = RunStarted(**{**STARTED.__dict__, "first_round": 2})
    events = [
        STARTED,
        ReplyMissing(2, 0, "a", "late", ""),
        ReplyMissing(3, 1, "b", "failed", ""),
        again,
        ReplyMissing(3, 2, "c", "late", ""),
    ]
    assert RunFolder(write(tmp_path / "run", events)).missing() == {"late": 2}
