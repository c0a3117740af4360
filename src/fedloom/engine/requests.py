"""What a client may ask of an engine, as plain values: the whole of what an engine needs to know.

Examples are whatever the engine and its objective understand (`fedloom.data.encode.Encoded` for language models).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from fedloom import rng
from fedloom.contracts import Carry, Correct, Penalty
from fedloom.drift import Drift
from fedloom.engine.config import OptimizerConfig
from fedloom.noise import Kind
from fedloom.params import Layout, Params

On: TypeAlias = Literal["trained", "plugged"]
"""Which model is meant where there are two: the one the federation trains, or its owner's with the numbers put back."""


@dataclass(frozen=True)
class Descend:
    """Local training from `start`: one batch and one learning rate for each step."""

    start: Params
    layout: Layout
    """What the vector means: clients of different ranks have different ones."""
    batches: Sequence[Sequence[Any]]
    """Examples of each step."""
    lrs: Sequence[float]
    optimizer: OptimizerConfig
    max_grad_norm: float | None
    accumulate: int
    seed: int
    """Root of dropout's random numbers; a step's own are drawn from (seed, step)."""
    label: str
    """Who trains, for messages: `client-007, round 12`."""
    train: Sequence[str] | None = None
    correct: Correct | None = None
    with_: Sequence[Tensor] = ()
    penalty: Penalty | None = None
    gradient: bool = False
    carry: Carry = ()
    inner: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Wander:
    """Local training without gradients: one batch, one rate and some directions for each step."""

    start: Params | Drift
    layout: Layout
    batches: Sequence[Sequence[Any]]
    lrs: Sequence[float]
    seeds: Sequence[Sequence[int]]
    """[steps, directions]"""
    epsilon: float
    label: str
    """Who trains, for messages."""
    accumulate: int = 1
    """Parts a batch is computed in."""
    weight_decay: float = 0.0
    decayed: Sequence[str] = ()
    """Leaves that decay."""
    limit: float | None = None
    forward: bool = False
    kind: Kind = "gaussian"
    keep: bool = True
    step: bool = True
    carry: Carry = ()

    def check(self) -> None:
        """Whether it can be done at all.

        Raises:
            ValueError: it cannot.
        """
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon={self.epsilon}: the two points must lie apart; take a number above 0 (1e-3)")
        counts = {len(row) for row in self.seeds}
        if len(self.seeds) != len(self.batches) or len(counts) > 1 or 0 in counts:
            raise ValueError(
                f"{len(self.batches)} steps need as many rows of seeds, each of the same number of directions (at "
                f"least 1); there are {len(self.seeds)} rows of {sorted(counts)}"
            )
        if self.weight_decay and isinstance(self.start, Drift):
            raise ValueError("weight decay leads away from every drift; do without, or start at weights")
        if isinstance(self.start, Drift) and (self.carry or self.start.kind != self.kind):
            raise ValueError("a drift carries nothing, and has the distribution of its steps")
        unknown = sorted(set(self.decayed) - set(self.layout.names))
        if unknown:
            raise ValueError(f"`decayed` names no leaf: {', '.join(unknown[:4])}")


@dataclass(frozen=True)
class Probe:
    """Losses of one batch at several points."""

    points: Sequence[Params]
    layout: Layout
    examples: Sequence[Any]
    carry: Carry = ()


@dataclass(frozen=True)
class Stand:
    """The weights a drift leads to."""

    drift: Drift
    layout: Layout


@dataclass(frozen=True)
class Logits:
    """The model's outputs at `x`."""

    x: Params
    layout: Layout
    examples: Sequence[Any]
    carry: Carry = ()


@dataclass(frozen=True)
class Evaluate:
    """Scores of examples at `x`; the engine may serve calls with one and the same `x` together."""

    x: Params
    layout: Layout
    examples: Sequence[Any]
    metrics: tuple[str, ...]
    batch_size: int
    max_new_tokens: int
    carry: Carry = ()
    drift: Drift | None = None
    """Where the model stands instead of at `x`."""
    on: On = "trained"


@dataclass(frozen=True)
class Generate:
    """Greedy continuations of prompts (token ids) at `x`."""

    x: Params
    layout: Layout
    prompts: Sequence[Sequence[int]]
    batch_size: int
    max_new_tokens: int
    carry: Carry = ()
    drift: Drift | None = None


def own_seeds(root: int, turn: int, steps: int, directions: int) -> list[list[int]]:
    """[steps, directions] seeds that nobody else draws: of a client's task, and the how many-th training in it."""
    return [[rng.key(root, "direction", turn, step, j) for j in range(directions)] for step in range(steps)]


def matrices(layout: Layout) -> list[str]:
    """Leaves that decay where nothing else is said: biases and norms, which do not, have one dimension."""
    return [leaf.name for leaf in layout.leaves if len(leaf.shape) > 1]
