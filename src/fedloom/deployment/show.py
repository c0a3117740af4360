"""What `fedloom status` prints and how `fedloom stop` ends a server: both speak to it through files in its folder."""

import io
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedloom import atomic
from fedloom.deployment import phrases
from fedloom.deployment.picture import ENDED, STOP, Picture, read
from fedloom.errors import UserError
from fedloom.report import words

FRESH: Final = 30.0
"""Seconds after which a server that writes nothing is not taken for a running one."""
_POLL: Final = 0.3
_EXIT: Final = 20.0
"""Seconds a process may take to go once its run has ended."""
_WIDTH: Final = 100
_NOTES: Final = 5


def status(home: Path, now: float | None = None) -> str:
    """The lines for a person: whether the server runs, where its run is, its clients, the last notes.

    Args:
        home: the server's folder.
        now: the time of day in seconds since 1970; None: the clock's.

    Raises:
        UserError: there is no such folder, or its status cannot be read.
    """
    picture = read(home)
    if picture is None:
        return f"no server has run with the folder {home} yet; start one: fedloom server RECIPE --home {home}"
    now = time.time() if now is None else now
    picture["stop_asked"] = picture["stop_asked"] or (home / STOP).exists()
    parts = [headline(picture, now), *_run(picture)]
    if picture["members"]:
        parts += ["", _members(picture, now)]
    parts += ["", *_notes(picture)] if picture["notes"] else []
    return "\n".join(parts).replace(words.NBSP, " ")


def headline(picture: Picture, now: float) -> str:
    """Whether the server runs, and what it does."""
    does, seen = picture["words"], phrases.moment(picture["written"])
    if picture["phase"] in ENDED:
        return f"{does} ({seen})"
    if not alive(picture, now):
        return f"not running; last seen {seen}: {does}. Start it with the same command, it resumes"
    stop = "; it will stop after this round" if picture["stop_asked"] else ""
    return f"running (process {picture['pid']}): {does}{stop}"


def alive(picture: Picture, now: float) -> bool:
    """Whether the process that left the picture is there and writes."""
    return now - picture["written"] <= FRESH and _exists(picture)


def stop(home: Path, say: Callable[[str], None] = lambda line: None, wait: float | None = None) -> str:
    """Ask the server to stop after its round, wait until it has, and say how it ended.

    Args:
        home: the server's folder.
        say: is told at once that it may take a while.
        wait: seconds to wait; None: as long as it takes. The request stays when waiting ends.

    Raises:
        UserError: no server runs there.
    """
    picture = read(home)
    if picture is None or picture["phase"] in ENDED or not alive(picture, time.time()):
        last = f" ({headline(picture, time.time())})" if picture is not None else ""
        raise UserError(f"no server runs with the folder {home}, so there is nothing to stop{last}")
    atomic.write_text(home / STOP, "asked by fedloom stop\n")
    say(f"asked process {picture['pid']} to stop after its round ({picture['words']}); Ctrl-C leaves it to that")
    pid, end = picture["pid"], None if wait is None else time.monotonic() + wait
    while end is None or time.monotonic() < end:
        picture = read(home) or picture
        if picture["pid"] != pid:
            return f"process {pid} has stopped, and another server was started with {home}"
        if picture["phase"] in ENDED:
            return _ended(home, picture)
        if not alive(picture, time.time()):
            (home / STOP).unlink(missing_ok=True)
            return f"process {pid} is gone without a word; {_AGAIN}"
        time.sleep(_POLL)
    return f"still at work: {picture['words']}. It stops after this round"


_AGAIN: Final = "the same command as before resumes the run"


def _ended(home: Path, picture: Picture) -> str:
    """Wait for the process to let go of the folder, so that it can be used again at once."""
    (home / STOP).unlink(missing_ok=True)
    end = time.monotonic() + _EXIT
    while _exists(picture) and time.monotonic() < end:
        time.sleep(_POLL)
    tail = f"; {_AGAIN}" if picture["phase"] == "stopped" and "the same command" not in picture["words"] else ""
    return f"{picture['words']}{tail}"


def _exists(picture: Picture) -> bool:
    """Whether the process is there; taken for granted where we cannot look: on another machine, or on Windows."""
    if picture["host"] != socket.gethostname() or sys.platform == "win32":
        return True
    try:
        os.kill(picture["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _run(picture: Picture) -> list[str]:
    """Name, place and last numbers of the run, a line each."""
    run = picture["run"]
    if run is None:
        return []
    lines = [f"{run['name']}: {run['algorithm']} on {run['model']}, {run['folder']}"]
    told = [f"{name.lower()} {value}" + (f" ({note})" if note else "") for name, value, note in phrases.facts(picture)]
    lines += [", ".join(told[:2]), ", ".join(told[2:])]
    lines += [
        f"{where}: " + ", ".join(f"{name} {value}" for name, value in values)
        for where, values in phrases.scores(picture)
    ]
    return [line for line in lines if line]


def _members(picture: Picture, now: float) -> str:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(phrases.COLUMNS):
        table.add_column(column, justify="left" if i < 2 else "right", overflow="fold")
    rows = phrases.rows(picture, now)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.cells))
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, markup=False, highlight=False, emoji=False)
    with console.capture() as drawn:
        console.print(table)
    lines = [line.rstrip() for line in drawn.get().splitlines()]
    return "\n".join([*lines, *(f"{row.cells[0]} was {row.cells[1]}: {row.remark}" for row in rows if row.remark)])


def _notes(picture: Picture) -> list[str]:
    return [
        f"{time.strftime('%H:%M:%S', time.localtime(note['time']))}  "
        f"{'warning: ' if note['level'] == 'warning' else ''}{note['message']}"
        for note in picture["notes"][-_NOTES:]
    ]
