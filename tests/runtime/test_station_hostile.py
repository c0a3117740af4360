"""A server that says anything: its letters neither end a client nor touch what is outside its folder."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedloom.runtime import letters, station
from fedloom.runtime.letters import Answer, End, Recipe, TaskLetter
from runtime.desk import ME, RECIPE, Desk
from runtime.federation_of_memory import NODE, RUN

LAW = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HUGE = 10**400
PATHS = ("../x", "..", ".", "", "/etc", "a/b", "a\\b", "a\0b", ".hidden", "x" * 5000, "\ud800", "é" * 150, "CON:", "~")
GOOD = letters.head(TaskLetter(RUN, "t", 5, 0, ME, "local", letters.digest(b"body"), 0, ()))
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    HUGE,
    1.5,
    "",
    "../x",
    "\ud800",
    [],
    {},
    [[[]]],
    {"f": "nan"},
    "own",
    "__init__",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(station, "JITTER", random.Random(0))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    made = Desk(tmp_path_factory.mktemp("desk") / "alone")
    made.joins()
    return made


def files(desk: Desk) -> set[Path]:
    """Everything that is not where it should be."""
    inside = desk.folder / f"client-{ME}" / "runs"
    return {path for path in desk.folder.parent.rglob("*") if inside not in path.parents and path.is_file()}


def still_well(desk: Desk) -> None:
    """It lives, wrote nothing outside, and does the next good task."""
    assert not desk.room.ended
    assert files(desk) == set()
    desk.room.sleep(15.0)  # it may be waiting a little, as after any trouble
    desk.room.answers.clear()
    said, _ = desk.hears(*desk.task(0), 15.0)
    assert isinstance(said, Answer), said
    assert said.missing is None


@pytest.mark.parametrize("run", PATHS, ids=range(len(PATHS)))
def test_a_run_that_is_a_path_is_no_run(desk: Desk, run: str) -> None:
    for letter in (Recipe(run, "t", "0", "Ditto", ME, 5, "x"), TaskLetter(run, "t", 5, 0, ME, "local", "", 0, ())):
        desk.say(letter, b"body")
        desk.room.sleep(6.0)
    still_well(desk)


@pytest.mark.parametrize("run", PATHS, ids=range(len(PATHS)))
def test_the_end_of_a_run_that_is_a_path_writes_nothing(run: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "alone")
    desk.say(End(run, "t", "finished", 1, 0), b"body")
    desk.room.sleep(6.0)
    assert not desk.room.ended
    assert files(desk) == set()


@pytest.mark.parametrize("task", ["own", "__init__", "init", "round", "personal", "score", "_private", "", "\ud800"])
def test_a_task_it_does_not_know_fails_in_a_word(desk: Desk, task: str) -> None:
    letter = {**GOOD, "task": task}
    said, body = desk.hears(letter, b"body", 8.0)
    assert isinstance(said, Answer)
    assert said.missing is not None
    assert said.missing.reason == "failed"
    assert not body
    still_well(desk)


def test_a_message_that_is_not_what_its_head_says_is_not_worked_on(desk: Desk) -> None:
    before = len(desk.run.trained)
    letter, body = desk.task(3)
    said, _ = desk.hears(letter, body[:-1] + bytes([body[-1] ^ 1]))
    assert said is None
    assert len(desk.run.trained) == before
    still_well(desk)


@LAW
@given(st.dictionaries(st.sampled_from([*GOOD, "more"]), st.sampled_from(ODD), min_size=1, max_size=3), st.booleans())
def test_any_field_may_be_nonsense(desk: Desk, odd: dict[str, Any], recipe: bool) -> None:
    head = {**(letters.head(RECIPE) if recipe else GOOD), **odd}
    if recipe and head["client"] == 0:
        head["client"] = 5  # to be client 0 would be no nonsense
    desk.say(head, b"body")
    desk.room.sleep(8.0)
    still_well(desk)


@LAW
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["what", "run", "ticket", "task"]), x
), max_leaves=6), st.binary(max_size=50))  # fmt: skip
def test_any_json_may_come(desk: Desk, head: Any, body: bytes) -> None:
    desk.say({"what": head, "run": head} if not isinstance(head, dict) else head, body)
    desk.room.sleep(6.0)
    still_well(desk)


@pytest.mark.parametrize("number", [0, -5, HUGE, 1 << 70], ids=["0", "-5", "huge", "large"])
@pytest.mark.parametrize("client", [ME, -1, HUGE], ids=["me", "home", "huge"])
def test_numbers_that_cannot_be_leave_no_file_of_their_name(desk: Desk, number: int, client: int) -> None:
    desk.hears({**GOOD, "number": number, "client": client, "memory": number, "keep": [number]}, b"body", 8.0)
    still_well(desk)
    assert NODE + ME in desk.room.actors
