"""Several processes share the clients of a run: the same bits as one, errors reach all, sums equal to rounding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.links import Losing
from contract.test_algorithms import memories_on_disk
from fedloom import checkpoint
from fedloom.channel.codec import encode
from fedloom.checkpoint import Checkpoint, Progress
from fedloom.contracts import HOME
from fedloom.errors import RunStopped, UserError
from fedloom.events import Event, Noted, ReplyMissing
from fedloom.rounds import advance
from fedloom.runtime.federation import EXCHANGED, Hub
from fedloom.runtime.group import Group
from fedloom.runtime.place import Elsewhere
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.team import PIECE, Team, _pieces, split
from runtime.processes import Seat, seated
from seam.quadratic import World
from seam.table import NAMES, Row, marshal, rows

ROUNDS = 4


def cost(client: int, task: str) -> float:
    return 2.0 + client % 3


def hub(row: Row, world: World, group: Group | None, sums: bool = False, **more: Any) -> Hub:
    """A federation whose clients this process shares with the others of the group."""
    wrap = more.pop("wrap", lambda link: link)

    def shared(inner: InProcess) -> Any:
        if group is None:
            return wrap(inner)
        return wrap(Team(inner.site, group, marshal(inner.site.tasks, world), cost, world.window))

    made = world.hub(row.algorithm, stages=row.stages, wrap=shared, **more)
    if sums:
        made._reducer = made.link  # type: ignore[assignment]
    return made


def run(name: str, world: World, group: Group | None = None, rounds: int = ROUNDS, **more: Any) -> bytes:
    row = rows()[name]
    made = hub(row, world, group, **more)
    return encode(advance(row.algorithm, row.algorithm.init(world.start()), made, rounds, retries=0))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "toy-pairwise-masks"])
def test_any_number_of_processes_gives_the_bits_of_one(name: str, tmp_path: Path) -> None:
    """State and memories; with so small a window that a collect needs several waves."""
    size = 2 + NAMES.index(name) % 2
    world = replace(rows()[name].world, store=str(tmp_path / "one" / "clients"), window=1)
    one = run(name, world)
    shared = replace(world, store=str(tmp_path / "many" / "clients"))
    found, _ = seated(size, lambda seat: run(name, shared, seat))
    assert found == [one] * size
    assert memories_on_disk(tmp_path / "many") == memories_on_disk(tmp_path / "one")


def test_clients_that_speak_to_each_other_are_refused_in_words() -> None:
    row = rows()["toy-pairwise-masks"]
    found, _ = seated(2, lambda seat: run("toy-pairwise-masks", row.world, seat))
    assert all(isinstance(one, UserError) and "one process" in str(one) for one in found)


@pytest.mark.parametrize("name", ["scaffold", "ditto", "fedbuff", "pfedme"])
def test_resumed_by_another_number_of_processes(name: str, tmp_path: Path) -> None:
    """Three processes do three rounds, two go on, one ends it; versions of an unfinished round are forgotten."""
    world = replace(rows()[name].world, store=str(tmp_path / "clients"))
    whole = run(name, replace(world, store=str(tmp_path / "whole" / "clients")), rounds=6)
    seated(3, lambda seat: go_on(name, world, tmp_path, seat, until=3, past=1))
    seated(2, lambda seat: go_on(name, world, tmp_path, seat, until=5, past=1))
    assert go_on(name, world, tmp_path, None, until=6, past=0) == whole
    assert memories_on_disk(tmp_path) == memories_on_disk(tmp_path / "whole")


def go_on(name: str, world: World, root: Path, group: Seat | None, until: int, past: int) -> bytes:
    """From the last checkpoint to round `until`, and `past` rounds more without a checkpoint."""
    row, first = rows()[name], group is None or group.rank == 0
    made, state = hub(row, world, group), row.algorithm.init(world.start())
    saved = checkpoint.found(root / "checkpoints")
    if saved:
        loaded = checkpoint.load(saved[-1], type(state))
        state, made.round = loaded.state, loaded.progress.round
        made.restore(loaded.federation)
        made.commit(made.round)
        made.rewind(made.round)

    def after(state: Any) -> None:
        if made.round > until:
            return
        if first:
            checkpoint.save(root / "checkpoints", Checkpoint(Progress(made.round), state, made.snapshot()), keep=2)
        if group is not None:
            group.gather("a checkpoint")
        made.commit(made.round)

    return encode(advance(row.algorithm, state, made, until + past, retries=0, after=after))


@pytest.mark.parametrize("name", ["scaffold", "ditto"])
def test_a_round_that_is_tried_again_leaves_no_trace(name: str, tmp_path: Path) -> None:
    """Too few replies in the first attempt of round 2: all forget what it wrote, whoever wrote it."""

    class Once(Losing):
        lost = False

        def ask(self, dispatches: Any) -> Any:
            if self.lost or dispatches[0].round != 1:
                return self.inner.ask(dispatches)
            self.lost = True
            return super().ask(dispatches)

    def tried(world: World, group: Group | None) -> bytes:
        row = rows()[name]
        made = hub(row, world, group, wrap=lambda inner: Once(inner, 4))
        return encode(advance(row.algorithm, row.algorithm.init(world.start()), made, 4, retries=1))

    world = replace(rows()[name].world, cohort=5, min_replies=5, store=str(tmp_path / "1" / "clients"))
    one = tried(world, None)
    shared = replace(world, store=str(tmp_path / "3" / "clients"))
    found, _ = seated(3, lambda seat: tried(shared, seat))
    assert found == [one] * 3
    assert memories_on_disk(tmp_path / "3") == memories_on_disk(tmp_path / "1")


def test_a_bug_in_a_page_reaches_all_processes(tmp_path: Path) -> None:
    made = rows()["ditto"]

    class Broken(type(made.algorithm)):  # type: ignore[misc]
        async def local(self, down: Any, client: Any) -> Any:
            if client.id == 1:
                raise KeyError("spilt coffee")
            return await super().local(down, client)

    def broken(seat: Seat) -> Any:
        row = Row(Broken(made.algorithm.space))
        world = replace(World(), cohort=5, store=str(tmp_path / "clients"))
        return row.algorithm.round(row.algorithm.init(world.start()), hub(row, world, seat))

    found, _ = seated(3, broken)
    kinds = sorted(type(one).__name__ for one in found)
    assert kinds == ["Elsewhere", "Elsewhere", "KeyError"]
    told = next(str(one) for one in found if isinstance(one, Elsewhere))
    assert "of 3: KeyError: 'spilt coffee'; in the local half of client 1" in told


def test_a_disk_that_is_full_in_one_process_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedloom.runtime.store import OnDisk

    write = OnDisk.write

    def full(self: OnDisk, client: int, round: int, memory: Any) -> None:
        if client == 2:
            raise OSError(28, "No space left on device")
        write(self, client, round, memory)

    monkeypatch.setattr(OnDisk, "write", full)
    world = replace(rows()["ditto"].world, cohort=5, store=str(tmp_path / "clients"))
    found, _ = seated(2, lambda seat: run("ditto", world, seat))
    assert sorted(type(one).__name__ for one in found) == ["Elsewhere", "OSError"]


def test_a_process_that_is_gone_stops_the_others(tmp_path: Path) -> None:
    def leaving(seat: Seat) -> bytes:
        if seat.rank == 1:
            raise KeyError("gone")
        return run("fedavg", World(), seat)

    found, _ = seated(2, leaving)
    assert isinstance(found[0], RunStopped)


# -- sums instead of replies

SUMS = ["fedavg", "fedadam", "scaffold", "ditto", "fednova", "hetlora", "norm_bound", "local", "centralized"]


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_equal_to_rounding(name: str, tmp_path: Path) -> None:
    row = rows()[name]
    world = replace(row.world, clients=9, cohort=9, store=str(tmp_path / "1" / "clients"))
    seen = list[Event]()

    def summed(seat: Seat) -> Any:
        shared = replace(world, store=str(tmp_path / "3" / "clients"))
        events = seen.append if seat.rank == 0 else (lambda event: None)
        own = rows()[name]
        made = hub(own, shared, seat, sums=True, events=events)
        return advance(own.algorithm, own.algorithm.init(world.start()), made, ROUNDS, retries=0)

    one = hub(row, world, None)
    expected = advance(row.algorithm, row.algorithm.init(world.start()), one, ROUNDS, retries=0)
    found, table = seated(3, summed)
    assert len({encode(state) for state in found}) == 1  # the same in all processes
    want, have = row.algorithm.model(expected), row.algorithm.model(found[0])
    assert torch.allclose(want.x, have.x, rtol=1e-6, atol=1e-9)
    assert "sums" in table.said
    assert not [event for event in seen if isinstance(event, Noted)]


@pytest.mark.parametrize("name", ["median", "krum", "flexlora", "fedex", "fedbuff"])
def test_rules_that_need_every_reply_get_them_and_say_so_once(name: str, tmp_path: Path) -> None:
    world, seen = rows()[name].world, list[Event]()

    def summed(seat: Seat) -> bytes:
        return run(name, world, seat, sums=True, events=seen.append if seat.rank == 0 else lambda event: None)

    found, table = seated(2, summed)
    assert found == [run(name, world)] * 2
    assert "sums" not in table.said
    assert [event.message for event in seen if isinstance(event, Noted)] == [EXCHANGED]


def test_what_does_not_count_is_known_to_all_where_sums_are_sent(tmp_path: Path) -> None:
    """A client whose rows hold NaN: its owner refuses it, and everybody hears why."""
    world = replace(rows()["scaffold"].world, nan=2, cohort=5)
    events: dict[int, list[Event]] = {0: [], 1: []}

    def summed(seat: Seat) -> bytes:
        return run("scaffold", world, seat, sums=True, events=events[seat.rank].append)

    found, _ = seated(2, summed)
    assert found[0] == found[1]
    refused = [(e.client, e.reason, e.detail) for e in events[0] if isinstance(e, ReplyMissing)]
    assert {client for client, _, _ in refused} == {2}
    assert refused == [(e.client, e.reason, e.detail) for e in events[1] if isinstance(e, ReplyMissing)]


# -- who does what, and how much is held


def test_the_longest_first_to_the_least_loaded() -> None:
    """7, 5, 4, 3, 1 on two: 7 | 5, then 4 to the second (9), 3 to the first (10), 1 to the second (10)."""
    assert split([(0, 1.0), (1, 5.0), (2, 7.0), (3, 3.0), (4, 4.0)], 2) == {2: 0, 1: 1, 4: 1, 3: 0, 0: 1}


def test_equals_are_dealt_in_turns_and_the_servers_worker_is_with_the_server() -> None:
    assert split([(2, 1.0), (0, 1.0), (1, 1.0), (HOME, 0.0)], 3) == {HOME: 0, 0: 0, 1: 1, 2: 2}
    assert split([(HOME, 9.0), (0, 1.0), (1, 1.0)], 2) == {HOME: 0, 0: 1, 1: 1}


def test_a_cohort_is_exchanged_in_even_waves() -> None:
    world = replace(World(), clients=9, cohort=9, window=2)
    _, table = seated(2, lambda seat: run("fedavg", world, seat, rounds=1))
    # 9 dispatches in waves of at most 2 x 2: three waves, each told and exchanged; then all have settled
    assert table.said == ["replies", "replies"] * 3 + ["clients' memories"]


def test_replies_are_exchanged_in_pieces() -> None:
    from fedloom.runtime.site import Dispatch

    wave: Any = [Dispatch(0, 0, client, "local", None) for client in range(4)]  # type: ignore[arg-type]
    sizes = {0: PIECE - 1, 1: 1, 2: 3 * PIECE, 3: 5}
    heads: Any = {client: {"bytes": size} for client, size in sizes.items()}
    assert [[d.client for d in piece] for piece in _pieces(wave, heads)] == [[0, 1], [2], [3]]
