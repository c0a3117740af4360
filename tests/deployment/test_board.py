"""The board: what events and members make of the picture, and a file that is always whole and never late at the end."""

import json
import math
import threading
import time

import pytest

from fedloom import atomic
from fedloom.deployment.board import PAUSE, PULSE, Board
from fedloom.deployment.picture import LONGEST, clean, read
from fedloom.errors import RunStopped, UserError
from fedloom.events import (
    ClientTrained,
    EarlyStopped,
    Evaluated,
    Noted,
    ReplyMissing,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)

NAMES = ["north", "south", "east"]


def started(first: int = 0) -> RunStarted:
    return RunStarted("trial", "runs/x", "fedavg", "nano", "reference", "cpu", "float32", 10, 2, 3, 3, 10, first)


def trained(round: int, number: int, loss: float | None = 0.5) -> ClientTrained:
    return ClientTrained(round, number, NAMES[number], 8, 90, 2, 0, loss)


def finished(round: int, loss: float | None = 0.5) -> RoundFinished:
    return RoundFinished(round, 2, 1, loss, 16, 180, 4, 0, 1e-3, 300, 200, 2.5)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(tmp_path, clock):
    board = Board(tmp_path, NAMES, clock)
    for number, name in enumerate(NAMES):
        board.member(name, number=number, state="joined")
    return board


def member(board, name):
    return next(one for one in board.picture()["members"] if one["name"] == name)


def test_phases_in_words(tmp_path, clock):
    board = Board(tmp_path, NAMES, clock)
    said = [board.picture()["words"]]

    def hear(event):
        board(event)
        said.append(board.picture()["words"])

    board.waiting(3)
    said.append(board.picture()["words"])
    board.member("north", state="joined", number=0)
    said.append(board.picture()["words"])
    for number in (1, 2):
        board.member(NAMES[number], state="joined", number=number)
    said.append(board.picture()["words"])
    board.waiting(None)
    hear(started())
    hear(RoundStarted(1, (0, 1, 2)))
    hear(trained(1, 0))
    hear(ReplyMissing(1, 2, "east", "silent", "no reply came"))
    hear(RoundStarted(1, (0, 1), 1))
    hear(finished(1))
    hear(RunFinished(10, 9.0, "finished"))
    assert said == [
        "starting",
        "waiting for clients: 0 of 3 have joined",
        "waiting for clients: 1 of 3 has joined",
        "waiting for clients: 3 of 3 have joined",
        "evaluating before the first round",
        "round 1 of 10: 0 of 3 replies",
        "round 1 of 10: 1 of 3 replies",
        "round 1 of 10: 2 of 3 replies",
        "round 1 of 10, attempt 2: 0 of 2 replies",
        "evaluating after round 1 of 10",
        "finished after round 1 of 10",
    ]


@pytest.mark.parametrize(
    "status, phase, words",
    [
        ("finished", "finished", "finished after round 4 of 10"),
        ("early_stopped", "finished", "early stopped after round 4 of 10"),
        ("interrupted", "stopped", "stopped after round 4 of 10: interrupted"),
    ],
)
def test_how_a_run_ends(board, status, phase, words):
    board(started(4))
    assert board.picture()["words"] == "starting: 4 of 10 rounds are behind us"
    board(RunFinished(4, 1.0, status))
    board.waiting(3)
    assert (board.picture()["phase"], board.picture()["words"]) == (phase, words)


def test_members_follow_the_events(board, clock):
    board(started())
    board(RoundStarted(1, (0, 1)))
    assert [member(board, name)["state"] for name in NAMES] == ["working", "working", "joined"]
    clock.now += 7
    board(trained(1, 0, 0.25))
    board(ReplyMissing(1, 1, "south", "late", "/secret/path of a client"))
    board(ReplyMissing(2, 1, "south", "late", ""))
    north, south = member(board, "north"), member(board, "south")
    assert (north["state"], north["rounds"], north["loss"], north["seen"]) == ("idle", 1, 0.25, 1007.0)
    assert (south["state"], south["rounds"], south["missing"], south["seen"]) == ("idle", 0, {"late": 2}, 1000.0)
    assert "secret" not in json.dumps(board.picture())


