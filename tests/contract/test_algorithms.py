"""What every algorithm row promises, toy page or real: the same bits however, wherever and however often it is run.

Everywhere: dropout on, clients with unequal steps, more clients than the cohort.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.links import Losing, Misshaping, Shuffling, Watching
from fedloom import checkpoint
from fedloom.algorithms.local import LocalOnly
from fedloom.channel.codec import encode
from fedloom.checkpoint import Checkpoint, Progress
from fedloom.contracts import TooFewReplies
from fedloom.events import Event, ReplyMissing
from fedloom.rounds import advance
from fedloom.runtime.federation import Hub
from fedloom.runtime.loopback import SecondProcess
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Tasks
from fedloom.runtime.store import InMemory, OnDisk
from fedloom.spaces.factors import Factors
from seam.quadratic import World
from seam.table import NAMES, Row, marshal, rows

ROUNDS = 6


def run(row: Row, world: World | None = None, rounds: int = ROUNDS, **hub: Any) -> tuple[bytes, Hub]:
    """The state after some rounds, as bytes: equal bytes, equal bits."""
    world = world or row.world
    made = world.hub(row.algorithm, stages=row.stages, **hub)
    state = advance(row.algorithm, row.algorithm.init(world.start()), made, rounds, retries=0)
    return encode(state), made


def memories(hub: Hub) -> dict[int, bytes]:
    """What each client remembers, as bytes."""
    link = hub.link
    while not isinstance(link, InProcess):
        link = link.inner  # type: ignore[attr-defined]
    store = link.site.store
    return {client: encode(store.open(client).memory) for client in store.shelf.clients()}


@pytest.fixture(params=NAMES)
def row(request: pytest.FixtureRequest) -> Row:
    return rows()[request.param]


def test_together_is_one_at_a_time(row: Row) -> None:
    alone, one = run(row, replace(row.world, slots=1))
    grouped, many = run(row, replace(row.world, slots=4))
    assert grouped == alone
    assert memories(many) == memories(one)
    if row.algorithm.needs.pooled_data is False:
        assert many.link.site.engine.together > 1  # type: ignore[attr-defined]


def test_cohort_larger_than_window_larger_than_slots(row: Row) -> None:
    world = replace(row.world, clients=9, cohort=8)
    narrow, one = run(row, replace(world, window=4, slots=2), rounds=3)
    wide, many = run(row, replace(world, window=64, slots=8), rounds=3)
    assert narrow == wide
    assert memories(one) == memories(many)


def test_order_of_arrival_does_not_matter(row: Row) -> None:
    assert run(row)[0] == run(row, wrap=Shuffling)[0]


def test_memory_is_wire(row: Row, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients live in a second process that gets only bytes and the recipe."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    name = request.node.callspec.params["row"]
    tasks = Tasks(row.algorithm)
    link = SecondProcess("seam.table:site", {"row": name, "world": {}}, marshal(tasks, row.world))
    try:
        here, _ = run(row, rounds=4)
        there, _ = run(row, rounds=4, wrap=lambda inner: link)
    finally:
        link.close()
    assert here == there


def test_resumed_is_unbroken(row: Row, tmp_path: Path) -> None:
    whole, last = run(row)
    world = replace(row.world, store=str(tmp_path / "clients"))
    hub = world.hub(row.algorithm, stages=row.stages)
    state = advance(row.algorithm, row.algorithm.init(world.start()), hub, 3, retries=0, after=saver(hub, tmp_path))
    assert resume(row, world, tmp_path) == whole
    assert state is not None
    assert memories_on_disk(tmp_path) == memories(last)


@pytest.mark.parametrize("moment", ["between two collects", "after a state was written"])
def test_killed_and_resumed_is_unbroken(row: Row, tmp_path: Path, moment: str) -> None:
    """kill -9 in the middle of round 4; checkpoints are written every second round."""
    whole, last = run(row)
    world = replace(row.world, store=str(tmp_path / "clients"))
    child = os.fork()
    if child == 0:
        die_in_round_four(row, world, tmp_path, moment)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert resume(row, world, tmp_path) == whole
    assert memories_on_disk(tmp_path) == memories(last)


def test_a_nan_client_leaves_its_neighbours_alone(row: Row) -> None:
    """Its replies count as missing; all else is as if they had never arrived."""
    bad, seen = 2, list[Event]()
    poisoned, one = run(row, replace(row.world, nan=bad), events=seen.append)
    if row.algorithm.needs.pooled_data:
        pytest.skip("all rows in one place: there are no neighbours")
    missing = [e for e in seen if isinstance(e, ReplyMissing)]
    assert missing and {e.client for e in missing} == {bad}
    assert {e.reason for e in missing} == {"nonfinite"}
    if row.hides:
        return
    lost, two = run(row, wrap=lambda inner: Losing(inner, bad))
    assert poisoned == lost
    assert memories(one) == memories(two)


def test_a_reply_of_another_layout_is_refused(row: Row) -> None:
    """It is counted as missing, and all else is as if it had never arrived."""
    if "toy" in row.algorithm.__module__ or "pages" in row.algorithm.__module__ or row.algorithm.needs.pooled_data:
        pytest.skip("a toy, or a worker of the server's own")
    if isinstance(row.algorithm, LocalOnly):
        pytest.skip("no tensor is sent")
    seen = list[Event]()
    cut, one = run(row, wrap=lambda inner: Misshaping(inner, 2), events=seen.append)
    missing = [e for e in seen if isinstance(e, ReplyMissing)]
    assert {(e.client, e.reason) for e in missing} == {(2, "refused")}
    assert all(("takes" if row.stages else "calls for") in e.detail for e in missing)
    lost, two = run(row, wrap=lambda inner: Losing(inner, 2))
    assert cut == lost
    assert memories(one) == memories(two)


def test_a_missing_reply_changes_no_memory(row: Row) -> None:
    if row.hides:
        pytest.skip("cannot lose a client")
    lost = -1 if row.algorithm.needs.pooled_data else 2
    if lost == -1:
        with pytest.raises(Exception, match="1 are needed"):
            run(row, wrap=lambda inner: Losing(inner, lost, since=2))
        return
    _, before = run(row, rounds=2)
    _, after = run(row, wrap=lambda inner: Losing(inner, lost, since=2))
    assert memories(after).get(lost) == memories(before).get(lost)


def test_a_round_with_too_few_replies_leaves_no_trace(row: Row) -> None:
    """The repeated round sees what the first attempt saw."""
    if row.algorithm.needs.pooled_data or "Poisson" in type(row.algorithm).__name__ or row.hides:
        pytest.skip("asks nobody, or only the server's own worker, or cannot lose a client")
    world = replace(row.world, min_replies=row.world.clients, cohort=row.world.clients)
    hub = world.hub(row.algorithm, stages=row.stages, wrap=lambda inner: Losing(inner, 4, since=1))
    state = row.algorithm.round(row.algorithm.init(world.start()), hub)
    hub.round = 1
    hub.commit(1)
    before = memories(hub)
    if type(row.algorithm).__name__ == "FedBuff":
        return  # its buffer is smaller than the cohort, and client 4 is the slowest
    with pytest.raises(TooFewReplies):
        row.algorithm.round(state, hub)
    hub.rewind(hub.round)
    assert memories(hub) == before


def saver(hub: Hub, root: Path, every: int = 1) -> Any:
    def after(state: Any) -> None:
        if hub.round % every == 0:
            checkpoint.save(root / "checkpoints", Checkpoint(Progress(hub.round), state, hub.snapshot()), keep=2)
            hub.commit(hub.round)

    return after


def resume(row: Row, world: World, root: Path) -> bytes:
    """Continue from what is on disk, to the end."""
    hub = world.hub(row.algorithm, stages=row.stages)
    kind = type(row.algorithm.init(world.start()))
    loaded = checkpoint.load(checkpoint.found(root / "checkpoints")[-1], kind)
    hub.restore(loaded.federation)
    hub.round = loaded.progress.round
    hub.commit(hub.round)
    hub.rewind(hub.round)
    return encode(advance(row.algorithm, loaded.state, hub, ROUNDS, retries=0, after=saver(hub, root)))


def die_in_round_four(row: Row, world: World, root: Path, moment: str) -> None:
    def die(round: int, count: int) -> None:
        if round == 4 and moment == "after a state was written":
            os.kill(os.getpid(), signal.SIGKILL)

    hub = world.hub(row.algorithm, stages=row.stages, wrap=lambda inner: Watching(inner, die))
    receive = hub._receive

    def dying(*args: Any) -> Any:
        got = receive(*args)
        if hub.round == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return got

    hub._receive = dying  # type: ignore[method-assign]
    advance(row.algorithm, row.algorithm.init(world.start()), hub, ROUNDS, retries=0, after=saver(hub, root, every=2))


def memories_on_disk(root: Path) -> dict[int, bytes]:
    shelf = OnDisk(root / "clients")
    return {client: encode(shelf.read(client, shelf.rounds(client)[-1])) for client in shelf.clients()}


def test_versions_on_disk_stay_few(tmp_path: Path) -> None:
    row = rows()["ditto"]
    world = replace(row.world, store=str(tmp_path / "clients"))
    hub = world.hub(row.algorithm)
    advance(row.algorithm, row.algorithm.init(world.start()), hub, 8, retries=0, after=saver(hub, tmp_path, every=3))
    shelf = OnDisk(tmp_path / "clients")
    assert max(len(shelf.rounds(client)) for client in shelf.clients()) <= 3
    assert isinstance(InMemory().rounds(0), list)


def test_tasks_are_the_pages_own() -> None:
    row = rows()["fedavg"]
    hub = row.world.hub(row.algorithm)
    with pytest.raises(ValueError, match="not a task of this run"):
        hub.collect(rows()["ditto"].algorithm.local, lambda _: None, [0], None)  # type: ignore[arg-type, return-value]


def test_a_bug_in_a_page_stops_the_run_and_names_the_client() -> None:
    class Broken(type(rows()["ditto"].algorithm)):  # type: ignore[misc]
        async def local(self, down: Any, client: Any) -> Any:
            if client.id == 1:
                raise KeyError("spilt coffee")
            return await super().local(down, client)

    page = Broken(Factors(World().layout(-1)))
    world = World(cohort=5)
    with pytest.raises(KeyError, match="coffee") as caught:
        page.round(page.init(torch.zeros(9, dtype=torch.float64)), world.hub(page))
    assert "client 1" in caught.value.__notes__[0]
