"""One local training without gradients, step by step, whoever computes its losses.

MeZO (Malladi et al. 2023, https://arxiv.org/abs/2305.17333): z drawn from a seed, L+ and L- the batch's losses at
theta + epsilon z and theta - epsilon z, g = (L+ - L-) / 2 epsilon, theta <- theta - lr (g z + lambda theta). Of several
directions the mean is taken. A step in which a loss is not finite, or two differ by more than a limit, is left out and
counted; a training that ends in losses that are not finite has diverged, and its client fails.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import torch

from fedloom import noise
from fedloom.contracts import ClientFailed, Wandered
from fedloom.drift import Footing, Strayed
from fedloom.engine.requests import Wander
from fedloom.objectives.base import Objective
from fedloom.params import Params

Point: TypeAlias = tuple[int, float]
"""(seed, shift): theta + shift z(seed); a shift of 0 is theta itself."""
HERE: Final[Point] = (0, 0.0)
Moves: TypeAlias = Sequence[tuple[int, float]]
"""(seed, amount): theta += amount z(seed)."""


class Walk:
    """Counts the steps of a request and says where to look and where to go."""

    def __init__(self, request: Wander, objective: Objective) -> None:
        request.check()
        self.request, self.objective = request, objective
        self.step = -1
        self.batch: Sequence[Any] = ()
        self.count = 0
        """Units the loss of the batch at hand is a mean over."""
        directions = len(request.seeds[0]) if request.seeds else 1
        self._slopes = torch.full((len(request.batches), directions), math.nan, dtype=torch.float64)
        self._losses, self._rates = list[float](), list[float]()
        self._examples = self._tokens = self._skipped = 0
        self._astray: str | None = None
        """Since the last step taken: why the walk cannot go on."""

    def next(self) -> bool:
        """Go to the next batch of which something can be learned; False when there is none left."""
        while self.step + 1 < len(self.request.batches):
            self.step += 1
            self.batch = self.request.batches[self.step]
            self.count = self.objective.count(self.batch)
            if self.count:
                return True
            self._skipped += 1
        return False

    def points(self) -> list[Point]:
        """Where this step wants losses."""
        epsilon, seeds = self.request.epsilon, self.request.seeds[self.step]
        if self.request.forward:
            return [HERE, *((seed, epsilon) for seed in seeds)]
        return [(seed, shift) for seed in seeds for shift in (epsilon, -epsilon)]

    def close(self, losses: Sequence[float], move: Callable[[Moves, float], None]) -> None:
        """Work out the slopes and take the step, unless it is left out.

        Args:
            losses: at `points`, means over the batch's units.
            move: takes a step, see `advanced`.
        """
        request, lr = self.request, self.request.lrs[self.step]
        above, below = (losses[1:], [losses[0]] * len(losses[1:])) if request.forward else (losses[::2], losses[1::2])
        apart = [up - down for up, down in zip(above, below, strict=True)]
        if not all(map(math.isfinite, losses)):
            self._leave_out(f"loss not finite from step {self.step} to the end (lr {lr:g})")
            return
        if request.limit is not None and max(map(abs, apart)) > request.limit:
            self._skipped += 1
            return
        width = request.epsilon * (1 if request.forward else 2)
        slopes = [difference / width for difference in apart]
        if request.step:
            count = len(slopes)
            moves = [(s, -lr * g / count) for s, g in zip(request.seeds[self.step], slopes, strict=True)]
            try:
                move(moves, lr * request.weight_decay)
            except Strayed as strayed:
                self._leave_out(f"step {self.step}: {strayed}")
                return
        self._astray = None
        self._slopes[self.step] = torch.tensor(slopes, dtype=torch.float64)
        between = below if request.forward else [(up + down) / 2 for up, down in zip(above, below, strict=True)]
        self._losses.append(sum(between) / len(between))
        self._rates.append(lr)
        self._examples, self._tokens = self._examples + len(self.batch), self._tokens + self.count

    def result(self, read: Callable[[], Params]) -> Wandered | ClientFailed:
        """What came out.

        Args:
            read: gives the weights now [P] on the CPU; asked only if they are wanted.
        """
        if self._astray is not None:
            return ClientFailed(self._astray, "nonfinite")
        request, steps = self.request, len(self._losses)
        return Wandered(
            y=read() if request.keep else None,
            seeds=tuple(tuple(row) for row in request.seeds),
            slopes=self._slopes,
            rates=torch.tensor(list(request.lrs), dtype=torch.float64),
            steps=steps,
            lr_sum=sum(self._rates),
            examples=self._examples,
            tokens=self._tokens,
            loss=sum(self._losses) / steps if steps else None,
            skipped=self._skipped,
        )

    def _leave_out(self, why: str) -> None:
        self._skipped += 1
        self._astray = self._astray or why


def advanced(w: Params, footing: Footing | None, request: Wander, moves: Moves, shrink: float) -> None:
    """Take a step in place: leaves that decay lose a share `shrink`, then the moves are added.

    Args:
        w: [P] the weights.
        footing: what stands in them, where they are a drift's.
        request: whose step it is.
        moves: along which directions, how far.
        shrink: rate times weight decay.

    Raises:
        Strayed: the weights leave the range they can be moved in; they are as they were.
    """
    if footing is not None:
        amounts = dict[int, float]()
        for seed, amount in moves:
            amounts[seed] = amounts.get(seed, 0.0) + amount
        footing.add(amounts)
        return
    if shrink:
        views = request.layout.views(w)
        for name in request.decayed:
            views[name].mul_(1 - shrink)
    for seed, amount in moves:
        noise.add(w, request.layout, seed, amount, request.kind)
