"""`status` and `stop` against a process of its own that keeps a board, as the server does."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from fedloom.deployment.board import Board
from fedloom.deployment.picture import read
from fedloom.deployment.show import FRESH, alive, status, stop
from fedloom.errors import UserError
from fedloom.events import ClientTrained, Evaluated, Noted, RoundFinished, RoundStarted, RunFinished, RunStarted

SERVER = """
import pathlib, sys, time
from fedloom.deployment.board import Board
from fedloom.events import RoundStarted, RunFinished, RunStarted
home, how = pathlib.Path(sys.argv[1]), sys.argv[2]
with Board(home, ["north"]) as board:
    board(RunStarted("trial", "runs/x", "fedavg", "nano", "reference", "cpu", "float32", 10, 2, 1, 1, 10))
    board(RoundStarted(1, (0,)))
    while not (home / "stop").exists():
        time.sleep(0.02)
    if how == "dies":
        import os
        os._exit(9)
    if how == "works":
        time.sleep(600)
    board(RunFinished(1, 1.0, "interrupted"))
time.sleep(0.5)  # closing takes a moment
"""


@pytest.fixture
def server(tmp_path):
    """Starts a server in the folder; whatever is left of it is killed at the end."""
    begun = []

    def start(how):
        one = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path), how])
        begun.append(one)
        end = time.monotonic() + 60
        while not ((found := read(tmp_path)) and found["phase"] == "round"):
            assert time.monotonic() < end
            time.sleep(0.05)
        return one

    yield start
    for one in begun:
        one.kill()
        one.wait()


def reap(process):
    """Wait for a child in a thread, so that it is gone when it ends and not a zombie that seems to live."""
    threading.Thread(target=process.wait, daemon=True).start()


def test_a_running_server(tmp_path, server):
    one = server("stops")
    assert status(tmp_path).startswith(f"running (process {one.pid}): round 1 of 10: 0 of 1 replies\n")


def test_stop_waits_until_the_process_is_gone(tmp_path, server):
    one, said = server("stops"), []
    reap(one)
    assert stop(tmp_path, said.append) == (
        "stopped after round 0 of 10: interrupted; the same command as before resumes the run"
    )
    assert f"asked process {one.pid} to stop" in said[0]
    assert one.poll() == 0
    assert not (tmp_path / "stop").exists()
    assert status(tmp_path).startswith("stopped after round 0 of 10: interrupted (")
    with pytest.raises(UserError, match="nothing to stop"):
        stop(tmp_path)


def test_stop_sees_that_the_process_died(tmp_path, server):
    reap(server("dies"))
    assert "is gone without a word" in stop(tmp_path)
    assert not (tmp_path / "stop").exists()
    assert status(tmp_path).startswith("not running; last seen ")


def test_stop_need_not_be_waited_for(tmp_path, server):
    server("works")
    assert stop(tmp_path, wait=0.5) == "still at work: round 1 of 10: 0 of 1 replies. It stops after this round"
    assert (tmp_path / "stop").exists()
    assert "it will stop after this round" in status(tmp_path)


def test_killed(tmp_path, server):
    one = server("works")
    one.send_signal(signal.SIGKILL)
    one.wait()
    found = status(tmp_path)
    assert found.startswith("not running; last seen ")
    assert "round 1 of 10: 0 of 1 replies. Start it with the same command, it resumes" in found
    with pytest.raises(UserError, match="no server runs with the folder"):
        stop(tmp_path)
    assert not (tmp_path / "stop").exists()


def test_a_finished_run(tmp_path):
    with Board(tmp_path) as board:
        board(RunStarted("trial", "runs/x", "fedavg", "nano", "reference", "cpu", "float32", 10, 2, 2, 2, 3, 3))
        board(RunFinished(3, 1.0, "finished"))
    assert status(tmp_path).startswith("finished after round 3 of 3 (")
    with pytest.raises(UserError, match="nothing to stop"):
        stop(tmp_path)


def test_where_no_server_was(tmp_path):
    assert "no server has run" in status(tmp_path)
    with pytest.raises(UserError, match="nothing to stop"):
        stop(tmp_path)
    for ask in (status, stop):
        with pytest.raises(UserError, match="--home"):
            ask(tmp_path / "none")


def test_whether_it_lives():
    mine = {"written": 1000.0, "pid": os.getpid(), "host": socket.gethostname()}
    assert alive(mine, 1000.0 + FRESH)
    assert not alive(mine, 1000.1 + FRESH)
    assert not alive({**mine, "pid": 2**22 + 1}, 1000.0)
    assert alive({**mine, "pid": 2**22 + 1, "host": "elsewhere"}, 1000.0)  # a shared folder: its processes are not ours


def test_all_that_is_known_in_lines(tmp_path):
    ticks = itertools.count(time.time())
    board = Board(tmp_path, ["north", "south"], clock=lambda: next(ticks))
    board(RunStarted("trial", "runs/x", "fedavg", "nano", "reference", "cpu", "float32", 10, 2, 2, 2, 10))
    board.member("south", state="refused", refusal="it speaks [bold]another[/bold] protocol :smile:")
    board(RoundStarted(1, (0,)))
    board(ClientTrained(1, 0, "north", 8, 90, 2, 0, 0.75))
    board(RoundFinished(1, 1, 0, 0.75, 8, 90, 2, 0, 1e-3, 1500, 700, 62.0))
    board(Evaluated(1, "test", {"loss": float("inf"), "exact_match": 0.5}, {}, 0.1))
    board(Noted("\x1b[2Jcareful", "warning"))
    found = status(tmp_path)
    for words in (
        "trial: fedavg on nano, runs/x",
        "training loss 0.750 (in round 1)",
        "Loss ∞, Exact match 50.0 %",
        "south was refused: it speaks [bold]another[/bold] protocol :smile:",
        "warning: [2Jcareful",
    ):
        assert words in found
    assert "\x1b" not in found
    assert "\u00a0" not in found
    assert [line.split()[:2] for line in found.splitlines() if line.startswith("north")] == [["north", "idle"]]
