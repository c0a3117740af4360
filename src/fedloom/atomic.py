"""Files that are whole or absent: written aside, flushed to disk, renamed into place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file at `path` in one step, making its folder; a secret's `mode` is 0o600 from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)  # a killed process's: its mode would stay, and whoever has it open could read on
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Replace a UTF-8 file in one step."""
    write_bytes(path, text.encode(), mode)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ended well; an older one is replaced."""
    aside, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    recover(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            path.rename(old)
        aside.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        recover(path)


def recover(path: Path) -> None:
    """Finish what a killed process left half done: the older folder comes back, or goes where the new one is there."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
