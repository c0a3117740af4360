"""Summaries over clients, and which of two values is better.

For a metric m over n clients with values m_1 .. m_n:
    m               pooled: as if all rows belonged to one client (the loss: mean over all tokens, rows or pairs)
    m_mean          unweighted mean over clients
    m_std           population standard deviation over clients
    m_worst_decile  mean of the ceil(n / 10) worst clients
Sums are correctly rounded (math.fsum), so the order of clients does not change a bit.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from fedloom.errors import UserError, nearest
from fedloom.metrics.config import MetricName
from fedloom.metrics.scores import Scores, merged

METRICS: tuple[MetricName, ...] = get_args(MetricName)
SPREADS = ("mean", "std", "worst_decile")
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "reward_rejected"})


def columns(names: Sequence[MetricName]) -> list[str]:
    """Every key `summarise` can give, in its order: the pooled metrics, then each one's spreads."""
    return [*names, *(f"{name}_{spread}" for name in names for spread in SPREADS)]


def summarise(per_client: Mapping[str, Scores], names: Sequence[MetricName]) -> dict[str, float]:
    """Pooled metrics and their spread over clients; what no client has is absent.

    A client that has nothing to compute a metric from (no labelled tokens, no answers, no pairs) is left out of that
    metric's spread.
    """
    values = pooled(per_client.values()).metrics(names)
    of_clients = [scores.metrics(names) for scores in per_client.values()]
    for name in names:
        present = [metrics[name] for metrics in of_clients if name in metrics]
        if present:
            values |= _spread(name, present)
    return {column: values[column] for column in columns(names) if column in values}


def pooled(parts: Iterable[Scores]) -> Scores:
    """All parts as one; equal to adding them up, but in any order to the same bits."""
    parts = list(parts)
    return Scores(
        examples=sum(part.examples for part in parts),
        tokens=sum(part.tokens for part in parts),
        nll=_sum(part.nll for part in parts),
        answered=sum(part.answered for part in parts),
        exact=sum(part.exact for part in parts),
        rouge=_sum(part.rouge for part in parts),
        pairs=_sum(part.pairs for part in parts),
        won=_sum(part.won for part in parts),
        good=_sum(part.good for part in parts),
        bad=_sum(part.bad for part in parts),
        chosen_reward=_sum(part.chosen_reward for part in parts),
        rejected_reward=_sum(part.rejected_reward for part in parts),
        confusion=merged(part.confusion for part in parts),
    )


def direction(metric: str) -> Literal["lower", "higher"]:
    """Which way is better: lower for loss, perplexity, reward_rejected and every spread `_std`, higher for the others.

    Raises:
        UserError: `metric` is no column of metrics.csv.
    """
    known = columns(METRICS)
    if metric not in known:
        raise UserError(f"{metric!r} is not a metric.{nearest(metric, known)}")
    return "lower" if _base(metric) in LOWER_IS_BETTER or metric.endswith("_std") else "higher"


def better(metric: str, new: float, old: float | None, min_delta: float = 0.0) -> bool:
    """Whether `new` improves on `old` by more than `min_delta` (in the metric's unit).

    A value that is not finite is never better; a finite one is better than None or than one that is not.

    Raises:
        UserError: `metric` is no column of metrics.csv.
    """
    lower = direction(metric) == "lower"
    if not math.isfinite(new):
        return False
    if old is None or not math.isfinite(old):
        return True
    return new < old - min_delta if lower else new > old + min_delta


def _base(column: str) -> str:
    """The metric a column summarises: loss for loss_worst_decile."""
    return next((column.removesuffix(f"_{spread}") for spread in SPREADS if column.endswith(f"_{spread}")), column)


def _spread(name: MetricName, values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and worst tenth of one value per client."""
    mean = _mean(values)
    worst_first = sorted(values, reverse=name in LOWER_IS_BETTER)
    # A NaN has no place in an order; it is the worst there is.
    worst_first.sort(key=lambda value: not math.isnan(value))
    return {
        f"{name}_mean": mean,
        f"{name}_std": _std(values, mean),
        f"{name}_worst_decile": _mean(worst_first[: math.ceil(len(values) / 10)]),
    }


def _mean(values: Sequence[float]) -> float:
    return _sum(values) / len(values)


def _std(values: Sequence[float], mean: float) -> float:
    if math.isinf(mean):
        return math.inf  # inf - inf is NaN, but a spread without bound is meant
    return math.sqrt(_mean([(value - mean) * (value - mean) for value in values]))


def _sum(values: Iterable[float]) -> float:
    """math.fsum, infinite where the sum exceeds the largest float (perplexities of a diverged model)."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf
