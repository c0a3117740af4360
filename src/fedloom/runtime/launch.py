"""Starts further processes of a run on this machine (`runtime.workers`), and joins those that another launcher started.

The process the user started is number 0. The others are `python -m fedloom.runtime.member`: they run the same
function on the same recipe, and end when their pipe to this process closes, however it ended. What they print goes to
the error stream, line by line, after `[worker k]`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

from fedloom.errors import RunStopped, UserError
from fedloom.runtime.group import Alone, Gloo, Group
from fedloom.runtime.place import FILE, Place
from fedloom.runtime.wire import write_frame

_GRACE: Final = 30.0
"""Seconds a process has to end by itself after the run ended well."""
_SHORT_GRACE: Final = 3.0
"""The same after an error."""


class Crew:
    """The processes this one started; number 0 is this one."""

    def __init__(self, count: int, threads: int, function: str, arguments: Sequence[str]) -> None:
        """Start them.

        Args:
            count: of all processes, this one included.
            threads: intra-op threads of each.
            function: `module:function` that each calls.
            arguments: of the function.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="fedloom-"))
        self.place = Place(0, count, 0, count, file=str(self._folder / "meeting"))
        self._children: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        for rank in range(1, count):
            self._children.append(self._start(rank, threads, {"function": function, "arguments": list(arguments)}))

    def ended(self) -> list[str]:
        """Of processes that ended, how they did."""
        codes = [(rank, child.pid, child.poll()) for rank, child in enumerate(self._children, start=1)]
        return [f"worker {rank} (pid {pid}) {_how(code)}" for rank, pid, code in codes if code is not None]

    def close(self, well: bool) -> None:
        """Wait for them to end; after an error, end them."""
        if not well:
            self._let_go()
        end = time.monotonic() + (_GRACE if well else _SHORT_GRACE)
        for child in self._children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._let_go()
        for reader in self._readers:
            reader.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, rank: int, threads: int, head: dict[str, Any]) -> subprocess.Popen[bytes]:
        p = self.place
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), FILE: str(p.file), "PYTHONUNBUFFERED": "1"}
        environment |= {"RANK": str(rank), "WORLD_SIZE": str(p.size), "LOCAL_RANK": str(rank)}
        environment |= {"LOCAL_WORLD_SIZE": str(p.size)}
        command = [sys.executable, "-m", "fedloom.runtime.member"]
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert child.stdin is not None
        assert child.stdout is not None
        reader = threading.Thread(target=_pass_on, args=(child.stdout, rank), daemon=True)
        reader.start()
        self._readers.append(reader)
        with suppress(OSError):  # it ended at once; `ended` will say how
            write_frame(child.stdin, head)
        return child

    def _let_go(self) -> None:
        for child in self._children:
            assert child.stdin is not None
            with suppress(OSError):
                child.stdin.close()


@dataclass(frozen=True)
class Company:
    """The processes of a run before they have met."""

    place: Place | None = None
    crew: Crew | None = None

    @property
    def rank(self) -> int:
        """This process's number."""
        return 0 if self.place is None else self.place.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.place is None else self.place.size

    def meet(self, timeout: float, traits: Mapping[str, str], problem: str | None = None) -> Group:
        """Find each other, and see that all are about to do the same.

        Args:
            timeout: seconds to wait for another process, now and later.
            traits: what must be equal in all processes, each under its name.
            problem: why this process cannot take part.

        Raises:
            RunStopped: somebody did not come.
            UserError: somebody has a problem, or is about to do something else.
        """
        if self.place is None:
            return Alone()
        group = Gloo(self.place, timeout, list if self.crew is None else self.crew.ended)
        said = json.dumps({"problem": problem, "traits": dict(traits)}).encode()
        heard = [json.loads(one) for one in group.gather("the beginning of the run", said)]
        for rank, one in enumerate(heard):
            if one["problem"] is not None:
                raise UserError(f"process {rank} of {self.size}: {one['problem']}")
        for rank, one in enumerate(heard):
            other = [name for name, value in heard[0]["traits"].items() if one["traits"].get(name) != value]
            if other:
                raise UserError(
                    f"process {rank} of {self.size} differs from process 0 in {', '.join(other)}; start all of them "
                    "with the same versions, recipe, model and rows"
                )
        return group


@contextmanager
def company(
    place: Place | None, workers: int, threads: int, function: str, arguments: Sequence[str]
) -> Iterator[Company]:
    """The processes of a run: those that were started together, or `workers` that are started here, for as long.

    Args:
        place: which of the processes started together this one is; None: it is alone.
        workers: how many there shall be, where this one is alone.
        threads: see `Crew`.
        function: see `Crew`.
        arguments: see `Crew`.
    """
    if place is not None or workers == 1:
        with _told_to_end(place is not None and place.rank == 0):
            yield Company(place)
        return
    crew = Crew(workers, threads, function, arguments)
    well = False
    try:
        with _told_to_end(True):
            yield Company(crew.place, crew)
        well = True
    finally:
        crew.close(well)


@contextmanager
def _told_to_end(listen: bool) -> Iterator[None]:
    """Have SIGTERM end the block with a message: a launcher sends it to those that are left when one has ended.

    Raises:
        RunStopped: it came.
    """
    if not listen or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise RunStopped(
            "this process was told to end (SIGTERM), as launchers do when another process of the run has ended. "
            "The last checkpoint is whole"
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _pass_on(lines: IO[bytes], rank: int) -> None:
    """What a process prints, line by line, to the error stream of this one."""
    for line in lines:
        sys.stderr.write(f"[worker {rank}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = "; the system may be out of memory" if name == "SIGKILL" else ""
    return f"was ended by signal {-code} ({name}{hint})"
