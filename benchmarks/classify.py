"""Classification: what federation, LoRA and distillation are worth on SST-2 and CoLA with a small encoder.

All arms of a task hold the same rows (a share of them, `data.public`, is left to the server, and only FedKD-LoRA uses
it), see the same number of batches at the clients, and are scored on the same rows that nobody trains on. Finished runs
are lines of results/classify.jsonl and are not run again: an interrupted study goes on where it stopped.

    FEDLOOM_DATA=... python benchmarks/classify.py                # what is missing, then tables and results
    FEDLOOM_DATA=... python benchmarks/classify.py --minutes 30   # starts no run after half an hour
    FEDLOOM_DATA=... python benchmarks/classify.py --tables       # runs nothing, prints the tables of what there is

Beside the tables it writes results/classify_histories.json: every run in the form of FedKD-LoRA's project (config,
Flower's History with losses and accuracies per round, elapsed seconds).
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from machine import RESULTS, say, table, write

CACHE, HISTORIES = RESULTS / "classify.jsonl", RESULTS / "classify_histories.json"
SEEDS = (0, 1, 2)
STUDENT = "model.layers=[0, 2, 4]"
"""Of the teacher's six layers."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One row of a table: a shipped recipe and what differs."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    engine: str = "slots"
    turns: tuple[int, ...] = (0,) * len(SEEDS)
    """When each seed is run, smaller ones first: what is asked first, and dear arms late."""


@dataclass(frozen=True)
class Task:
    """One table. `metrics` are its columns, the first of which counts."""

    name: str
    metrics: tuple[str, ...]
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    majority: float
    """Share of the larger class among the rows of the published dev file: the accuracy of always saying it."""


def arms(recipe: str, distilled: str, turns: list[tuple[int, ...]], full: str, *shared: str) -> tuple[Arm, ...]:
    """The arms and their turns; `full` is the rate where all parameters are tuned, `shared` holds for all arms."""
    whole = ("adapter={kind: full}", "model.dtype=float32", *shared, f"local.lr={full}")
    lora = ("model.dtype=bfloat16", *shared)
    return (
        Arm("FedLoRA", recipe, lora, turns=turns[0]),
        Arm("centralized LoRA", recipe, (*lora, "algorithm=centralized"), turns=turns[0]),
        Arm(SLOWER, recipe, (*lora, "algorithm=centralized", "local.lr=1e-3"), turns=turns[5]),
        Arm("local LoRA", recipe, (*lora, "algorithm=local"), turns=turns[1]),
        Arm("FedLoRA, student", recipe, (*lora, STUDENT), turns=turns[2]),
        Arm("FedKD-LoRA, student", distilled, lora, turns=turns[3]),
        Arm("FedAvg, full", recipe, whole, "reference", turns[4]),
    )


EVERY = "evaluate.every=4"
SLOWER = "centralized LoRA, lr 1e-3"
COLA = ("data.source=cola", "data.limit=null", "objective.head=mlp", "local.steps=40", "local.lr=1e-3")
TASKS = (
    Task(
        "sst2",
        ("accuracy", "loss"),
        ("evaluate.metrics=[loss, accuracy]", EVERY),
        arms(
            "sst2-fedlora",
            "sst2-fedkd",
            [(0, 1, 2), (8, 10, 10), (0, 4, 4), (0, 5, 7), (3, 11, 11), (5, 5, 5)],
            "2e-4",
        ),
        3741 / 6735,
    ),
    Task(
        "cola",
        ("matthews", "accuracy", "loss"),
        ("evaluate.metrics=[loss, accuracy, matthews]", EVERY),
        tuple(
            arm
            for arm in arms(
                "sst2-fedlora",
                "cola-fedkd",
                [(6, 8, 8), (8, 10, 10), (6, 8, 8), (7, 9, 9), (8, 12, 12), (9, 9, 9)],
                "1e-4",
                *COLA,
            )
            if arm.name != SLOWER  # its rate is that of the others here
        ),
        365 / 527,
    ),
)


