"""The study: what algorithms and rank mixtures are worth at equal cost, three seeds each (`study_methods` says which).

Settings are chosen on validation rows of another seed, then measured on test rows. Every finished run is a line of
results/study.jsonl, keyed by recipe and overrides; a run that is there is not run again, so an interrupted study goes
on where it stopped. All runs are of one engine, the plainest: engines agree up to rounding, but rounding in bfloat16
grows over a run to a hundredth of the loss (once measured: 0.301 and 0.313), and runs of one seed are compared.

    python benchmarks/study.py                  # what is missing, then tables and results/study.json
    python benchmarks/study.py --minutes 30     # starts no run after half an hour
    python benchmarks/study.py --part playground    # one of the two parts; both can run side by side
    python benchmarks/study.py --tables         # runs nothing, prints the tables of what there is
"""

import argparse
import functools
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from machine import RESULTS, say, table, write
from study_methods import PARTS, SEARCH_SEED, SEEDS, Method, Overrides, Part

CACHE = RESULTS / "study.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run."""

    part: Part
    method: str
    setting: str
    seed: int
    overrides: Overrides
    """All but seed, folder of data and place of the run."""

    @property
    def key(self) -> str:
        """Digest of what the run depends on: the recipe without comments, overrides, seed, version."""
        from fedloom import __version__

        text = json.dumps([__version__, content(self.part.recipe), self.overrides, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def content(recipe: str) -> Any:
    """A shipped recipe without its comments."""
    import yaml

    from fedloom import recipes

    return yaml.safe_load(recipes.text(recipe))


class Results:
    """Finished runs by key, in a file of JSON lines."""

    def __init__(self) -> None:
        lines = CACHE.read_text().splitlines() if CACHE.exists() else []
        self.found: dict[str, Record] = {line["key"]: line for line in map(json.loads, lines)}

    def __contains__(self, job: Job) -> bool:
        return job.key in self.found

    def __getitem__(self, job: Job) -> Record:
        return self.found[job.key]

    def add(self, job: Job, record: Record) -> None:
        """Keep it, on disk too."""
        told = {"part": job.part.name, "method": job.method, "setting": job.setting, "seed": job.seed}
        self.found[job.key] = {"key": job.key, **told, "overrides": job.overrides, **record}
        with CACHE.open("a") as file:
            file.write(json.dumps(self.found[job.key]) + "\n")


# -- what is to be run -----------------------------------------------------------------------------------------------


def tries(part: Part, method: Method, results: Results) -> list[Job]:
    """The runs that choose a method's own setting; empty while the method it follows has not chosen."""
    base = inherited(part, method, results)
    if base is None:
        return []
    common = (*method.overrides, *base, *part.settings[part.search], "evaluate.split=validation")
    return [Job(part, method.name, part.search, SEARCH_SEED, (*common, one)) for one in method.tries]


def inherited(part: Part, method: Method, results: Results) -> Overrides | None:
    """The choice of the method this one follows; None while it has none."""
    if not method.follows:
        return ()
    return choice(part, next(one for one in part.methods if one.name == method.follows), results)


def choice(part: Part, method: Method, results: Results) -> Overrides | None:
    """What the search found best, what is taken over included; None while runs are missing."""
    base = inherited(part, method, results)
    if base is None:
        return None
    if not method.tries:
        return base
    jobs = tries(part, method, results)
    if not all(job in results for job in jobs):
        return None
    best = min(range(len(jobs)), key=lambda i: results[jobs[i]]["after"]["loss"])
    return (*base, method.tries[best])


def measured(part: Part, method: Method, setting: str, seed: int, results: Results) -> Job | None:
    """A run of the table; None while its settings are not chosen."""
    chosen = choice(part, method, results)
    if chosen is None:
        return None
    return Job(part, method.name, setting, seed, (*method.overrides, *chosen, *part.settings[setting]))


def pending(parts: list[Part], results: Results) -> Iterator[Job]:
    """What is left to run: searches, then seed after seed, extras last. Looks at `results` as it goes."""
    for part in parts:
        for method in part.methods:
            yield from (job for job in tries(part, method, results) if job not in results)
    for extra in (False, True):
        for seed in SEEDS:
            for part in parts:
                for method in (one for one in part.methods if one.extra == extra):
                    for setting in part.settings:
                        job = measured(part, method, setting, seed, results)
                        if job is not None and job not in results:
                            yield job


def measure(job: Job) -> Record:
    """Scores before and after, bytes, seconds of CPU."""
    from fedloom import load, run
    from fedloom.events import Evaluated, Event, RoundFinished, RunStarted

    begun, scores, engine, up = time.process_time(), list[dict[str, float]](), "", 0

    def sink(event: Event) -> None:
        nonlocal engine, up
        if isinstance(event, RunStarted):
            engine = event.engine
        elif isinstance(event, RoundFinished):
            up += event.bytes_up
        elif isinstance(event, Evaluated):
            scores.append({name: round(value, 5) for name, value in event.metrics.items()})

    with tempfile.TemporaryDirectory() as folder:
        place = [f"run.folder={folder}", "engine.name=reference"]
        if job.part.needs_data:
            place.append(f"data.root={os.environ['FEDLOOM_DATA']}")
        run(load(job.part.recipe, [*job.overrides, f"seed={job.seed}", *place]), [sink])
    seconds = round(time.process_time() - begun, 1)
    return {"before": scores[0], "after": scores[-1], "MB up": round(up / 1e6, 1), "CPU s": seconds, "engine": engine}


# -- tables ----------------------------------------------------------------------------------------------------------


def shown(values: list[float], digits: int = 3) -> str:
    """Mean, and the lowest and highest."""
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def row(part: Part, method: Method, results: Results) -> Record | None:
    """A method's line, over the seeds that are there for it and the reference; None where a setting has none."""
    chosen, reference = choice(part, method, results), next(m for m in part.methods if m.name == part.reference)
    line: Record = {"method": method.name, "chosen": ", ".join(short(one) for one in chosen or ()) or "nothing"}
    for setting in part.settings:
        ours, theirs = seeds(part, method, setting, results), seeds(part, reference, setting, results)
        both = sorted(ours.keys() & theirs.keys())
        if not both:
            return None
        where = f", {setting}" if len(part.settings) > 1 else ""
        line["seeds"] = min(line.get("seeds", len(SEEDS)), len(both))
        for name in part.metrics:
            line[f"{name.replace('_', ' ')}{where}"] = shown([ours[seed]["after"][name] for seed in both])
        line[f"to {part.reference}{where}"] = ""
        if method != reference:
            line[f"to {part.reference}{where}"] = compared(
                [(ours[seed]["after"], theirs[seed]["after"]) for seed in both], part.metrics[0]
            )
    if len(part.settings) == 1:
        line["MB up"] = round(statistics.fmean(record["MB up"] for record in ours.values()), 1)
    return line


def seeds(part: Part, method: Method, setting: str, results: Results) -> dict[int, Record]:
    """What was measured, by seed."""
    jobs = {seed: measured(part, method, setting, seed, results) for seed in SEEDS}
    return {seed: results[job] for seed, job in jobs.items() if job is not None and job in results}


def compared(pairs: list[tuple[dict[str, float], dict[str, float]]], metric: str) -> str:
    """Mean difference of ours to theirs, seed by seed, and in how many seeds ours is better."""
    gains = [ours[metric] - theirs[metric] for ours, theirs in pairs]
    better = sum(gain < 0 if metric == "loss" else gain > 0 for gain in gains)
    return f"{statistics.fmean(gains):+.3f}, better in {better} of {len(gains)}"


def short(override: str) -> str:
    """`aggregate.server_optimizer.lr=1` as `server lr 1`."""
    key, _, value = override.partition("=")
    own = key.rpartition(".")[2]
    return f"{'server ' if key.startswith('aggregate') else ''}{own} {value}"


def searched(part: Part, results: Results) -> list[Record]:
    """Validation losses of all that was tried."""
    rows = []
    for method in part.methods:
        jobs = tries(part, method, results)
        found = [f"{short(job.overrides[-1])}: {results[job]['after']['loss']:.3f}" for job in jobs if job in results]
        if found:
            rows.append({"method": method.name, "validation loss": "; ".join(found)})
    return rows


def tables(parts: list[Part], results: Results) -> dict[str, Any]:
    """Print the tables; the same as data."""
    told: dict[str, Any] = {}
    for part in parts:
        rows = [line for method in part.methods if (line := row(part, method, results))]
        told[part.name] = {"rows": rows, "search": searched(part, results)}
        for found in (rows, told[part.name]["search"]):
            say(f"\n{part.name}\n\n{table(found) if found else 'no complete rows yet'}")
    return told


def main() -> int:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    wanted.add_argument("--part", choices=[part.name for part in PARTS], help="only this one; no JSON is written")
    wanted.add_argument("--tables", action="store_true", help="run nothing")
    asked, results, begun = wanted.parse_args(), Results(), time.monotonic()
    parts = [part for part in PARTS if asked.part in (None, part.name)]
    if "FEDLOOM_DATA" not in os.environ and any(part.needs_data for part in parts):
        say("study: without natural instructions; set FEDLOOM_DATA to the folder of data sets")
        parts = [part for part in parts if not part.needs_data]
    if not asked.tables:
        for job in pending(parts, results):
            if time.monotonic() - begun > 60 * asked.minutes:
                say("study: out of time; the same command goes on")
                break
            record = measure(job)
            results.add(job, record)
            scores = {name: record["after"][name] for name in job.part.metrics}
            say(f"{job.part.name}, {job.setting}, seed {job.seed}, {' '.join(job.overrides)}: {scores}")
    told = tables(parts, results)
    missing = sum(1 for _ in pending(parts, results))
    if missing or len(parts) < len(PARTS):
        say(f"\nstudy: {missing or 'no'} runs of these parts are missing; results/study.json is not written")
        return 0
    spent = round(sum(record["CPU s"] for record in results.found.values()) / 60, 1)
    setting = {"seeds": SEEDS, "search seed": SEARCH_SEED, "CPU minutes of all runs": spent}
    write("study", "FEDLOOM_DATA=... python benchmarks/run.py study", {**setting, **told})
    return 0


if __name__ == "__main__":
    sys.exit(main())
