"""The bars of a terminal, drawn into memory."""

import io
import re

import pytest
from rich.console import Console

from fedloom.cli import wording
from fedloom.cli.progress import Bars, Lines, drift, view
from fedloom.events import RoundFinished, RunStarted


@pytest.fixture
def drawn(story):
    """Plays a story on a terminal of 80 columns and gives every line that ever stood there."""

    def draw(**how):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=80)
        with Bars(console) as bars:
            for event in story("runs/20260102-030405-toy-abcdef", **how):
                bars(event)
                bars._progress.refresh()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n").splitlines()

    return draw


def test_the_bars_count_rounds_and_clients(drawn):
    lines = drawn()
    assert any(re.search(r"rounds .* 2/3 loss 1\.000 .*exact_match 30\.0 %", line) for line in lines)
    assert any(re.search(r"clients .* 1/2 client-0", line) for line in lines)
    assert any(line.startswith("round   3  test: loss 0.500, exact_match 90.0 %") for line in lines)


def test_a_warning_scrolls_above_the_bars_as_it_is(drawn):
    assert any(line.rstrip() == "warning: lr looks [high] to me" for line in drawn())


def test_nothing_is_wider_than_80_columns_even_with_large_numbers(drawn):
    assert max(len(line.rstrip()) for line in drawn(rounds=100, clients=12)) <= 80


def test_a_terminal_gets_bars_and_a_file_lines():
    assert isinstance(view(Console(file=io.StringIO(), force_terminal=True)), Bars)
    assert isinstance(view(Console(file=io.StringIO())), Lines)


@pytest.mark.parametrize("seconds, text", [(0.4, "0:00"), (59.6, "1:00"), (65, "1:05"), (7387, "2:03:07")])
def test_durations(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    "value, text", [(999, "999"), (9999, "9999"), (12_345, "12.3 k"), (1_234_567, "1.2 M"), (7_000_000_000, "7.0 B")]
)
def test_counts(value, text):
    assert wording.count(value) == text


@pytest.mark.parametrize(
    "metric, value, text",
    [("loss", 0.51234, "0.512"), ("perplexity", 123456.7, "1.235e+05"), ("exact_match_worst_decile", 0.5, "50.0 %")],
)
def test_numbers(metric, value, text):
    assert wording.number(metric, value) == text


def test_a_round_without_a_step_has_no_loss_and_no_speed():
    event = RoundFinished(1, 0, 2, None, 0, 0, 0, 0, 1e-3, 0, 0, 0.0)
    assert wording.finished(event) == "no step taken  2 missing"


def round_of(seconds=0.5, examples=160, **figures):
    return RoundFinished(2, 1, 1, 1.0, examples, 1800, 16, 0, 1e-3, 100, 100, seconds, figures)


@pytest.mark.parametrize(
    "figures, text",
    [
        ({"drift": 2.8598}, "drift 2.9"),
        ({"drift": 0.0}, "drift 0"),
        ({"drift": 1234.5}, "drift 1234"),
        ({"drift": float("inf")}, ""),
        ({"drift": float("nan")}, ""),
        ({"staleness": 1.0}, ""),
    ],
)
def test_drift_is_short_and_left_out_where_it_says_nothing(figures, text):
    assert drift(round_of(**figures)) == text


def lines_of(event, rounds):
    file = io.StringIO()
    lines = Lines(Console(file=file, width=80))
    lines(RunStarted("toy", "x", "fedavg", "nano", "reference", "cpu", "float32", 9, 1, 2, 2, rounds))
    lines(event)
    return file.getvalue().splitlines()[-1]


def test_a_rounds_line_ends_with_its_drift():
    assert lines_of(round_of(drift=2.86), 2) == "round   2/2  loss 1.000  320 ex/s  1 missing  drift 2.9"
    assert lines_of(round_of(), 2) == "round   2/2  loss 1.000  320 ex/s  1 missing"


def test_drift_gives_way_where_there_is_no_room():
    long = lines_of(round_of(2e7, 10**24, drift=2.86), 10**9)
    assert "drift" not in long
    assert len(long) > 80 - len("  drift 2.9")


def test_the_bar_shows_drift_while_it_fits(story):
    """The note of the bar has 80 columns less what stands before it."""
    file = io.StringIO()
    with Bars(Console(file=file, force_terminal=True, width=80)) as bars:
        bars(RunStarted("toy", "x", "fedavg", "nano", "reference", "cpu", "float32", 9, 1, 2, 2, 100))
        bars(round_of(drift=2.86))
        (short,) = (task.fields["note"] for task in bars._progress.tasks if task.description == "rounds")
        bars._metric = "exact_match 30.0 %"
        bars(round_of(4000.0, drift=2.86))
        (full,) = (task.fields["note"] for task in bars._progress.tasks if task.description == "rounds")
    assert short == "loss 1.000  320 ex/s  0:49 left  drift 2.9"
    assert full.endswith(" left")
    assert len(full) + len("rounds  ") + 10 + len(" 100/100 ") <= 80