@dataclass(frozen=True)
class Job:
    """One run."""

    task: Task
    arm: Arm
    seed: int

    @property
    def overrides(self) -> list[str]:
        """All but seed, folder of data and place of the run."""
        return [*self.arm.overrides, *self.task.overrides, f"engine.name={self.arm.engine}"]

    @property
    def key(self) -> str:
        """Digest of what the run depends on: the recipe without comments, overrides, seed, version."""
        import yaml

        from fedloom import __version__, recipes

        recipe = yaml.safe_load(recipes.text(self.arm.recipe))
        text = json.dumps([__version__, recipe, self.overrides, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def found() -> dict[str, Record]:
    """Finished runs by key."""
    lines = CACHE.read_text().splitlines() if CACHE.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def jobs(tasks: list[Task]) -> Iterator[Job]:
    """All runs in their order."""
    every = [Job(task, arm, seed) for seed in SEEDS for task in tasks for arm in task.arms]
    return iter(sorted(every, key=lambda job: job.arm.turns[SEEDS.index(job.seed)]))


# -- a run ---------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Hears a run's events and the CPU seconds between them."""

    record: Record = field(default_factory=lambda: {"curve": [], "losses": [], "training CPU s": 0.0})
    begun: float = 0.0

    def __call__(self, event: Any) -> None:
        """Write down what a table wants."""
        from fedloom.events import Evaluated, RoundFinished, RoundStarted, RunStarted

        told = self.record
        if isinstance(event, RunStarted):
            told |= {"trainable": event.trainable_parameters, "dtype": event.dtype, "clients": event.cohort}
        elif isinstance(event, RoundStarted):
            self.begun = time.process_time()
        elif isinstance(event, RoundFinished):
            told["training CPU s"] = round(told["training CPU s"] + time.process_time() - self.begun, 1)
            told["bytes of a round"] = event.bytes_up + event.bytes_down
            told["losses"].append([event.round, event.loss])
            if event.figures:
                told.setdefault("figures", []).append({"round": event.round, **event.figures})
        elif isinstance(event, Evaluated):
            told["curve"].append({"round": event.round, **event.metrics})


def measure(job: Job) -> Record:
    """Scores of every round, bytes, seconds."""
    from fedloom import load, run

    watch, begun, clock = Watch(), time.process_time(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = [f"run.folder={folder}", f"data.root={os.environ['FEDLOOM_DATA']}", f"seed={job.seed}"]
        run(load(job.arm.recipe, [*job.overrides, *place]), [watch])
    spent = {"CPU s": round(time.process_time() - begun, 1), "elapsed s": round(time.monotonic() - clock, 1)}
    return {**watch.record, **spent}


# -- results -------------------------------------------------------------------------------------------------------


def traffic(arm: Arm, record: Record) -> float:
    """MB between the server and all its clients in a round, both ways.

    FedKD-LoRA's server has a worker of its own, which gets and gives the same student as a client and is no machine of
    its own. Finished runs of before 21 November count it as traffic, later ones do not.
    """
    moved, clients = record["bytes of a round"], record["clients"]
    students = round(moved / (2 * 4 * record["trainable"]))  # float32, there and back
    return moved * (clients / students if arm.recipe.endswith("fedkd") else 1) / 1e6


def shown(values: list[float]) -> str:
    """Mean, and the lowest and highest."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def line(task: Task, arm: Arm, results: dict[str, Record]) -> Record | None:
    """A row of the table over the seeds that are there; None: none is."""
    runs = [results[job.key] for job in jobs([task]) if job.arm == arm and job.key in results]
    if not runs:
        return None
    told: Record = {"arm": arm.name, "seeds": len(runs), "trained": runs[0]["trainable"]}
    told |= {name: shown([run["curve"][-1][name] for run in runs]) for name in task.metrics}
    moved = 0.0 if "algorithm=centralized" in arm.overrides else traffic(arm, runs[0])
    told["MB a round, up + down"] = round(moved, 2)
    told["training CPU s"] = round(statistics.fmean(run["training CPU s"] for run in runs))
    told["whole CPU s"] = round(statistics.fmean(run["CPU s"] for run in runs))
    return told


def curves(task: Task, results: dict[str, Record]) -> list[Record]:
    """The first metric after every round, mean over seeds."""
    rows = []
    for arm in task.arms:
        runs = [results[job.key]["curve"] for job in jobs([task]) if job.arm == arm and job.key in results]
        if runs:
            rounds = [
                (points[0]["round"], [point[task.metrics[0]] for point in points]) for points in zip(*runs, strict=True)
            ]
            rows.append({"arm": arm.name, **{f"round {n}": f"{statistics.fmean(v):.3f}" for n, v in rounds}})
    return rows


def apart(task: Task, ours: str, theirs: str, results: dict[str, Record]) -> str | None:
    """Mean difference of the first metric, seed by seed."""
    by_name = {arm.name: arm for arm in task.arms}
    if ours not in by_name or theirs not in by_name:
        return None
    pairs = [(Job(task, by_name[ours], seed).key, Job(task, by_name[theirs], seed).key) for seed in SEEDS]
    both = [
        results[a]["curve"][-1][task.metrics[0]] - results[b]["curve"][-1][task.metrics[0]]
        for a, b in pairs
        if a in results and b in results
    ]
    if not both:
        return None
    return f"{statistics.fmean(both):+.3f} ({', '.join(f'{gain:+.3f}' for gain in both)})"


COMPARED = (
    ("FedLoRA", "centralized LoRA"), ("FedLoRA", "centralized LoRA, lr 1e-3"), ("FedLoRA", "local LoRA"),
    ("FedLoRA", "FedAvg, full"), ("FedKD-LoRA, student", "FedLoRA, student"), ("FedLoRA, student", "FedLoRA"),
)  # fmt: skip


def tables(results: dict[str, Record]) -> dict[str, Any]:
    """Print the tables; the same as data."""
    told: dict[str, Any] = {}
    for task in TASKS:
        rows = [row for arm in task.arms if (row := line(task, arm, results))]
        if not rows:
            continue
        gains = [(f"{a} - {b}", apart(task, a, b, results)) for a, b in COMPARED]
        differences = [{"difference": what, task.metrics[0]: gain} for what, gain in gains if gain]
        told[task.name] = {
            "larger class": round(task.majority, 3),
            "rows": rows,
            "differences": differences,
            "curves": curves(task, results),
        }
        say(f"\n{task.name}; always the larger class: accuracy {task.majority:.3f}")
        for part in (rows, differences, told[task.name]["curves"]):
            say(f"\n{table(part) if part else 'nothing yet'}")
    return told


def history(job: Job, record: Record) -> Record:
    """A run as FedKD-LoRA's project writes it."""
    losses = [[point["round"], point["loss"]] for point in record["curve"]]
    names = [name for name in job.task.metrics if name != "loss"]
    metrics = {name: [[point["round"], point[name]] for point in record["curve"]] for name in names}
    return {
        "config": {"task": job.task.name, "arm": job.arm.name, "seed": job.seed, "recipe": job.arm.recipe,
                   "overrides": job.overrides},
        "history": {"losses_distributed": losses, "metrics_distributed": metrics,
                    "metrics_distributed_fit": {"loss": record["losses"]}},
        "elapsed_time_secs": record["elapsed s"],
        "cpu_time_secs": record["CPU s"],
    }  # fmt: skip


def main() -> int:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    wanted.add_argument("--task", choices=[task.name for task in TASKS], help="run only this one")
    wanted.add_argument("--tables", action="store_true", help="run nothing")
    asked, results, begun = wanted.parse_args(), found(), time.monotonic()
    if "FEDLOOM_DATA" not in os.environ:
        say("classify: skipped; set FEDLOOM_DATA to the folder of data sets")
        return 0
    chosen = [task for task in TASKS if asked.task in (None, task.name)]
    for job in jobs(chosen) if not asked.tables else ():
        if job.key in results:
            continue
        if time.monotonic() - begun > 60 * asked.minutes:
            say("classify: out of time; the same command goes on")
            break
        told = {"key": job.key, "task": job.task.name, "arm": job.arm.name, "seed": job.seed, **measure(job)}
        results[job.key] = told
        with CACHE.open("a") as file:
            file.write(json.dumps(told) + "\n")
        last = {name: round(told["curve"][-1][name], 4) for name in job.task.metrics}
        say(f"{job.task.name}, {job.arm.name}, seed {job.seed}: {last}, CPU s {told['CPU s']}")
    told = tables(results)
    done = [(job, results[job.key]) for job in jobs(list(TASKS)) if job.key in results]
    missing = sum(1 for _ in jobs(list(TASKS))) - len(done)
    if not done:
        return 0
    spent = round(sum(record["CPU s"] for _, record in done) / 60, 1)
    setting = {"seeds": SEEDS, "missing runs": missing, "CPU minutes of all runs": spent}
    write("classify", "FEDLOOM_DATA=... python benchmarks/run.py classify", {**setting, **told})
    HISTORIES.write_text(json.dumps([history(job, record) for job, record in done], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
