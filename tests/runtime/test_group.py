"""Processes that meet over gloo: what they hear, and what they say when one is gone."""

import os
import signal
import time
from pathlib import Path

import pytest

from fedloom.errors import RunStopped, UserError
from fedloom.runtime import place as places
from fedloom.runtime.group import Alone, Gloo
from fedloom.runtime.place import FILE, Place
from runtime.processes import forked


def meet(timeout: float = 30) -> Gloo:
    found = places.found()
    assert found is not None
    return Gloo(found, timeout)


def test_everybody_hears_everybody(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        for _ in range(2):  # a process may run several runs, one after the other
            group = meet()
            big = bytes([rank]) * (1000 * rank)
            assert group.gather("some", b"") == [b""] * 3
            assert group.gather("some", big) == [bytes([r]) * (1000 * r) for r in range(3)]
            group.close()

    assert forked(3, tmp_path, work) == [0, 0, 0]


def stopped(what: str, seconds: float, timeout: float = 30) -> None:
    """Expect the next meeting to end the run soon, with a message that holds `what`."""
    group, begun = meet(timeout), 0.0
    group.gather("the first meeting")
    begun = time.monotonic()
    with pytest.raises(RunStopped, match=what):
        group.gather("round 3's replies")
    assert time.monotonic() - begun < seconds


def test_a_killed_process_is_named_at_once(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank != 1:
            stopped(r"process 1 of 3 \(pid \d+\) has ended.*round 3's replies.*last checkpoint is whole", 10)
            return
        group = meet()
        group.gather("the first meeting")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(3, tmp_path, work) == [0, -signal.SIGKILL, 0]


def test_one_that_does_not_answer_ends_the_wait(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 0:
            stopped(r"not answered for 1 seconds \(runtime.timeout\)", 8, timeout=1)
            return
        group = meet()
        group.gather("the first meeting")
        time.sleep(5)

    assert forked(2, tmp_path, work) == [0, 0]


def test_one_that_never_comes_ends_the_wait_too(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 0:
            with pytest.raises(RunStopped, match=r"not answered.*beginning of the run"):
                meet(1)

    assert forked(2, tmp_path, work) == [0, 0]


def test_processes_that_came_apart_are_a_bug(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        group = meet()
        with pytest.raises(RuntimeError, match="came apart"):
            group.gather("replies" if rank else "a checkpoint")

    assert forked(2, tmp_path, work) == [0, 0]


def test_alone_is_a_group() -> None:
    assert Alone().gather("x", b"y") == [b"y"]


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node-a",
            "MASTER_PORT": "29400", "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip


def test_the_environment_says_which_process_this_is() -> None:
    assert places.found(TORCHRUN) == Place(1, 4, 1, 2, None, "node-a", 29400, hosted=True)
    assert places.found({**TORCHRUN, FILE: "/tmp/x"}).file == "/tmp/x"  # type: ignore[union-attr]
    assert places.found({}) is None
    assert places.found({"RANK": "1", "WORLD_SIZE": "4"}) is None  # nowhere to meet
    assert places.found({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("wrong", [{"RANK": "one"}, {"RANK": "4"}, {"MASTER_PORT": ""}])
def test_an_environment_that_contradicts_itself_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="no place among others"):
        places.found({**TORCHRUN, **wrong})


def test_only_the_first_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, FILE):
        monkeypatch.delenv(name, raising=False)
    assert places.first()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert not places.first()
    monkeypatch.setenv("RANK", "0")
    assert places.first()
