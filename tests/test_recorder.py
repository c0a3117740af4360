"""The recorder's files: read back to the same bits, continued, and rewound."""

import math
from dataclasses import replace
from itertools import chain

import pytest

from fedloom.events import Evaluated, Noted, RoundFinished
from fedloom.recorder import FILES, Recorder, read_csv, rewind

FINISHED = RoundFinished(
    round=1, clients=3, missing=1, loss=0.1 + 0.2, examples=80, tokens=512, steps=10, skipped=0,
    lr=1e-3, bytes_down=2**40, bytes_up=7, seconds=0.5,
)  # fmt: skip


def evaluated(round: int, split: str = "test", loss: float = 1 / 3) -> Evaluated:
    clients = {name: {"examples": 4, "tokens": 9, "loss": loss} for name in ("7", 'a "b", c', "Zoë")}
    return Evaluated(round, split, {"loss": loss, "loss_std": 0.0}, clients if split == "test" else {}, seconds=2.0)


def record(folder, events, **options):
    recorder = Recorder(folder, **options)
    for event in events:
        recorder(event)
    recorder.close()


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def test_rows_are_read_back_to_the_same_bits(tmp_path):
    record(tmp_path, [evaluated(0), FINISHED, Noted("no row"), evaluated(1, loss=math.inf)])
    assert read_csv(tmp_path / "metrics.csv") == [
        {"round": 0, "split": "test", "loss": 1 / 3, "loss_std": 0.0, "seconds": 2.0},
        {"round": 1, "split": "test", "loss": math.inf, "loss_std": 0.0, "seconds": 2.0},
    ]
    (row,) = read_csv(tmp_path / "rounds.csv")
    assert row["loss"] == 0.1 + 0.2 and row["bytes_down"] == 2**40
    clients = read_csv(tmp_path / "clients.csv")
    assert [row["client"] for row in clients[:3]] == ["7", 'a "b", c', "Zoë"]
    assert list(clients[0]) == ["round", "split", "client", "examples", "tokens", "loss"]


def test_what_does_not_exist_is_empty(tmp_path):
    record(tmp_path, [replace(FINISHED, loss=None)])
    assert read_csv(tmp_path / "rounds.csv")[0]["loss"] is None
    assert set(contents(tmp_path)) == {"rounds.csv"}


def test_what_the_algorithm_noted_has_columns_of_its_own(tmp_path):
    """Drift and aggregation error, in every run, so that runs can be compared; and what else the first round notes."""
    noted = [{"drift": 0.1 + 0.2, "aggregation_error": 1e-300, "staleness": 3.0}, {}, {"drift": 0.5, "late": 1.0}]
    record(tmp_path, [replace(FINISHED, round=i, figures=figures) for i, figures in enumerate(noted)])
    rows = read_csv(tmp_path / "rounds.csv")
    assert [(row["drift"], row["aggregation_error"]) for row in rows] == [
        (0.1 + 0.2, 1e-300),
        (None, None),
        (0.5, None),
    ]
    assert list(rows[0])[-3:] == ["drift", "aggregation_error", "staleness"]
    assert [row["staleness"] for row in rows] == [3.0, None, None]
    assert {"figures", "late"}.isdisjoint(rows[0])


def test_every_row_is_on_disk_at_once(tmp_path):
    recorder = Recorder(tmp_path)
    recorder(FINISHED)
    assert len(read_csv(tmp_path / "rounds.csv")) == 1
    recorder.close()
    with pytest.raises(ValueError, match="closed"):
        recorder(FINISHED)


def test_columns_are_those_of_the_first_row(tmp_path):
    recorder = Recorder(tmp_path)
    recorder(evaluated(0))
    recorder(Evaluated(0, "global", {"loss": 1.0}, {}, 0.0))
    assert read_csv(tmp_path / "metrics.csv")[1]["loss_std"] is None
    with pytest.raises(ValueError, match="no column for rouge_l"):
        recorder(Evaluated(1, "test", {"rouge_l": 1.0}, {}, 0.0))
    recorder.close()
    assert len(read_csv(tmp_path / "metrics.csv")) == 2


def test_named_metrics_fix_the_columns_beforehand(tmp_path):
    first = Evaluated(0, "test", {}, {"a": {"examples": 0, "tokens": 0}}, 0.0)
    record(tmp_path, [first, evaluated(1)], metrics=["loss"])
    assert list(read_csv(tmp_path / "metrics.csv")[0]) == [
        "round", "split", "loss", "loss_mean", "loss_std", "loss_worst_decile", "seconds",
    ]  # fmt: skip
    assert read_csv(tmp_path / "clients.csv")[0]["loss"] is None


def test_a_resumed_recorder_goes_on_with_the_same_columns(tmp_path):
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    straight.mkdir()
    parts.mkdir()
    events = [evaluated(0), FINISHED, evaluated(1), evaluated(1, "global"), replace(FINISHED, round=2)]
    record(straight, events)
    record(parts, events[:2])
    record(parts, events[2:])
    assert contents(straight) == contents(parts)


def test_rewound_and_redone_equals_unbroken(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    rounds = [[replace(FINISHED, round=i), evaluated(i), evaluated(i, "global")] for i in range(1, 5)]
    record(straight, [evaluated(0), *chain(*rounds)])
    record(broken, [evaluated(0), *chain(*rounds[:3])])
    for name in (*FILES, "events.jsonl"):
        with (broken / name).open("ab") as file:  # killed in the middle of a line, and of a character
            file.write(b'3,test,"Zo\xc3')
    rewind(broken, 2)
    assert (broken / "events.jsonl").read_bytes() == b""
    record(broken, chain(*rounds[2:]))
    assert contents(straight) == contents(broken)
    assert sorted(path.name for path in broken.iterdir()) == sorted([*FILES, "events.jsonl"])


def test_an_unfinished_last_line_is_not_read(tmp_path):
    record(tmp_path, [FINISHED])
    with (tmp_path / "rounds.csv").open("a") as file:
        file.write("2,3")
    assert [row["round"] for row in read_csv(tmp_path / "rounds.csv")] == [1]


def test_rewinding_before_everything_keeps_the_header(tmp_path):
    record(tmp_path, [FINISHED])
    rewind(tmp_path, 0)
    assert read_csv(tmp_path / "rounds.csv") == []
    record(tmp_path, [FINISHED])
    assert len(read_csv(tmp_path / "rounds.csv")) == 1


def test_a_file_killed_in_its_header_is_begun_anew(tmp_path):
    (tmp_path / "rounds.csv").write_text("round,clie")
    rewind(tmp_path, 0)
    record(tmp_path, [FINISHED])
    assert read_csv(tmp_path / "rounds.csv")[0]["clients"] == 3


def test_a_damaged_row_is_an_error(tmp_path):
    (tmp_path / "rounds.csv").write_text("round,clients\n1\n2,3\n")
    with pytest.raises(ValueError, match="row 1"):
        read_csv(tmp_path / "rounds.csv")
    with pytest.raises(ValueError, match="row 1"):
        rewind(tmp_path, 1)
