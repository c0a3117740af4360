"""One local training, step by step, whoever computes its gradients: what is skipped, corrected, clipped and counted.

Order inside a step: gradients of untrained leaves are left out, `correct`, the norm, clipping, the optimiser's step.
A step whose loss or gradient is not finite is left out; one that ends that way has left the numbers a loss can be
computed at, and fails.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedloom.contracts import ClientFailed, Trained
from fedloom.engine.requests import Descend
from fedloom.objectives.base import Objective
from fedloom.params import Params


class Descent:
    """Counts the steps of a request and ends each of them."""

    def __init__(
        self,
        request: Descend,
        objective: Objective,
        g: Tensor,
        now: Callable[[], Params],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Begin.

        Args:
            request: what is asked.
            objective: counts what a batch's loss is a mean over.
            g: [P] where the gradients of the step at hand are summed.
            now: the present weights [P].
            optimizer: over the trained numbers, whose gradients are views of `g`.
        """
        self.request, self.objective, self.g, self.now, self.optimizer = request, objective, g, now, optimizer
        self.step = -1
        self.batch: Sequence[Any] = ()
        self.count = 0
        """Units the loss of the batch at hand is a mean over."""
        self._frozen = _untrained(request, g.device)
        self._with = [vector.to(g.device) for vector in request.with_]
        self._gradient = torch.zeros_like(g) if request.gradient else None
        self._raw: Tensor | None = None
        self._losses, self._rates = list[float](), list[float]()
        self._examples = self._tokens = self._skipped = 0
        self._diverged: int | None = None

    def next(self) -> bool:
        """Go to the next batch in which something can be learned; False when there is none left."""
        while self.step + 1 < len(self.request.batches):
            self.step += 1
            self.batch = self.request.batches[self.step]
            self.count = self.objective.count(self.batch)
            if self.count:
                self.g.zero_()
                return True
            self._skipped += 1
        return False

    def penalty(self, by_name: dict[str, Tensor]) -> Tensor | None:
        """The penalty at these trainable tensors; None: there is none."""
        return None if self.request.penalty is None else self.request.penalty(by_name, *self._with)

    def settle(self) -> Tensor:
        """The gradient is complete: leave out, correct, and give its norm (a scalar)."""
        g = self.g
        if self._frozen is not None:
            g.masked_fill_(self._frozen, 0)
        self._raw = g.clone() if self._gradient is not None else None
        if self.request.correct is not None:
            g.copy_(self.request.correct(g.clone(), self.now(), *self._with))
            if self._frozen is not None:
                g.masked_fill_(self._frozen, 0)
        return g.norm()

    def close(self, loss: float, norm: float) -> bool:
        """Take the step, unless its loss or gradient is not finite; whether it was taken.

        Args:
            loss: mean over the batch's units, penalty included.
            norm: what `settle` gave.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skipped += 1
            if self._diverged is None:
                self._diverged = self.step
            return False
        self._diverged = None
        if self._gradient is not None and self._raw is not None:
            self._gradient += self._raw
        lr, limit = self.request.lrs[self.step], self.request.max_grad_norm
        if limit is not None and norm > limit:
            self.g.mul_(limit / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self._losses.append(loss)
        self._rates.append(lr)
        self._examples, self._tokens = self._examples + len(self.batch), self._tokens + self.count
        return True

    def result(self, y: Params, inner: Callable[[], Any]) -> Trained | ClientFailed:
        """What came out.

        Args:
            y: [P] the weights now, on the CPU.
            inner: the optimiser's memory, asked for only if the request handed one in.
        """
        if self._diverged is not None:
            lr = self.request.lrs[self._diverged]
            return ClientFailed(
                f"loss or gradient not finite from step {self._diverged} to the end (lr {lr:g})", "nonfinite"
            )
        steps = len(self._losses)
        return Trained(
            y,
            steps,
            sum(self._rates),
            self._examples,
            self._tokens,
            sum(self._losses) / steps if steps else None,
            self._skipped,
            None if self._gradient is None else (self._gradient / max(1, steps)).cpu(),
            None if self.request.inner is None else inner(),
        )


def split(batch: Sequence[Any], parts: int) -> Iterator[Sequence[Any]]:
    """The batch in at most `parts` pieces of nearly equal length, none empty."""
    parts = min(parts, len(batch))
    for i in range(parts):
        yield batch[len(batch) * i // parts : len(batch) * (i + 1) // parts]


def _untrained(request: Descend, device: torch.device) -> Tensor | None:
    """[P] bool: numbers that must not move; None when all may."""
    if request.train is None:
        return None
    mask = torch.ones(request.layout.size, dtype=torch.bool, device=device)
    for leaf in request.layout.leaves:
        if leaf.name in request.train:
            mask[leaf.offset : leaf.offset + leaf.size] = False
    return mask
