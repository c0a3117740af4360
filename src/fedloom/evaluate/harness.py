"""One task on one model, by lm-eval: its prompts, its likelihoods, its scores, unchanged.

lm-eval seeds the global generators of random, numpy and torch, and reads data below the working folder before it looks
at the hub; so all this runs in a process of its own (`fedloom.evaluate.worker`).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fedloom.errors import UserError
from fedloom.evaluate import sandbox
from fedloom.evaluate.job import Result, Settings, Value
from fedloom.evaluate.tasks import OWN, Task, find

ITERATIONS: Final = 100
"""Draws for standard errors without a formula; none of our scores needs them, but 0 would switch off all."""


def definitions(tasks: Sequence[Task]) -> list[Path]:
    """Folders that define these tasks; reading all of lm-eval's takes a quarter of a minute."""
    import lm_eval.tasks

    theirs = Path(lm_eval.tasks.__file__).parent
    return list(dict.fromkeys(Path(__file__).parent / OWN if t.place == OWN else theirs / t.place for t in tasks))


def score(lm: Any, name: str, settings: Settings) -> Result:
    """What the model reaches on one task, which is no group.

    Args:
        lm: a model as lm-eval sees one.
        name: of the task.
        settings: limit, examples, lengths.

    Raises:
        UserError: its data cannot be read, its programs may not be run, or its answers are longer than the model.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    task = find(name)
    if task.code and not settings.allow_code:
        raise UserError(f"{name} runs programs that the model writes; allow that with --allow-code (see its help)")
    begun = time.perf_counter()
    manager = TaskManager(include_path=definitions([task]), include_defaults=False)
    with _fenced(task.code):
        loaded = _loaded(manager, task)
        _check_room(loaded, lm, settings)
        found = lm_eval.simple_evaluate(
            lm,
            tasks=[loaded],
            task_manager=manager,
            num_fewshot=settings.shots,
            limit=settings.limit,
            gen_kwargs=None if settings.max_new_tokens is None else {"max_gen_toks": settings.max_new_tokens},
            apply_chat_template=settings.template == "own",
            fewshot_as_multiturn=False,
            bootstrap_iters=ITERATIONS if _rows(loaded, settings) > 1 else 0,
            log_samples=False,
            confirm_run_unsafe_code=settings.allow_code,
        )
    assert found is not None
    return _result(task, found, time.perf_counter() - begun, settings.batch_size)


def _loaded(manager: Any, task: Task) -> Any:
    """The task with its data.

    Raises:
        UserError: there are none, or not in the layout the task needs.
    """
    try:
        name = task.called or task.name
        return manager.load([name])["tasks"][name]
    except UserError:
        raise
    except Exception as error:  # datasets raises nearly every kind, and each means that the rows are not there
        cause = error.__cause__ or error  # of damaged rows, datasets' own error says no more than that they are
        why = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
        raise UserError(
            f"{task.name}: its data set {task.data} cannot be read ({why}). It comes from the Hugging Face hub, or "
            f"from DATA-ROOT/{task.data} in the layout of docs/evaluation.md"
        ) from error


def _rows(loaded: Any, settings: Settings) -> int:
    """Rows that will be scored; of a single one lm-eval cannot compute the spread."""
    there = len(loaded.eval_docs)
    return there if settings.limit is None else min(settings.limit, there)


def _check_room(loaded: Any, lm: Any, settings: Settings) -> None:
    """See that the longest answer leaves room for a question; lm-eval would stop with an assertion."""
    if loaded.get_config("output_type") != "generate_until" or not hasattr(lm, "max_length"):
        return
    asked = (loaded.get_config("generation_kwargs") or {}).get("max_gen_toks", lm.max_gen_toks)
    longest = settings.max_new_tokens or int(asked)
    if longest >= lm.max_length:
        raise UserError(
            f"{loaded.config.task} writes answers of up to {longest} tokens, and the model takes {lm.max_length} in "
            f"all; give --max-new-tokens, less than that (scores may then be lower than published ones)"
        )


@contextmanager
def _fenced(code: bool) -> Iterator[None]:
    """Answer the tasks' call for the metric `code_eval`, which they make as soon as they are read, with our own.

    The one on the hub runs programs in a child process with the network and all files open.
    """
    if not code:
        yield
        return
    import evaluate

    sandbox.require()
    theirs = evaluate.load
    evaluate.load = lambda path, *a, **k: sandbox.Passed() if path == "code_eval" else theirs(path, *a, **k)
    try:
        yield
    finally:
        evaluate.load = theirs


def _result(task: Task, found: Any, seconds: float, batch_size: int) -> Result:
    """lm-eval's numbers by our names, as plain numbers."""
    name = task.called or task.name
    row = found["results"][name]
    scores = {}
    for one in task.scores:
        metric, _, kept = one.key.rpartition(",")
        error = row.get(f"{metric}_stderr,{kept}")
        stderr = float(error) if isinstance(error, int | float) else None
        scores[one.name] = Value(value=float(row[one.key]), stderr=stderr)
    return Result(
        task=task.name,
        scores=scores,
        rows=int(found["n-samples"][name]["effective"]),
        shots=int(found["n-shot"][name]),
        version=str(found["versions"].get(name)),
        seconds=seconds,
        batch_size=batch_size,
    )
