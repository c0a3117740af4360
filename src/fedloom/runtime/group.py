"""Several processes as one group: everybody hands in bytes, everybody gets what all handed in.

Nothing else is exchanged, so that a run needs no more of a network than this. The bytes go over gloo, between CPUs;
what a process of the group does in between is its own affair, but all must come to the same meetings in the same order.
"""

import itertools
import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import torch.distributed as dist

from fedloom.errors import RunStopped
from fedloom.runtime.place import Place

LOOPBACK: Final = "127.0.0.1"
_PAUSE, _LONGEST_PAUSE = 0.0002, 0.01
"""Seconds between looks at a meeting that is still going on: Ctrl-C must get through, so nothing waits inside torch."""
_joined = dict[Place, Iterator[int]]()
"""Runs that met at a place: those that are started together again and again must not take each other's word."""
_torch: Any = dist  # its stubs leave out what it exports


class Group(Protocol):
    """The processes of a run, seen from one of them."""

    @property
    def rank(self) -> int:
        """This process's number; 0 writes and speaks."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, what: str, data: bytes = b"") -> list[bytes]:
        """Hand in bytes and get everybody's, by number. No process goes on before all have handed in.

        Args:
            what: a word for messages; the same for all.
            data: may be empty.

        Raises:
            RunStopped: another process is gone, or did not come in time.
        """

    def close(self) -> None:
        """Let go of connections."""


class Alone:
    """A group of one."""

    rank, size = 0, 1

    def gather(self, what: str, data: bytes = b"") -> list[bytes]:
        """One's own."""
        return [data]

    def close(self) -> None:
        """Nothing is held."""


class Gloo:
    """A group over torch's gloo."""

    def __init__(self, place: Place, timeout: float, gone: Callable[[], list[str]] = list) -> None:
        """Find the others.

        Args:
            place: which process this is.
            timeout: seconds to wait for another process, here and at every meeting.
            gone: says of processes known to have ended how they did.

        Raises:
            RunStopped: somebody did not come.
        """
        self.rank, self.size, self.timeout, self._gone = place.rank, place.size, timeout, gone
        self._meetings = 0
        self._pids: list[tuple[str, int]] = []
        self._gloo: Any = None
        with self._meeting("the beginning of the run"):
            number = next(_joined.setdefault(place, itertools.count()))
            store = _torch.PrefixStore(f"fedloom/{place.attempt}/{number}", _store(place, timeout))
            self._wait_for_all(store)
            self._gloo = dist.ProcessGroupGloo(store, place.rank, place.size, _options(place, timeout))
        own = json.dumps([socket.gethostname(), os.getpid()]).encode()
        self._pids = [(host, pid) for host, pid in map(json.loads, self.gather("the beginning of the run", own))]

    def gather(self, what: str, data: bytes = b"") -> list[bytes]:
        """See `Group.gather`: lengths first, then the bytes of everybody who has some."""
        self._meetings += 1
        with self._meeting(what):
            tag = zlib.crc32(f"{self._meetings} {what}".encode())
            own = torch.tensor([len(data), tag], dtype=torch.int64)
            all_of_them = [torch.empty_like(own) for _ in range(self.size)]
            self._wait(self._gloo.allgather([all_of_them], [own]))
            if any(int(one[1]) != tag for one in all_of_them):
                raise RuntimeError(f"the processes of this run came apart: this one is at {what}, another elsewhere")
            return [self._from(rank, int(one[0]), data) for rank, one in enumerate(all_of_them)]

    def close(self) -> None:
        """Let go of connections."""
        self._gloo = None

    def _from(self, rank: int, length: int, data: bytes) -> bytes:
        """The bytes of one process, which everybody gets."""
        if length == 0:
            return b""
        own = rank == self.rank
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if own else torch.empty(length, dtype=torch.uint8)
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = rank, 0
        self._wait(self._gloo.broadcast([buffer], options))
        return data if own else buffer.numpy().tobytes()

    def _wait(self, work: Any) -> None:
        pause = _PAUSE
        while not work.is_completed():
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        work.wait()

    def _wait_for_all(self, store: Any) -> None:
        """Until everybody has found the meeting place.

        Raises:
            RunStopped: one has ended before.
            TimeoutError: one has not come in time.
        """
        store.set(f"here/{self.rank}", b"")
        everybody = [f"here/{rank}" for rank in range(self.size)]
        end, pause = time.monotonic() + self.timeout, _PAUSE
        while not store.check(everybody):
            if self._gone():
                raise RunStopped(f"{_several(self._gone())} before the run began")
            if time.monotonic() > end:
                missing = [rank for rank in range(self.size) if not store.check([f"here/{rank}"])]
                raise TimeoutError(f"timed out: processes {missing} did not come")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    @contextmanager
    def _meeting(self, what: str) -> Iterator[None]:
        """What torch raises in a meeting, in words of ours.

        Raises:
            RunStopped: as `gather` says.
        """
        begun = time.monotonic()
        try:
            yield
        except (dist.DistError, TimeoutError) as error:
            raise self._stopped(what, time.monotonic() - begun) from error
        except RuntimeError as error:
            if "gloo" not in str(error):
                raise
            raise self._stopped(what, time.monotonic() - begun) from error

    def _stopped(self, what: str, waited: float) -> RunStopped:
        """The error, after so many seconds of waiting."""
        ended = self._who_ended()
        if ended:
            cause = _several(ended)
        elif waited >= 0.9 * self.timeout:  # gloo has many words for this
            cause = f"another process has not answered for {self.timeout:g} seconds (runtime.timeout)"
        else:
            cause = "another process of this run has ended"
        return RunStopped(f"{cause}, so this one cannot go on ({what}). The last checkpoint is whole")

    def _who_ended(self, patience: float = 2.0) -> list[str]:
        """Processes of this machine that are gone. A connection closes a moment before its process has ended."""
        end = time.monotonic() + patience
        while True:
            vanished = self._vanished()
            found = self._gone() or vanished  # in this order: who ended between the two looks is said with its reason
            if found or time.monotonic() > end:
                return found
            time.sleep(0.05)

    def _vanished(self) -> list[str]:
        here = socket.gethostname()
        return [
            f"process {rank} of {self.size} (pid {pid}) has ended"
            for rank, (host, pid) in enumerate(self._pids)
            if host == here and rank != self.rank and not _runs(pid)
        ]


def _several(found: list[str]) -> str:
    return "; ".join(found)


def _runs(pid: int) -> bool:
    """Whether a process of this machine is alive; one that ended and was not waited for yet is not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or a system without /proc
        return True
    return stat.rpartition(")")[2].split()[:1] != ["Z"]


@cache
def _store(place: Place, timeout: float) -> Any:
    """The place where processes leave word of where they are; kept, because a process may run several runs."""
    if place.file is not None:
        return _torch.FileStore(place.file, place.size)
    hosts = place.rank == 0 and not place.hosted
    wait = timedelta(seconds=timeout)
    return _torch.TCPStore(place.host, place.port, place.size, hosts, wait, wait_for_workers=False, multi_tenant=True)


def _options(place: Place, timeout: float) -> Any:
    """Of gloo: its time-out, and connections that do not leave the machine where none needs to."""
    device = _torch.ProcessGroupGloo
    options = device._Options()
    options._timeout = timedelta(seconds=timeout)
    options._devices = [
        device.create_device(hostname=LOOPBACK) if place.one_machine else device.create_default_device()
    ]
    return options
