"""Writes the report of one run, or of several side by side, as one HTML file that needs nothing else.

No script, no font and no image is loaded; the page's own policy forbids it. Text that comes from a run is escaped by
the templates; only our own SVG and the style sheet are not.
"""

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedloom import atomic
from fedloom.errors import UserError
from fedloom.folder import RunFolder
from fedloom.report import compare, drift, figures, method, story, words
from fedloom.report.canvas import COLOURS, PALE, inline
from fedloom.report.facts import Facts, points, read, total
from fedloom.report.figures import Line, Picture


def write(folders: list[Path], out: Path | None = None) -> Path:
    """Write the report of the given runs and return its path.

    Args:
        folders: run folders; one that is named twice counts once.
        out: the file to write; None: report.html in the folder of a single run, in the current folder for several.

    Raises:
        UserError: no folder is given, or one is no run folder.
    """
    if not folders:
        raise UserError("A report needs a run folder; none was given. Runs are usually in runs/.")
    unique = list({folder.resolve(): folder for folder in folders}.values())
    runs = [RunFolder(folder) for folder in unique]
    facts = [read(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    out = out or (unique[0] / "report.html" if len(unique) == 1 else Path("report.html"))
    atomic.write_text(out, one(facts[0]) if len(facts) == 1 else several(facts))
    return out


def one(facts: Facts) -> str:
    """The page of one run."""
    spread = facts.spread()
    return _render(
        "one.html",
        title=facts.label,
        facts=facts,
        about=story.about(facts, method.name(facts.config)),
        verdict=story.verdict(facts),
        tiles=story.tiles(facts),
        remarks=[*story.remarks(facts), *method.remarks(facts)],
        method=method.rows(facts),
        learning=_learning(facts),
        drift_heading=drift.HEADING,
        drift=drift.one(facts),
        noted=drift.noted(facts),
        spread=spread,
        spread_picture=figures.spread(spread) if spread else None,
        spread_table=story.spread_table(spread) if spread else [],
        cost=_cost(facts),
        partition=_partition(facts),
        replies=story.replies(facts),
        env=sorted(facts.env.items()),
    )


def several(runs: Sequence[Facts]) -> str:
    """The page that lays several runs over each other."""
    table = compare.table(runs)
    return _render(
        "several.html",
        title=f"{len(runs)} runs compared",
        table=table,
        differences=compare.config_differences(table.runs),
        surroundings=compare.env_differences(table.runs),
        learning=[*compare.learning(table.runs), *compare.clients(table.runs)],
        drift_heading=drift.HEADING,
        drift=drift.several(table.runs),
        cost=compare.cost(table.runs),
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("fedloom", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = Markup  # only for pictures we drew
    style = resources.files("fedloom.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=Markup(style), words=words, **values)


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """The runs' names; where two share one, their folders'; where these are the same too, their paths."""
    for labels in ([run.name for run in runs], [run.path.resolve().name for run in runs]):
        if max(Counter(labels).values()) == 1:
            return labels
    return [str(run.path) for run in runs]


def _learning(facts: Facts) -> list[Picture]:
    """Loss in training and evaluation, then every metric worth a picture."""
    train = Line("training", facts.train_loss(), PALE)
    losses = [train, *_split_lines(facts, "loss")]
    found = [figures.curves("Loss", "loss", [line for line in losses if line.points])]
    for metric in words.CURVES:
        lines = _split_lines(facts, metric)
        change = facts.change(metric)
        if change is not None:
            of_split = COLOURS[facts.splits.index(change.split)]
            lines.append(Line("worst tenth of clients", facts.worst_tenth(change), of_split, ":"))
            shown = [line for line in lines if line.points]
            found.append(figures.curves(words.metric_name(metric), metric, shown))
    return found if any(line.points for line in losses) else found[1:]


def _split_lines(facts: Facts, metric: str) -> list[Line]:
    return [Line(split, facts.curve(metric, split), COLOURS[i]) for i, split in enumerate(facts.splits)]


def _cost(facts: Facts) -> list[Picture]:
    """Traffic of each round and in all, and time; what is nothing throughout is left out."""
    up, down = points(facts.rounds, "bytes_up"), points(facts.rounds, "bytes_down")
    found = []
    if total(facts.rounds, "bytes_up") + total(facts.rounds, "bytes_down"):
        found += [figures.traffic(up, down), figures.traffic_in_all(up, down)]
    if facts.rounds:
        found.append(figures.seconds(points(facts.rounds, "seconds"), _evaluation_seconds(facts)))
    return found


def _evaluation_seconds(facts: Facts) -> tuple[tuple[float, float], ...]:
    """Seconds of a round's evaluations, its splits together."""
    curves = [points([row for row in facts.metrics if row["split"] == split], "seconds") for split in facts.splits]
    sums: Counter[float] = Counter()
    for curve in curves:
        sums.update(dict(curve))
    return tuple(sorted(sums.items()))


def _partition(facts: Facts) -> Picture | None:
    """Who holds what, drawn; None if the run did not get so far."""
    if not facts.holdings:
        return None
    from fedloom.data.picture import partition_svg

    drawn = partition_svg([dict(client) for client in facts.holdings])
    told = story.holdings(facts)
    return Picture("Who holds what", inline(drawn, "Who holds what", told), told)
