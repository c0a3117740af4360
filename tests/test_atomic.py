"""Files and folders that are whole or absent, whatever interrupts the writing."""

import contextlib
import os
from pathlib import Path

import pytest

from fedloom import atomic


class Interrupted(BaseException):
    """Stands for Ctrl-C, a full disk, a killed process: at any moment."""


def interrupt(monkeypatch, owner, step, nth=1):
    """From now on the nth call of this step is interrupted."""
    real, calls = getattr(owner, step), []

    def step_or_interrupt(*args, **kwargs):
        calls.append(args)
        if len(calls) == nth:
            raise Interrupted
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, step, step_or_interrupt)


def everything(root):
    """All files below a folder with what they hold."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def test_a_file_is_written_and_its_folder_made(tmp_path):
    atomic.write_bytes(tmp_path / "a" / "b" / "x.bin", b"\x00\xff")
    assert everything(tmp_path) == {"a": None, "a/b": None, "a/b/x.bin": b"\x00\xff"}


def test_a_file_is_replaced(tmp_path):
    atomic.write_bytes(tmp_path / "x", b"a much longer text than the new one")
    atomic.write_bytes(tmp_path / "x", b"new")
    assert everything(tmp_path) == {"x": b"new"}


def test_text_is_utf8_with_its_own_line_ends(tmp_path):
    atomic.write_text(tmp_path / "x", "Zoë\r\n∇\n")
    assert (tmp_path / "x").read_bytes() == "Zoë\r\n∇\n".encode()


@pytest.mark.parametrize("before", [{}, {"x": b"old"}])
@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")])
def test_an_interrupted_file_leaves_what_was(tmp_path, monkeypatch, before, owner, step):
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    interrupt(monkeypatch, owner, step)
    with pytest.raises(Interrupted):
        atomic.write_bytes(tmp_path / "x", b"new")
    assert everything(tmp_path) == before


def test_what_a_kill_left_behind_does_not_disturb_the_next_file(tmp_path):
    (tmp_path / ".x.partial").write_bytes(b"half of a longer text that was never finished")
    atomic.write_bytes(tmp_path / "x", b"new")
    assert everything(tmp_path) == {"x": b"new"}


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_secret_is_private_from_its_first_byte_on(tmp_path, monkeypatch, left_behind):
    """Also where a killed process left a half file that everybody may read."""
    if left_behind:
        (tmp_path / ".x.partial").touch(0o644)
    (tmp_path / "x").touch(0o644)
    seen, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(os.fstat(handle).st_mode & 0o777), fsync(handle))[1])
    atomic.write_text(tmp_path / "x", "secret", mode=0o600)
    assert seen[0] == (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Renamed before it was flushed, a file could be found empty after the power went."""
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("flushed"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("named"), replace(self, target))[1])
    atomic.write_bytes(tmp_path / "x", b"new")
    assert done[:2] == ["flushed", "named"]


def fill(folder, data):
    (folder / "inner").mkdir()
    (folder / "a").write_bytes(data)
    (folder / "inner" / "b").write_bytes(data)


def whole(data):
    return {"f": None, "f/a": data, "f/inner": None, "f/inner/b": data}


def test_a_folder_appears_at_the_end(tmp_path):
    with atomic.folder(tmp_path / "f") as aside:
        fill(aside, b"1")
        assert not (tmp_path / "f").exists()
    assert everything(tmp_path) == whole(b"1")


def test_a_folder_is_replaced_and_nothing_of_the_old_one_stays(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").write_bytes(b"old")
    with atomic.folder(tmp_path / "f") as aside:
        fill(aside, b"2")
        assert (tmp_path / "f" / "old").read_bytes() == b"old"
    assert everything(tmp_path) == whole(b"2")


def test_what_a_kill_left_behind_is_not_taken_for_part_of_the_next_folder(tmp_path):
    (tmp_path / ".f.partial").mkdir()
    (tmp_path / ".f.partial" / "stale").write_bytes(b"stale")
    with atomic.folder(tmp_path / "f") as aside:
        fill(aside, b"3")
    assert everything(tmp_path) == whole(b"3")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("existed", [False, True])
def test_a_block_that_fails_leaves_what_was(tmp_path, error, existed):
    if existed:
        with atomic.folder(tmp_path / "f") as aside:
            fill(aside, b"old")
    before = everything(tmp_path)
    with pytest.raises(error), atomic.folder(tmp_path / "f") as aside:
        fill(aside, b"new")
        raise error
    assert everything(tmp_path) == before


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "rename"), (Path, "replace")])
def test_a_folder_interrupted_while_it_is_put_in_place_is_the_old_or_the_new(tmp_path, monkeypatch, owner, step, nth):
    with atomic.folder(tmp_path / "f") as aside:
        fill(aside, b"old")
    interrupt(monkeypatch, owner, step, nth)
    with contextlib.suppress(Interrupted), atomic.folder(tmp_path / "f") as aside:
        fill(aside, b"new")
    assert everything(tmp_path) in (whole(b"old"), whole(b"new"))


@pytest.mark.parametrize("new_is_there", [False, True])
@pytest.mark.parametrize("after", ["recover", "another folder"])
def test_a_kill_between_two_renames_loses_neither(tmp_path, new_is_there, after):
    """The old folder had stepped aside: it comes back, unless the new one already stands in its place."""
    for name, data in ((".f.old", b"old"), *((("f", b"new"),) if new_is_there else ())):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, data)
    wanted = b"new" if new_is_there else b"old"
    if after == "recover":
        atomic.recover(tmp_path / "f")
    else:
        with pytest.raises(ValueError, match="again"), atomic.folder(tmp_path / "f"):
            raise ValueError("again")
    assert everything(tmp_path) == whole(wanted)


def test_there_may_be_nothing_to_recover(tmp_path):
    atomic.recover(tmp_path / "f")
    assert everything(tmp_path) == {}


def test_a_folder_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def watch(handle):
        if not (tmp_path / "f").exists():
            flushed.append(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    with atomic.folder(tmp_path / "f") as aside:
        fill(aside, b"4")
        files = {p.stat().st_ino for p in aside.rglob("*") if p.is_file()}
    assert files <= set(flushed)
