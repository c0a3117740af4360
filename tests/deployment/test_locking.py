"""Locks between processes."""

import os
import subprocess
import sys
import threading
import time

import pytest

from fedloom.deployment.locking import Busy, held, holder

HOLD = """
import sys, time
from pathlib import Path
from fedloom.deployment.locking import held
with held(Path(sys.argv[1]), 5):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNT = """
import sys
from pathlib import Path
from fedloom.deployment.locking import held
lock, number = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(50):
    with held(lock, 30):
        number.write_text(str(int(number.read_text()) + 1))
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_another_process_is_named(tmp_path, other):
    with pytest.raises(Busy) as busy, held(tmp_path / "lock", 0.05):
        pass
    assert busy.value.pid == other.pid == holder(tmp_path / "lock")


def test_a_killed_process_leaves_no_lock(tmp_path, other):
    other.kill()
    other.wait()
    assert holder(tmp_path / "lock") is None
    with held(tmp_path / "lock", 0):
        assert holder(tmp_path / "lock") == os.getpid()


def test_one_waits_until_the_other_is_done(tmp_path, other):
    threading.Timer(0.2, other.stdin.close).start()
    begin = time.monotonic()
    with held(tmp_path / "lock", 10):
        assert 0.1 < time.monotonic() - begin < 9


def test_nobody_has_a_lock_that_never_was_or_was_let_go(tmp_path):
    assert holder(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()
    with pytest.raises(ZeroDivisionError), held(tmp_path / "lock", 0):
        raise ZeroDivisionError
    assert holder(tmp_path / "lock") is None


def test_who_only_looks_does_not_keep_others_out(tmp_path):
    """Looking takes the lock for a moment; one who wants it waits that long."""
    path, stop = tmp_path / "lock", threading.Event()
    path.touch()

    def look():
        while not stop.is_set():
            holder(path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            with held(path, 5):
                pass
    finally:
        stop.set()
        thread.join()


def test_several_who_look_do_not_take_each_other_for_the_holder(tmp_path):
    path, found = tmp_path / "lock", []
    path.touch()
    threads = [threading.Thread(target=lambda: found.extend(holder(path) for _ in range(3000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {None}


def test_counting_together_loses_nothing(tmp_path):
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "lock"), str(tmp_path / "number")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "150"