@pytest.mark.parametrize("gone", ["away", "refused", "revoked"])
def test_who_is_gone_does_not_seem_to_work(board, gone):
    board.member("south", state=gone, refusal="speaks another protocol")
    board(started())
    board(RoundStarted(1, (0, 1, 2)))
    board(ReplyMissing(1, 1, "south", "silent", ""))
    assert member(board, "south")["state"] == gone
    assert member(board, "south")["seen"] == 1000.0


def test_a_reply_counts_when_the_server_says_that_it_came(board):
    board(started())
    board(RoundStarted(1, (0, 1, 2)))
    board.member("east", state="idle", bytes_up=7)
    assert board.picture()["words"] == "round 1 of 10: 1 of 3 replies"
    board(trained(1, 2))
    assert board.picture()["words"] == "round 1 of 10: 1 of 3 replies"


def test_the_servers_own_worker_is_no_member(board):
    board(started())
    board(RoundStarted(1, (-1, 0)))
    board(ClientTrained(1, -1, "server", 8, 90, 2, 0, 0.5))
    assert [one["name"] for one in board.picture()["members"]] == NAMES
    assert board.picture()["replies"] == {"asked": 2, "came": 1}


def test_last_seen_is_when_something_came(board, clock):
    clock.now += 5
    board.member("north", number=0, bytes_down=10, bytes_up=0)  # told every second, whatever happens
    assert member(board, "north")["seen"] == 1000.0
    board.member("north", bytes_up=20)
    assert member(board, "north")["seen"] == 1005.0
    clock.now += 5
    board.member("north", state="away")
    assert member(board, "north")["seen"] == 1005.0
    board.member("north", state="joined")
    assert member(board, "north")["seen"] == 1010.0
    board.member("north", state="joined", seen=900.0)
    assert member(board, "north")["seen"] == 900.0


def test_waiting_may_be_told_again_and_again(board, clock, writes):
    for _ in range(20):
        board.waiting(3)
    assert [one["phase"] for one in writes] == ["waiting"]


def test_members_come_late_and_go(board):
    board.member("west")
    board.forget("north")
    assert [(one["name"], one["state"]) for one in board.picture()["members"]] == [
        ("south", "joined"),
        ("east", "joined"),
        ("west", "invited"),
    ]
    assert member(board, "west")["seen"] is None


def test_last_values_and_notes(board, clock):
    board(started())
    for number in range(25):
        board(Noted(f"note {number}\x1b[31m\nnext", "warning"))
    board(finished(1, math.nan))
    board(Evaluated(1, "test", {"loss": 2.0, "perplexity": math.inf}, {"north": {"loss": 1.0}}, 0.1))
    board(EarlyStopped(1, "loss", 3))
    picture = json.loads(json.dumps(board.picture(), allow_nan=False))
    assert len(picture["notes"]) == 20
    assert picture["notes"][0]["message"] == "note 6 [31m next"
    assert "stopped early" in picture["notes"][-1]["message"]
    assert picture["last_round"]["loss"] == "nan"
    assert picture["evaluation"] == {"test": {"round": 1, "metrics": {"loss": 2.0, "perplexity": "inf"}}}
    assert len(clean("x" * 1000)) == LONGEST


def test_time_left_from_the_last_rounds(board, clock):
    board(started())
    for round in (1, 2, 3):
        clock.now += 10 * round
        board(finished(round))
    assert board.picture()["seconds_left"] == pytest.approx(7 * 25)
    board(RunFinished(3, 1.0, "interrupted"))
    assert board.picture()["seconds_left"] is None


@pytest.fixture
def writes(monkeypatch):
    found = []
    real = atomic.write_text

    def count(path, text, *more):
        found.append(json.loads(text))
        real(path, text, *more)

    monkeypatch.setattr("fedloom.deployment.board.atomic.write_text", count)
    return found


