"""Events: every kind reaches every sink and the log, one whole line each."""

import dataclasses
import json
import typing

import pytest

from fedloom import events
from fedloom.events import (
    BestModel,
    CheckpointSaved,
    ClientTrained,
    EarlyStopped,
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
    record,
)

NAME = 'Zoë "7",\nsecond\u2028line'
EXAMPLES: list[Event] = [
    RunStarted(NAME, "runs/x", "fedavg", "nano", "reference", "cpu", "float32", 10, 2, 5, 4, 3),
    RoundStarted(1, (0, 3), 2),
    ClientTrained(1, 3, NAME, 8, 90, 2, 1, 0.1 + 0.2),
    ReplyMissing(1, 0, NAME, "late", "after the deadline"),
    RoundFinished(1, 1, 1, None, 8, 90, 2, 1, 1e-3, 2**40, 7, 0.5),
    RoundFinished(2, 1, 1, None, 8, 90, 2, 1, 1e-3, 2**40, 7, 0.5, {"drift": 0.1 + 0.2, "staleness": 2.0}),
    Evaluated(1, "test", {"loss": 1 / 3}, {NAME: {"loss": 1 / 3}}, 0.25),
    BestModel(1, "loss", 1 / 3),
    CheckpointSaved(1, "runs/x/checkpoints/round-0001", 0.1),
    EarlyStopped(1, "loss", 3),
    Noted(NAME, "warning"),
    RunFinished(1, 2.5, "finished"),
]


def kind(event):
    return type(event).__name__


def test_every_kind_of_event_is_in_the_union():
    """A new event that is forgotten in `Event` would not be typed for the sinks."""
    declared = {c for c in vars(events).values() if dataclasses.is_dataclass(c) and c is not Events}
    assert set(typing.get_args(Event)) == declared == {type(event) for event in EXAMPLES}


@pytest.mark.parametrize("event", EXAMPLES, ids=kind)
def test_events_do_not_change(event):
    field = dataclasses.fields(event)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, field, 0)


@pytest.mark.parametrize("event", EXAMPLES, ids=kind)
def test_a_record_holds_the_kind_the_time_and_every_field(event):
    found = record(event)
    assert found.pop("event") == type(event).__name__
    assert found.pop("time") > 1.7e9
    assert found == dataclasses.asdict(event)


@pytest.mark.parametrize("event", EXAMPLES, ids=kind)
def test_the_log_brings_every_field_back(event, tmp_path):
    log = JsonLines(tmp_path / "events.jsonl")
    log(event)
    (line,) = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()  # one line whatever the names hold
    found = json.loads(line)
    wanted = json.loads(json.dumps(dataclasses.asdict(event)))  # tuples are lists in JSON
    assert {name: found[name] for name in wanted} == wanted
    log.close()


def test_sinks_hear_everything_in_order():
    heard = []
    tell = Events([lambda e: heard.append(("first", e)), lambda e: heard.append(("second", e))])
    tell(EXAMPLES[0])
    tell(EXAMPLES[1])
    assert heard == [(who, e) for e in EXAMPLES[:2] for who in ("first", "second")]


def test_two_runs_do_not_share_their_sinks():
    one, other = Events(), Events()
    one.sinks.append(print)
    assert other.sinks == []


def test_a_line_is_on_disk_as_soon_as_it_is_said(tmp_path):
    path = tmp_path / "events.jsonl"
    log = JsonLines(path)
    for count, event in enumerate(EXAMPLES, start=1):
        log(event)
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n")
        assert text.count("\n") == count
    log.close()


def test_a_log_is_continued(tmp_path):
    for event in EXAMPLES[:2]:
        log = JsonLines(tmp_path / "events.jsonl")
        log(event)
        log.close()
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["RunStarted", "RoundStarted"]


def test_nothing_is_said_after_the_end(tmp_path):
    log = JsonLines(tmp_path / "events.jsonl")
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log(EXAMPLES[0])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_line_is_json_whatever_the_numbers(value, tmp_path):
    """A diverged model's perplexity is infinite; RFC 8259 knows no Infinity, and other readers stumble over it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    log = JsonLines(tmp_path / "events.jsonl")
    log(Evaluated(1, "test", {"perplexity": value}, {"client-0": {"perplexity": value}}, 0.1))
    log.close()
    found = json.loads((tmp_path / "events.jsonl").read_text(), parse_constant=refuse)
    assert found["metrics"]["perplexity"] == found["clients"]["client-0"]["perplexity"] == repr(value)
    assert repr(float(found["metrics"]["perplexity"])) == repr(value)
