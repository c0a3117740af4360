"""The bars of a terminal, drawn into memory."""

import io
import re

import pytest
from rich.console import Console

from fedloom.cli import wording
from fedloom.cli.progress import Bars, Lines, view
from fedloom.events import RoundFinished


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
