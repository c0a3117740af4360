"""Checkpoints: the same bits back, or words about what is wrong; never something in between."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fedloom import atomic, checkpoint
from fedloom.algorithms.local import LocalOnly
from fedloom.algorithms.local import State as LocalState
from fedloom.channel.codec import encode
from fedloom.checkpoint import Checkpoint, Progress
from fedloom.errors import UserError
from fedloom.rounds import advance
from fedloom.runtime.federation import FederationState, Flight
from seam.quadratic import World

FILES = ("state.safetensors", "federation.safetensors", "progress.json", "sums.json")


@dataclass(frozen=True)
class State:
    x: Tensor
    t: int


@dataclass(frozen=True)
class OtherState:
    x: Tensor
    v: Tensor


def made(round: int = 3) -> Checkpoint:
    flight = (Flight(1.5, 7, 2, 4, "local", b"\x00\xffbytes"), Flight(0.1 + 0.2, 8, 2, 5, "local", b""))
    return Checkpoint(
        Progress(round, best_round=2, best_value=0.1 + 0.2, stop_best=None, stop_count=1),
        State(torch.tensor([0.1, -0.0, 1e-45, float("inf")]), 5),
        FederationState(1 / 3, flight),
    )


def test_everything_comes_back(tmp_path):
    path = checkpoint.save(tmp_path, made(), keep=2)
    found = checkpoint.load(path, State)
    assert path == tmp_path / "round-0003"
    assert found.progress == made().progress
    assert found.federation == made().federation
    assert torch.equal(found.state.x.view(torch.int32), made().state.x.view(torch.int32))
    assert found.state.t == 5


def test_a_checkpoint_holds_what_it_says(tmp_path):
    path = checkpoint.save(tmp_path, made(), keep=2)
    assert {file.name for file in path.iterdir()} == set(FILES)
    assert set(json.loads((path / "sums.json").read_text())) == set(FILES) - {"sums.json"}


@pytest.mark.parametrize(("keep", "left"), [(1, [12]), (2, [9, 12]), (3, [5, 9, 12]), (99, [0, 5, 9, 12])])
def test_the_newest_are_kept(tmp_path, keep, left):
    for round in (0, 5, 9, 12):
        checkpoint.save(tmp_path, made(round), keep)
    assert checkpoint.found(tmp_path) == [tmp_path / checkpoint.name(round) for round in left]


def test_rounds_are_ordered_as_numbers(tmp_path):
    for round in (9999, 10000, 12):
        checkpoint.save(tmp_path, made(round), keep=99)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["round-0012", "round-9999", "round-10000"]


def test_a_round_saved_again_is_the_new_one(tmp_path):
    checkpoint.save(tmp_path, made(), keep=2)
    again = replace(made(), state=State(torch.ones(2), 6))
    path = checkpoint.save(tmp_path, again, keep=2)
    assert checkpoint.found(tmp_path) == [path]
    assert checkpoint.load(path, State).state.t == 6


def test_there_is_none_where_there_is_no_folder(tmp_path):
    assert checkpoint.found(tmp_path / "nothing") == []


def test_what_lies_beside_checkpoints_is_none_of_them(tmp_path):
    """The best model, a file of the user's, one that was interrupted, a copy the user made."""
    path = checkpoint.save(tmp_path, made(), keep=2)
    (tmp_path / "best").mkdir()
    (tmp_path / "round-0004").write_text("a file")
    (tmp_path / ".round-0005.partial").mkdir()
    shutil.copytree(path, tmp_path / "round-0003-copy")
    assert checkpoint.found(tmp_path) == [path]


def test_an_interrupted_save_leaves_the_older_ones_as_they_were(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path, made(3), keep=1)
    monkeypatch.setattr(atomic, "_sync", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(tmp_path, made(4), keep=1)
    assert checkpoint.found(tmp_path) == [path]
    assert checkpoint.load(path, State).progress.round == 3


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n}"),
    "one bit": lambda file: file.write_bytes(flipped(file.read_bytes())),
    "foreign": lambda file: file.write_bytes(b"[1, 2]"),
    "another text": lambda file: file.write_bytes(b'"state.safetensors"'),
    "a number": lambda file: file.write_bytes(b"5"),
    "not text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_said_in_words(tmp_path, file, damage):
    path = checkpoint.save(tmp_path, made(), keep=2)
    DAMAGE[damage](path / file)
    with pytest.raises(UserError, match=r"round-0003 .*remove that folder|round-0003 does not belong"):
        checkpoint.load(path, State)


def test_every_bit_of_every_file_is_watched(tmp_path):
    """Any single changed byte of the three files is noticed, none leads to another state."""
    path = checkpoint.save(tmp_path, made(), keep=2)
    for name in FILES[:-1]:
        data = (path / name).read_bytes()
        for i in range(0, len(data), 7):
            (path / name).write_bytes(data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :])
            with pytest.raises(UserError, match=f"damaged \\({name}\\)"):
                checkpoint.load(path, State)
        (path / name).write_bytes(data)


def test_no_checkpoint_at_all_is_said_in_words(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path / "round-0001", State)


def test_another_algorithms_checkpoint_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, made(), keep=2)
    with pytest.raises(UserError, match="does not belong to this run's algorithm"):
        checkpoint.load(path, OtherState)


def test_another_versions_progress_is_refused(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Later(Progress):
        patience: int = 3

    later = replace(made(), progress=Later(3))
    path = checkpoint.save(tmp_path, later, keep=2)
    with pytest.raises(UserError, match="version"):
        checkpoint.load(path, State)


@pytest.mark.parametrize("back", [1, 2])
def test_a_run_goes_on_to_the_same_bits_from_any_checkpoint_that_is_kept(tmp_path, back):
    """The newest was damaged and removed, as the message says; killed in round 6, after clients replied."""
    page, rounds, keep = LocalOnly(), 8, 3
    world = World(cohort=5, store=str(tmp_path / "clients"))
    own = World(cohort=5).hub(page)
    unbroken = advance(page, page.init(world.start()), own, rounds, retries=0)

    hub = world.hub(page)

    def after(state):
        checkpoint.save(tmp_path / "checkpoints", Checkpoint(Progress(hub.round), state, hub.snapshot()), keep)
        hub.commit(*map(checkpoint.round_of, checkpoint.found(tmp_path / "checkpoints")))

    state = advance(page, page.init(world.start()), hub, 5, retries=0, after=after)
    page.round(state, hub)  # what this round would have given dies with the process
    for damaged in checkpoint.found(tmp_path / "checkpoints")[-back:]:
        shutil.rmtree(damaged)

    hub = world.hub(page)
    loaded = checkpoint.load(checkpoint.found(tmp_path / "checkpoints")[-1], LocalState)
    hub.restore(loaded.federation)
    hub.round = loaded.progress.round
    hub.commit(*map(checkpoint.round_of, checkpoint.found(tmp_path / "checkpoints")))
    hub.rewind(hub.round)
    resumed = advance(page, loaded.state, hub, rounds, retries=0)
    assert encode(resumed) == encode(unbroken)
    stores = [h.link.site.store for h in (hub, own)]  # type: ignore[attr-defined]
    here, there = ({i: encode(store.open(i).memory) for i in range(5)} for store in stores)
    assert here == there
