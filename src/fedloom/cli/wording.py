"""Events and numbers as short text for the console; everything fits 80 columns."""

from collections.abc import Mapping
from typing import Final

from fedloom.events import Evaluated, ReplyMissing, RoundFinished, RunStarted

_SHARES: Final = ("preference_accuracy", "exact_match", "rouge_l", "accuracy", "f1", "f1_weighted", "f1_micro")
"""Metrics between 0 and 1, where more is better; shown in per cent. The first there is speaks for a run."""


def number(metric: str, value: float) -> str:
    """A metric's value, rounded for reading: 43.1 %, 0.512, 1.2e+06."""
    if metric.startswith(_SHARES):
        return f"{100 * value:.1f} %"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """1:05 or 2:03:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count(value: int) -> str:
    """1,234,567 as 1.2 M."""
    for limit, sign in ((10**9, "B"), (10**6, "M"), (10**4, "k")):
        if value >= limit:
            return f"{value / (1000 if sign == 'k' else limit):.1f} {sign}"
    return str(value)


def headline(event: RunStarted) -> list[str]:
    """What is about to run."""
    cohort = "all" if event.cohort == event.clients else str(event.cohort)
    behind = f", {event.first_round} of them behind us" if event.first_round else ""
    trained = f"{count(event.trainable_parameters)} of {count(event.base_parameters)} numbers trained"
    return [
        f"{event.name}: {event.algorithm} on {event.model}, {trained}",
        f"{event.clients} clients, {cohort} each round, {event.rounds} rounds{behind}",
        f"engine {event.engine}, {event.dtype} on {event.device}",
        f"folder {event.folder}",
    ]


def evaluated(event: Evaluated) -> str:
    """One line of an evaluation: its pooled metrics, without the spreads over clients."""
    plain = {name: value for name, value in event.metrics.items() if not is_spread(name)}
    values = ", ".join(f"{name} {number(name, value)}" for name, value in plain.items())
    return f"round {event.round:>3}  {event.split}: {values or 'nothing could be scored'}"


def is_spread(metric: str) -> bool:
    """Whether a metric describes how clients differ, not how they do."""
    return metric.endswith(("_mean", "_std", "_worst_decile"))


def main_metric(metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """The one metric worth a place in the bar: a share of right answers if there is one, else the loss."""
    return next(((name, metrics[name]) for name in (*_SHARES, "loss") if name in metrics), None)


def finished(event: RoundFinished) -> str:
    """Loss and speed of a round, and how many replies are missing."""
    parts = [loss(event), speed(event), f"{event.missing} missing" if event.missing else ""]
    return "  ".join(part for part in parts if part)


def loss(event: RoundFinished) -> str:
    """The round's training loss."""
    return "no step taken" if event.loss is None else f"loss {event.loss:.3f}"


def speed(event: RoundFinished) -> str:
    """Examples trained on per second of the round."""
    return f"{event.examples / event.seconds:.0f} ex/s" if event.seconds > 0 else ""


def missing(event: ReplyMissing) -> str:
    """Who did not count, and why."""
    detail = f": {event.detail}" if event.detail else ""
    return f"round {event.round}: {event.name} does not count ({event.reason}{detail})"
