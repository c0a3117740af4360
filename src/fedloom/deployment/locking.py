"""Locks between processes, as files: the system lets go of them when a process ends, however it ends.

The file holds the process id of who has the lock. It stays when the lock is free, empty.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE = 0.02
_PRIVATE = 0o600


class Busy(Exception):
    """Another process has the lock; `pid` says which, None if it had no time to write that."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        super().__init__(f"held by process {pid}")


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 20  # a locked byte cannot be read there, so it is one behind the text

    def _try(handle: int, *, shared: bool = False) -> bool:
        os.lseek(handle, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _release(handle: int) -> None:
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _try(handle: int, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


@contextmanager
def held(path: Path, wait: float) -> Iterator[None]:
    """Have the lock during the block.

    Args:
        path: the lock's file; made if missing.
        wait: seconds to wait for another process.

    Raises:
        Busy: another process still has it after that.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, _PRIVATE)
    try:
        _await(handle, wait)
        try:
            _write(handle, str(os.getpid()))
            yield
        finally:
            _write(handle, "")
            _release(handle)
    finally:
        os.close(handle)


def holder(path: Path) -> int | None:
    """The process that has the lock, 0 if it did not say; None: nobody has it."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        if _try(handle, shared=True):  # others who look must not disturb each other
            _release(handle)
            return None
        return _pid(handle) or 0
    finally:
        os.close(handle)


def _await(handle: int, wait: float) -> None:
    end = time.monotonic() + wait
    while not _try(handle):
        if time.monotonic() >= end:
            raise Busy(_pid(handle))
        time.sleep(_PAUSE)


def _pid(handle: int) -> int | None:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 32).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None


def _write(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text.encode("ascii"))
