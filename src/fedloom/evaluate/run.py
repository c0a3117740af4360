"""An evaluation from beginning to end: what is there already, a process for each model, and the table."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedloom import atomic
from fedloom.errors import RunStopped, UserError
from fedloom.evaluate.comparison import Cell, as_json, cells
from fedloom.evaluate.job import Answer, Entrant, Job, Result, Settings
from fedloom.evaluate.kept import Kept
from fedloom.evaluate.tasks import Task, find, single

OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
_SHOWN: Final = 12
"""Last lines of a log that an error quotes."""

Say = Callable[[str, Result, bool], None]
"""Called with a model's label, a result, and whether it was there already."""


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    cells: list[Cell]
    path: Path
    """Its JSON file."""


def evaluate(
    entrants: Sequence[Entrant],
    names: Sequence[str],
    settings: Settings,
    out: Path,
    data_root: Path | None = None,
    fresh: bool = False,
    say: Say = lambda label, result, kept: None,
) -> Evaluation:
    """Evaluate every model on every task, and write `out/evaluation.json`.

    Args:
        entrants: the models (`fedloom.evaluate.columns`).
        names: of tasks and groups.
        settings: what all have in common.
        out: folder of the JSON file and the logs.
        data_root: rows in hub layout, and no network; None: rows from the hub.
        fresh: results that are kept are computed again.
        say: told of every result.

    Raises:
        UserError: lm-eval is not installed, rows are missing, a model cannot be loaded, or a task cannot run here.
        RunStopped: a process ended before its time; what was finished is kept.
    """
    _installed()
    tasks, parts = [find(name) for name in dict.fromkeys(names)], single(names)
    _check(parts, settings, data_root)
    kept = Kept(settings, data_root)
    results: dict[tuple[str, str], Result] = {}
    for entrant in entrants:
        for task in parts:
            found = None if fresh else kept.find(entrant, task)
            if found is not None:
                results[entrant.label, task.name] = found
                say(entrant.label, found, True)
        missing = tuple(task.name for task in parts if (entrant.label, task.name) not in results)
        log = out / "logs" / f"{entrant.label.replace('/', '-')}.log"
        for result in _answers(Job(entrant=entrant, tasks=missing, settings=settings), data_root, log):
            kept.put(entrant, find(result.task), result)
            results[entrant.label, result.task] = result
            say(entrant.label, result, False)
    path = out / "evaluation.json"
    written = as_json(entrants, tasks, results, settings.model_dump(mode="json"))
    atomic.write_text(path, json.dumps(written, indent=1) + "\n")
    return Evaluation(cells(entrants, tasks, results), path)


def _installed() -> None:
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("fedloom eval needs lm-eval, which is not installed: pip install 'fedloom[eval]'")


def _check(tasks: Sequence[Task], settings: Settings, data_root: Path | None) -> None:
    """All that can be said before a model is loaded."""
    code = [task.name for task in tasks if task.code]
    if code and not settings.allow_code:
        raise UserError(
            f"{', '.join(code)}: the programs that the model writes are run to be scored. They get no network and "
            "little time and memory, but can read files; allow it with --allow-code, best in a container"
        )
    if data_root is None:
        return
    if not data_root.is_dir():
        raise UserError(f"--data-root {data_root}: there is no such folder")
    missing = [name for name in dict.fromkeys(task.data for task in tasks) if not (data_root / name).is_dir()]
    if missing:
        raise UserError(
            f"--data-root {data_root} has no {', '.join(missing)}; each is a folder with a README.md that names its "
            "files, as on the Hugging Face hub (docs/evaluation.md)"
        )


def _answers(job: Job, data_root: Path | None, log: Path) -> Iterator[Result]:
    """The results of one process, as they come.

    It works in the folder of the rows, which lm-eval's tasks then find by their hub names; without one, in an empty
    folder, so that nothing that happens to lie around is taken for a data set.
    """
    if not job.tasks:
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedloom-eval-"))
        heard = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedloom.evaluate.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=heard,
            cwd=data_root or temporary,
            env=_environment(data_root, temporary),
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):  # it died at once; how, is said below
                process.stdin.write(job.model_dump_json().encode())
                process.stdin.close()
            for line in process.stdout:
                answer = Answer.model_validate_json(line)
                if answer.mistake is not None:
                    raise UserError(answer.mistake)
                if answer.result is not None:
                    yield answer.result
            if process.wait() != 0:
                raise RunStopped(_ended(job.entrant, process.returncode, log))
        finally:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
            process.wait()


def _environment(data_root: Path | None, temporary: str) -> dict[str, Any]:
    """This process's, and no network where the rows are here; what `datasets` makes of them goes when we end."""
    own = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if data_root is None:
        return own
    return {**own, **OFFLINE, "HF_DATASETS_CACHE": temporary}


def _ended(entrant: Entrant, code: int, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
    killed = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"
    return (
        f"the process that evaluates {entrant.label} {killed}; finished tasks are kept, and the same command goes on. "
        f"The end of {log}:\n" + "\n".join(lines)
    )
