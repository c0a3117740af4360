"""Several runs side by side: a table of results, what differs between them, and their curves in one chart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.metrics.summary import direction
from fedloom.report import figures, words
from fedloom.report.canvas import COLOURS
from fedloom.report.facts import HEADLINES, Change, Facts, Points, differences, points, total
from fedloom.report.figures import Line, Picture, run_look

NAMES = ("run.name", "run.folder")
"""Settings that name a run and do nothing else."""
MOMENTS = ("started", "config")
"""Entries of env.json that differ anyway: the time, and the digest of the configuration."""
_DASHES = {"-": "", "--": "5 3", ":": "1.5 2.5", "-.": "6 2 1.5 2"}


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    label: str
    colour: str
    """A colour of the page."""
    dash: str
    """An SVG dash pattern; empty for an unbroken line."""
    before: str
    after: str
    worst: str
    rounds: str
    traffic: str
    time: str
    status: str


@dataclass(frozen=True)
class Table:
    """Results by the metric all runs share, best first."""

    metric: str | None
    verdict: str
    runs: Sequence[Facts]
    """In the table's order; a run's colour is its place."""
    results: Sequence[Result]


@dataclass(frozen=True)
class Differences:
    """Rows of (name, one text per run)."""

    labels: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def table(runs: Sequence[Facts]) -> Table:
    """The runs, best first by the first headline metric that all of them have; in the given order without one."""
    metric = next((name for name in HEADLINES if all(run.change(name) for run in runs)), None)
    ordered = list(runs) if metric is None else _ranked(runs, metric)
    return Table(
        metric, _verdict(ordered, metric), ordered, [_result(run, look, metric) for look, run in enumerate(ordered)]
    )


def config_differences(runs: Sequence[Facts]) -> Differences:
    """Settings that are not the same in all runs, names left out."""
    return _differences(runs, differences([run.config for run in runs], NAMES))


def env_differences(runs: Sequence[Facts]) -> Differences:
    """Versions and devices that are not the same in all runs."""
    return _differences(runs, differences([run.env for run in runs], MOMENTS))


def learning(runs: Sequence[Facts]) -> list[Picture]:
    """Every metric worth a picture that any run evaluated, and the training loss."""
    found = []
    for metric in (*words.CURVES, "loss"):
        changes = [run.change(metric) for run in runs]
        found += _overlaid(
            runs, words.metric_name(metric), metric, [change.points if change else () for change in changes]
        )
    return [*found, *_overlaid(runs, "Loss in training", "loss", [run.train_loss() for run in runs])]


def clients(runs: Sequence[Facts]) -> list[Picture]:
    """Each run's clients at its last evaluation, for the metric that most runs have."""
    spreads = [run.spread() for run in runs]
    metrics = [spread.metric for spread in spreads if spread]
    if not metrics:
        return []
    metric = max(metrics, key=metrics.count)
    lines = [
        Line(run.label, figures.sorted_values(spread.last), *run_look(look))
        for look, (run, spread) in enumerate(zip(runs, spreads, strict=True))
        if spread and spread.metric == metric
    ]
    title = f"{words.metric_name(metric)} of clients, last evaluation"
    return [figures.sorted_clients(title, metric, lines, with_legend=False)]


def cost(runs: Sequence[Facts]) -> list[Picture]:
    """Bytes and seconds summed over rounds."""
    traffic = [
        Line(run.label, tuple((x, up + dict(points(run.rounds, "bytes_down")).get(x, 0.0)) for x, up in ups), *look)
        for run, ups, look in ((r, points(r.rounds, "bytes_up"), run_look(i)) for i, r in enumerate(runs))
        if ups
    ]
    moving = any(y for line in traffic for _, y in line.points)
    found = [figures.cumulative("Traffic in all, up and down", traffic)] if moving else []
    return [*found, *_overlaid(runs, "Seconds per round", "seconds", [points(run.rounds, "seconds") for run in runs])]


def _overlaid(runs: Sequence[Facts], title: str, metric: str, curves: Sequence[Points]) -> list[Picture]:
    """One chart of all curves that have points; none if no curve has."""
    numbered = enumerate(zip(runs, curves, strict=True))
    lines = [Line(run.label, curve, *run_look(look)) for look, (run, curve) in numbered if curve]
    return [figures.curves(title, metric, lines, with_legend=False)] if lines else []


def _ranked(runs: Sequence[Facts], metric: str) -> list[Facts]:
    def last(run: Facts) -> float:
        change = run.change(metric)
        return change.last[1] if change else 0.0

    return sorted(runs, key=last, reverse=direction(metric) == "higher")


def _verdict(ordered: Sequence[Facts], metric: str | None) -> str:
    """Who is best, and by how much."""
    changes = [run.change(metric) for run in ordered[:2]] if metric else []
    if metric is None or len(changes) < 2 or changes[0] is None or changes[1] is None:
        return "The runs share no evaluated metric."
    name, best, second = words.metric_name(metric), changes[0].last[1], changes[1].last[1]
    if best == second:
        return f"{ordered[0].label} and {ordered[1].label} end alike: {_lower(name)} {words.value(metric, best)}."
    next_best = f"{ordered[1].label} reached {words.value(metric, second)}"
    return f"{ordered[0].label} is best: {_lower(name)} {words.value(metric, best)}; {next_best}."


def _lower(name: str) -> str:
    """A metric's name within a sentence; an abbreviation stays as it is."""
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def _result(run: Facts, look: int, metric: str | None) -> Result:
    change = None if metric is None else run.change(metric)
    colour, style = run_look(look)
    of = run.rounds_planned
    done = f"{run.rounds_done:,}" if of in {None, run.rounds_done} else f"{run.rounds_done:,} of {of:,}"
    return Result(
        label=run.label,
        colour=f"var(--c{COLOURS.index(colour)})",
        dash=_DASHES[style],
        before=words.value(change.metric, change.first[1]) if change else "–",
        after=words.value(change.metric, change.last[1]) if change else "–",
        worst=_worst(run, change),
        rounds=done,
        traffic=words.amount(total(run.rounds, "bytes_up") + total(run.rounds, "bytes_down")),
        time=words.duration(run.seconds),
        status=run.status.replace("_", " "),
    )


def _worst(run: Facts, change: Change | None) -> str:
    """Mean of the worst tenth of clients at the last evaluation."""
    curve = () if change is None else run.worst_tenth(change)
    return words.value(change.metric, curve[-1][1]) if change and curve else "–"


def _differences(runs: Sequence[Facts], found: dict[str, list[Any]]) -> Differences:
    rows = [(name, [_setting(value) for value in values]) for name, values in found.items()]
    return Differences([run.label for run in runs], rows)


def _setting(value: Any) -> str:
    """A setting as in a configuration file; a dash where the run has none of that name."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
