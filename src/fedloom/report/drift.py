"""How far the clients of a round drifted apart, and what the aggregation lost: curves, and a sentence for each.

The figures are those of fedloom.spaces.measure: drift is the spread of the clients around their mean as a share of the
way that mean went; the aggregation error is the distance of the result from the mean of products, as a share of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fedloom.report import words
from fedloom.report.canvas import COLOURS, Axes, chart, rounds_axis
from fedloom.report.facts import Facts, Points, flatten, points
from fedloom.report.figures import Line, Picture, run_look

HEADING: Final = "How far the clients drift apart, and what the aggregation loses"
APART: Final = "How far the clients drift apart"
LOST: Final = "What the aggregation loses"
ROUNDING: Final = 1e-6
"""Errors below are those of float32 numbers, not of a method."""
_LOG_FROM: Final = 20.0
"""From this ratio of the largest to the smallest value on, a scale is logarithmic."""
_DOTS: Final = 25
"""Up to so many rounds each has its dot."""
_SEVERAL: Final = 4
"""With more runs than this a sentence names the two extremes only."""
_NOTED: Final = {
    "rank": ("Rank of the clients", "Mean over the clients of a round; it falls as they prune."),
    "staleness": ("Age of updates", "Versions of the shared model made between sending it and counting the update."),
    "student_loss": (
        "Loss of the student on public rows",
        "Cross-entropy in nats while the server's teacher taught it, after the clients' average.",
    ),
    "teacher_loss": ("Loss of the teacher on public rows", "Cross-entropy in nats, in the same steps."),
    "emulator_distance": (
        "Distance of the emulator's blocks on public rows",
        "Mean squared difference of what its blocks and the owner's put out, over their mean square, while aligned.",
    ),
    "emulator_divergence": (
        "Divergence of the emulator's words on public rows",
        "KL(owner's model, emulator) in nats per token, in the same steps.",
    ),
    "too_old": ("Updates too old to count", "Left out, because more versions old than algorithm.max_staleness."),
}
"""Further figures that algorithms note: heading and what is seen."""


@dataclass(frozen=True)
class Drift:
    """Charts, and what has to be said without one."""

    pictures: Sequence[Picture]
    said: str = ""


def one(facts: Facts) -> Drift:
    """Of one run; without pictures where its algorithm notes nothing."""
    apart, lost = points(facts.rounds, "drift"), points(facts.rounds, "aggregation_error")
    pictures = []
    if apart:
        pictures.append(_picture(APART, [Line("drift", apart, COLOURS[0])], False, f"{_apart(apart[-1][1])}."))
    if not has_products(facts) or not lost:
        return Drift(pictures)
    if _nothing(lost):
        said = "Nothing beyond rounding: in every round the result was the average of the clients’ products."
        return Drift(pictures, said)
    caption = f"In the last round {missed(facts, lost[-1][1])}."
    return Drift([*pictures, _picture(LOST, [Line("error", lost, COLOURS[1])], True, caption)])


def several(runs: Sequence[Facts]) -> list[Picture]:
    """Of several runs, each in its colour."""
    numbered = [(run, run_look(place)) for place, run in enumerate(runs)]
    apart = [Line(run.label, curve, *look) for run, look in numbered if (curve := points(run.rounds, "drift"))]
    lost = [
        Line(run.label, curve, *look)
        for run, look in numbered
        if has_products(run) and (curve := points(run.rounds, "aggregation_error"))
    ]
    found = []
    if apart:
        told = f"Clients from their mean, against how far it moved; in the last round: {_listed(apart, words.times)}."
        found.append(_picture(APART, apart, False, told))
    if any(not _nothing(line.points) for line in lost):
        told = f"In the last round the result missed, of the average of products: {_listed(lost, _of_products)}."
        found.append(_picture(LOST, lost, True, told))
    return found


def noted(facts: Facts) -> list[Picture]:
    """Whatever else the algorithm noted, a chart each; what was 0 throughout is left out."""
    found = []
    for name, curve in facts.figures.items():
        if name not in ("drift", "aggregation_error") and any(y for _, y in curve):
            title, caption = _NOTED.get(name, (name.replace("_", " "), "As noted by the algorithm."))
            found.append(_picture(title, [Line(name, curve, COLOURS[0])], False, caption))
    return found


def missed(facts: Facts, error: float) -> str:
    """What was averaged and how far that is from the mean of products, for the middle of a sentence."""
    settings = flatten(facts.config)
    rule = settings.get("aggregate.rule.name", "mean")
    if rule != "mean":
        return f"the result of {rule} was {words.share(error)} away from the average of all products"
    what = "average of factors" if settings.get("aggregate.space.name", "factors") == "factors" else "result"
    return f"the {what} missed {words.share(error)} of the average of products"


def has_products(facts: Facts) -> bool:
    """Whether two factors are trained, so that there are products to lose something of."""
    settings = flatten(facts.config)
    return settings.get("adapter.kind", "lora") == "lora" and settings.get("adapter.freeze", "none") == "none"


def _nothing(curve: Points) -> bool:
    return all(y <= ROUNDING for _, y in curve)


def _of_products(error: float) -> str:
    return words.share(error) if error > ROUNDING else "nothing"


def _apart(drift: float) -> str:
    return f"In the last round the clients ended {words.times(drift)} as far from their mean as that mean had moved"


def _listed(lines: Sequence[Line], told: Callable[[float], str]) -> str:
    """Last values of all runs, or the smallest and the largest of many."""
    last = [(line.points[-1][1], line.label) for line in lines]
    if len(last) <= _SEVERAL:
        return ", ".join(f"{label} {told(value)}" for value, label in last)
    (least, least_of), (most, most_of) = min(last), max(last)
    return f"from {told(least)} ({least_of}) to {told(most)} ({most_of})"


def _picture(title: str, lines: Sequence[Line], share: bool, caption: str) -> Picture:
    """Curves over rounds; the scale is logarithmic where values differ much, else it holds 0."""
    floor = ROUNDING if share else -math.inf
    shown = [
        Line(line.label, tuple((x, max(y, floor)) for x, y in line.points), line.colour, line.style) for line in lines
    ]
    values = [y for line in shown for _, y in line.points]
    wide = min(values) > 0 and max(values) > _LOG_FROM * min(values)

    def draw(axes: Axes) -> None:
        for line in shown:
            x, y = [x for x, _ in line.points], [y for _, y in line.points]
            dots = "o" if len(line.points) <= _DOTS else ""
            axes.plot(x, y, color=line.colour, linestyle=line.style, marker=dots, markersize=3, linewidth=1.6)
        rounds_axis(axes)
        if wide:
            axes.set_yscale("log", subs=[])
        else:
            axes.set_ylim(min(0.0, 1.08 * min(values)), 1.08 * max(0.0, *values) or 1.0)
        axes.yaxis.set_major_formatter(lambda y, _: words.share(y) if share else f"{y:g}".replace("-", "−"))

    described = " ".join([f"{title}, over rounds.", caption, "The scale is logarithmic." if wide else ""]).strip()
    at_bottom = share and wide and min(values) == floor
    seen = f"{caption} The lowest line is the rounding of float32 numbers." if at_bottom else caption
    return Picture(title, chart(title, described, draw), seen)
