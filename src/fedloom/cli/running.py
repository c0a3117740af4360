"""The commands that train: run and resume."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.configuring import Overrides, RecipeArgument, loaded
from fedloom.cli.exits import Interrupted, disk_full
from fedloom.errors import RunStopped
from fedloom.runtime import place

if TYPE_CHECKING:
    from fedloom.events import Sink
    from fedloom.experiment import Run

Quiet = Annotated[bool, typer.Option("--quiet", help="Print warnings and the result only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print every event as a line of JSON, nothing else.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html into the run folder at the end.")]


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    report: Report = True,
) -> None:
    """Train, as a recipe says.

    Settings are changed with key=value: fedloom run quickstart federation.rounds=20 local.lr=1e-3
    """
    config = loaded("run", recipe, overrides)
    from fedloom import experiment

    watched(lambda sinks: experiment.run(config, sinks), quiet, as_json, report)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an unfinished run.", show_default=False)],
    quiet: Quiet = False,
    as_json: AsJson = False,
    report: Report = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, in place of runtime.workers.", show_default=False)
    ] = None,
) -> None:
    """Continue a run from its last checkpoint, to the same result."""
    from fedloom import experiment

    watched(lambda sinks: experiment.resume(run, sinks, workers=workers), quiet, as_json, report, folder=str(run))


def watched(
    train: "Callable[[list[Sink]], Run]",
    quiet: bool,
    as_json: bool,
    report: bool,
    folder: str | None = None,
    again: str | None = None,
) -> None:
    """Train with a view on it; afterwards the report and the result. Of several processes only the first has a view.

    `again` says how a run that ended early goes on, where that is not by `fedloom resume`.

    Raises:
        Interrupted: Ctrl-C, or the run says it was interrupted.
        RunStopped: the disk is full.
    """
    from rich.console import Console

    from fedloom.cli.progress import Watch, view
    from fedloom.cli.results import conclude

    console, first = Console(), place.first()
    watch = Watch(folder, resumable=folder)
    try:
        with view(console, quiet or not first, as_json and first) as seen:
            done = train([watch, seen])
        if done.status == "interrupted":
            raise Interrupted(str(done.folder))
        page = _page(done.folder) if report and first else None
    except RunStopped as error:
        if watch.resumable is None or again is not None or "fedloom resume" in str(error):
            raise
        raise RunStopped(f"{error}\nContinue with: fedloom resume {watch.resumable}") from error
    except KeyboardInterrupt as stop:
        raise Interrupted(watch.resumable, again) from stop
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunStopped(disk_full(error, watch.resumable)) from error
        raise
    if first and not as_json:
        conclude(console, done.folder, page)


def _page(folder: Path) -> Path:
    from fedloom.report import page

    return page.write([folder])
