"""Groups for tests: threads of this process over a barrier, and forked processes over gloo."""

import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fedloom.errors import RunStopped
from fedloom.runtime.place import FILE

T = TypeVar("T")


@dataclass
class Table:
    """Where threads lay their bytes, meeting by meeting."""

    size: int
    meetings: list[tuple[str, dict[int, bytes]]] = field(default_factory=list)
    gone: bool = False
    here: threading.Condition = field(default_factory=threading.Condition)

    @property
    def said(self) -> list[str]:
        """What was exchanged."""
        return [what for what, _ in self.meetings]


class Seat:
    """A group as one thread sees it."""

    def __init__(self, table: Table, rank: int) -> None:
        self.table, self.rank, self.size, self.meeting = table, rank, table.size, 0

    def gather(self, what: str, data: bytes = b"") -> list[bytes]:
        table, number = self.table, self.meeting
        self.meeting += 1
        with table.here:
            if len(table.meetings) == number:
                table.meetings.append((what, {}))
            called, lying = table.meetings[number]
            assert called == what, f"rank {self.rank} is at {what}, another at {called}"
            lying[self.rank] = data
            table.here.notify_all()
            table.here.wait_for(lambda: len(lying) == self.size or table.gone, timeout=60)
            if len(lying) < self.size:
                raise RunStopped(f"another thread has ended ({what})")
            return [lying[rank] for rank in range(self.size)]

    def close(self) -> None:
        pass


def seated(size: int, work: Callable[[Seat], T]) -> tuple[list[T | Exception], Table]:
    """Let `size` threads work side by side; what each returned or raised."""
    table = Table(size)

    def one(rank: int) -> T | Exception:
        try:
            return work(Seat(table, rank))
        except Exception as error:
            with table.here:
                table.gone = True
                table.here.notify_all()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size))), table


def forked(size: int, folder: Path, work: Callable[[int], Any]) -> list[int]:
    """Do the work in `size` processes that find each other; their exit codes (0 well, 7 raised, negative: a signal)."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), FILE: str(folder / "meeting")}
            os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
            code = 7
            try:
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
