"""Whole runs of real pages over remote clients: the bits of a simulation, whatever letters, clients and servers do."""

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedloom.events import ReplyMissing
from fedloom.runtime import station
from fedloom.runtime.deploy_config import DeployConfig
from runtime.federation_of_memory import NODE, POINTS, Memoried, Replaying, rows, simulated
from runtime.mailroom_of_memory import Room

PAGES = ("fedavg", "scaffold", "fedper", "ditto", "fedbuff", "hetlora", "local", "scaffold-int8", "toy-model-diff-rate")
LAW = settings(
    deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk fails here, and the same pauses every time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(station, "JITTER", random.Random(0))


@pytest.mark.parametrize("name", PAGES)
def test_a_remote_run_is_a_simulation(name: str, tmp_path: Path) -> None:
    run = Memoried(rows()[name], tmp_path)
    assert run.run() == simulated(run.row)[0]
    assert run.memories() == simulated(run.row)[1]
    assert not run.missing
    assert run.room.most_held == 1
    assert not run.room.answers  # all were read
    assert len(run.final) == run.world.clients


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["scaffold", "ditto", "fedbuff", "toy-model-diff-rate"])
def test_a_server_killed_anywhere_goes_on_to_the_same_bits(name: str, point: str, tmp_path: Path) -> None:
    run = Memoried(rows()[name], tmp_path, crashes=[(1, point), (3, point)], every=2)
    assert (run.run(), run.memories()) == simulated(run.row)
    assert run.crashes == []
    assert not run.missing


# -- faults that must not matter

HARMLESS_LETTERS = ("lost", "broken", "twice", "given up", "garbage", "tampered", *(
    f"dies {moment} {seconds}" for moment in ("read", "body", "answer", "done") for seconds in (1, 12)
))  # fmt: skip
HARMLESS_ANSWERS = ("lost", "broken", "deaf", "twice", "given up", "slow 2", "slow 50")
NODES = st.integers(NODE, NODE + 4)
FAULTS = st.dictionaries(
    st.tuples(st.just("letter"), NODES, st.integers(0, 8)), st.sampled_from(HARMLESS_LETTERS), max_size=12
).flatmap(
    lambda letters: st.dictionaries(
        st.tuples(st.just("answer"), NODES, st.integers(0, 8)), st.sampled_from(HARMLESS_ANSWERS), max_size=8
    ).map(lambda answers: {**letters, **answers})
)
CRASHES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(POINTS)), max_size=3, unique=True).map(
    lambda found: sorted(found, key=lambda crash: (crash[0], POINTS.index(crash[1])))
)


@LAW
@given(st.sampled_from(PAGES), FAULTS, CRASHES, st.integers(1, 3), st.sampled_from([0.0, 0.9]))
def test_faults_that_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, name: str, faults: Any, crashes: Any, every: int, gap: float
) -> None:
    """Every client is asked in the end what it would have been asked, and its memory is what it would have been."""
    row = rows()[name]
    run = Memoried(
        row, tmp_path_factory.mktemp("run"), Room(faults, gap=gap), crashes=list(crashes), every=every, rounds=4
    )
    assert (run.run(), run.memories()) == simulated(row, rounds=4)
    assert not run.missing
    assert run.room.most_held <= 1
    assert not run.room.ended


# -- faults that do


def lost_in_simulation(run: Memoried) -> tuple[bytes, dict[int, bytes]]:
    return simulated(run.row, rounds=run.rounds, wrap=lambda inner: Replaying(inner, run))


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "ditto"])
def test_a_straggler_is_missed_left_alone_and_back_later(name: str, tmp_path: Path) -> None:
    """Client 2 takes 250 s for round 2 (from 0); a task may take 100 s. Round 4 begins after it is done."""

    def wait(run: Memoried) -> None:
        if run.hub.round == 4:
            run.room.sleep(200.0)

    row = replace(rows()[name], world=replace(rows()[name].world, cohort=5))
    room = Room({("answer", NODE + 2, 3): "slow 250"})  # its answer to the recipe is the first
    run = Memoried(row, tmp_path, room, DeployConfig(clients=5, round_timeout=100), before=wait)
    assert (run.run(), run.memories()) == lost_in_simulation(run)
    assert run.missing == {(2, 2)}
    assert run.away == {0: set(), 1: set(), 2: set(), 3: {2}, 4: set(), 5: set()}
    assert (NODE + 2, 3) not in room.tasks  # not asked while it is busy
    assert run.room.now < 600
    assert not room.answers


@pytest.mark.parametrize("name", ["scaffold", "ditto"])
def test_a_client_that_is_gone_counts_as_silent_and_comes_back(name: str, tmp_path: Path) -> None:
    """Killed in round 2 for 200 s; 60 s of silence are allowed."""

    def wait(run: Memoried) -> None:
        if run.hub.round == 4:
            run.room.sleep(200.0)

    row = replace(rows()[name], world=replace(rows()[name].world, cohort=5))
    room = Room({("letter", NODE + 2, 3): "dies body 200"})
    run = Memoried(row, tmp_path, room, before=wait)
    assert (run.run(), run.memories()) == lost_in_simulation(run)
    assert [e.reason for e in run.events if isinstance(e, ReplyMissing)] == ["silent"]
    assert run.away == {0: set(), 1: set(), 2: set(), 3: {2}, 4: set(), 5: set()}


HARMFUL = {
    "letter": ("dies read 300", "dies body 100", "dies answer 40", *HARMLESS_LETTERS),
    "answer": ("ticket", "truncated", "garbage", "foreign", "slow 110", "slow 500", *HARMLESS_ANSWERS),
}
UNLUCKY = st.sampled_from(["letter", "answer"]).flatmap(
    lambda what: st.tuples(
        st.tuples(st.just(what), st.integers(NODE, NODE + 1), st.integers(0, 8)), st.sampled_from(HARMFUL[what])
    )
)


@LAW
@given(st.sampled_from(PAGES), st.lists(UNLUCKY, max_size=10), CRASHES, st.integers(1, 3))
def test_whoever_is_missed_leaves_a_simulation_without_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, faults: Any, crashes: Any, every: int
) -> None:
    """Two clients have all kinds of trouble, the server too; the bits are those of the rounds as they came out."""
    room, folder = Room(dict(faults)), tmp_path_factory.mktemp("run")
    deploy = DeployConfig(clients=3, round_timeout=100)
    run = Memoried(
        rows()[name], folder, room, deploy, crashes=list(crashes), every=every, rounds=4, joined=3
    )  # fmt: skip
    assert (run.run(), run.memories()) == lost_in_simulation(run)
    assert room.most_held <= 1
    assert not room.ended
