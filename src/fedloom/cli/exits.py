"""Exit codes: what a command raises, as a message and a number.

0    done, or stopped by `fedloom stop`
1    the run stopped but left a checkpoint (a message), or a mistake of ours (a traceback)
2    what was asked cannot work: a message, without a traceback
130  Ctrl-C
"""

import errno
import functools
import inspect
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import typer

from fedloom.errors import AskedToStop, RunStopped, UserError
from fedloom.runtime import place

STOPPED: Final = 1
ASKED_WRONG: Final = 2
INTERRUPTED: Final = 130
ALONE_AFTER: Final = 30.0
"""Seconds."""


class Interrupted(Exception):
    """Ctrl-C in a run; `folder` can be resumed (how, if not by the command), or there is no checkpoint yet."""

    def __init__(self, folder: str | None, again: str | None = None) -> None:
        self.folder, self.again = folder, again
        super().__init__(folder)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with `--debug`, its errors turned into messages and exit codes."""

    @functools.wraps(command)
    def inner(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (UserError, RunStopped, OSError) as error:
            if debug:
                raise
            code, message = _verdict(error)
            _leave_to_the_first(error)
            complain(message)
            raise typer.Exit(code) from error
        except Interrupted as stop:
            if place.first():
                complain(_resume_line(stop.folder, stop.again))
            raise typer.Exit(INTERRUPTED) from stop
        except KeyboardInterrupt as stop:
            if place.first():
                complain("Stopped by Ctrl-C.")
            raise typer.Exit(INTERRUPTED) from stop
        except place.Elsewhere as error:
            _leave_to_the_first(error)
            raise

    option = typer.Option(False, "--debug", help="Show the traceback of an error.")
    signature = inspect.signature(command)
    parameter = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool)
    inner.__signature__ = signature.replace(parameters=[*signature.parameters.values(), parameter])  # type: ignore[attr-defined]
    inner.__annotations__ = {**command.__annotations__, "debug": bool}
    return inner


def _leave_to_the_first(error: Exception) -> None:
    """Of several processes that were started together, all find the same mistake, and the first says it.

    When it has ended, the launcher ends the others; one that is still there after a while is alone with its mistake.

    Raises:
        typer.Exit: another process has more to say about what happened.
    """
    if place.first():
        return
    if isinstance(error, RunStopped | place.Elsewhere):
        raise typer.Exit(STOPPED) from error
    time.sleep(ALONE_AFTER)


def _verdict(error: UserError | RunStopped | OSError) -> tuple[int, str]:
    """Exit code and message.

    Raises:
        OSError: one that is not about a full disk is a bug or a broken machine, and keeps its traceback.
    """
    if isinstance(error, OSError):
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        return STOPPED, disk_full(error)
    if isinstance(error, AskedToStop):
        return 0, str(error)
    return (STOPPED if isinstance(error, RunStopped) else ASKED_WRONG), str(error)


def disk_full(error: OSError, run: str | None = None) -> str:
    """What to do about a full disk."""
    place = run or (str(Path(str(error.filename)).parent) if error.filename else str(Path.cwd()))
    then = f"continue with: fedloom resume {run}" if run else "try again; a run goes on with: fedloom resume RUN"
    return f"The disk is full: nothing more can be written to {place}. Free some space, then {then}"


def _resume_line(folder: str | None, again: str | None) -> str:
    if again is not None:
        return f"Stopped by Ctrl-C; {again}."
    if folder is None:
        return "Stopped by Ctrl-C before the first checkpoint; there is nothing to resume, begin anew."
    return f"Stopped by Ctrl-C. Continue with: fedloom resume {folder}"


def complain(message: str) -> None:
    """A message on stderr; on a terminal, long lines are wrapped between words."""
    lines = message.splitlines()
    if sys.stderr.isatty():
        width = max(40, shutil.get_terminal_size().columns)
        lines = [_wrapped(line, width) for line in lines]
    typer.echo("\n".join(lines), err=True)


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
