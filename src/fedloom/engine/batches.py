"""Which rows form which batch: a function of a key, so that any process draws the same."""

import math
from collections.abc import Sequence

from fedloom import rng

GROUP = 8
"""Batches sorted by length together, when lengths are grouped: enough to save padding, few enough to stay mixed."""


def plan(
    count: int,
    batch_size: int,
    seed: int,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    lengths: Sequence[int] | None = None,
) -> list[list[int]]:
    """Row numbers of each batch, in order.

    Rows are shuffled anew for every pass; the last batch of a pass may be smaller.

    Args:
        count: rows there are, at least 1.
        batch_size: rows of a batch.
        seed: key of the order.
        steps: batches to draw; or
        epochs: passes over the rows (at least one batch).
        lengths: tokens of each row; batches of similar lengths are formed when given.
    """
    per_pass = math.ceil(count / batch_size)
    total = steps if steps is not None else max(1, round(per_pass * (epochs or 0)))
    batches: list[list[int]] = []
    while len(batches) < total:
        batches += _one_pass(count, batch_size, rng.key(seed, "pass", len(batches) // per_pass), lengths)
    return batches[:total]


def _one_pass(count: int, batch_size: int, seed: int, lengths: Sequence[int] | None) -> list[list[int]]:
    order = rng.permutation(seed, count)
    if lengths is None:
        return [order[i : i + batch_size] for i in range(0, count, batch_size)]
    batches = []
    for i in range(0, count, batch_size * GROUP):
        near = sorted(order[i : i + batch_size * GROUP], key=lambda row: lengths[row])
        batches += [near[j : j + batch_size] for j in range(0, len(near), batch_size)]
    return [batches[i] for i in rng.permutation(rng.key(seed, "groups"), len(batches))]