def test_at_most_two_writes_a_second_but_phases_at_once(board, clock, writes):
    clock.now += 10
    board(started())
    board(RoundStarted(1, (0, 1, 2)))
    del writes[:]
    for _ in range(100):
        board(Noted("x"))
        clock.now += 0.01
    assert len(writes) == 1  # half a second after the last one
    del writes[:]
    board(RoundFinished(1, 3, 0, 0.5, 1, 1, 1, 0, 0.1, 1, 1, 1.0))
    board(RunFinished(1, 1.0, "finished"))
    assert [one["phase"] for one in writes] == ["evaluating", "finished"]


def test_a_clock_set_back_does_not_silence_it(board, clock, writes):
    clock.now -= 3600
    board(Noted("x"))
    assert len(writes) == 1


def test_the_thread_writes_what_was_held_back(tmp_path):
    with Board(tmp_path, NAMES) as board:
        board(Noted("one"))
        board(Noted("two"))
        end = time.monotonic() + 20 * PAUSE
        while len(read(tmp_path)["notes"]) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        assert [note["message"] for note in read(tmp_path)["notes"]] == ["one", "two"]
    assert PULSE < 30  # a reader takes it for dead after 30 s


@pytest.mark.parametrize(
    "error, words",
    [
        (None, "stopped: the server was closed"),
        (KeyboardInterrupt(), "stopped: from the keyboard"),
        (RunStopped("round 3 failed twice"), "stopped: round 3 failed twice"),
        (RunStopped("stopped, as asked"), "stopped: as asked"),
        (ValueError("/secret/of a client"), "stopped: an error (ValueError); see the server's own output"),
    ],
)
def test_the_end_is_on_disk_however_it_came(tmp_path, error, words):
    def work():
        with Board(tmp_path):
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert read(tmp_path)["words"] == words


def test_an_end_that_was_told_stays(tmp_path):
    with Board(tmp_path) as board:
        board(started())
        board(RunFinished(10, 1.0, "finished"))
    assert read(tmp_path)["phase"] == "finished"


def test_readers_never_see_half_a_file_and_nobody_waits_for_ever(tmp_path):
    wrong, done = [], threading.Event()

    def look():
        while not done.is_set():
            try:
                read(tmp_path)
            except UserError as error:
                wrong.append(error)

    def tell(name):
        for number in range(60):
            board.member(name, state="working" if number % 2 else "idle", bytes_up=number)
            board.picture()

    with Board(tmp_path, NAMES) as board:
        reader = threading.Thread(target=look)
        tellers = [threading.Thread(target=tell, args=(name,), daemon=True) for name in NAMES]
        reader.start()
        for one in tellers:
            one.start()
        for one in tellers:
            one.join(60)
        assert not any(one.is_alive() for one in tellers)
        done.set()
        reader.join()
    assert wrong == []
    assert [one["bytes_up"] for one in read(tmp_path)["members"]] == [59] * 3


def test_a_full_disk_is_told_once_and_does_not_stop_the_run(board, clock, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedloom.deployment.board.atomic.write_text", full)
    for _ in range(3):
        clock.now += 1
        board(Noted("x"))
    messages = [note["message"] for note in board.picture()["notes"]]
    assert messages.count("status.json cannot be written: No space left on device") == 1


def test_a_wish_to_stop_shows(board, tmp_path):
    assert board.picture()["stop_asked"] is False
    (tmp_path / "stop").touch()
    assert board.picture()["stop_asked"] is True
    board.stopped("it was asked to")
    assert board.picture()["stop_asked"] is False


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '"x"'])
def test_a_foreign_file_is_refused_in_words(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(UserError, match=r"status\.json"):
        read(tmp_path)


def test_no_file_and_no_folder(tmp_path):
    assert read(tmp_path) is None
    with pytest.raises(UserError, match="--home"):
        read(tmp_path / "none")
