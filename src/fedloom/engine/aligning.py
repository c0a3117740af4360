"""An emulator that learns to be like the blocks it stands for: block-output distillation.

Only the emulator's middle blocks are trained, in float32; all else is one and the same tensor in both models. The loss
of a step is kd_weight · distance + lm_weight · language modelling loss of the emulator. One that is not finite ends the
alignment, and so does such a gradient.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.engine import optimizers, padded
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.lessons import Course
from fedloom.errors import RunStopped
from fedloom.models.emulator import ASKED, cut_out
from fedloom.models.layers import find
from fedloom.models.offsite import Plan
from fedloom.objectives.base import Objective
from fedloom.objectives.emulation import distance, sums


@dataclass(frozen=True)
class Terms:
    """What is minimised."""

    kd: float
    """Weight of the distance."""
    lm: float
    """Weight of the language modelling loss."""


class _EnoughSeen(Exception):
    """The wanted block has spoken; what would follow is not needed."""


class Aligning:
    """The owner's model, and the emulator beside it."""

    def __init__(self, owner: nn.Module, plan: Plan, objective: Objective, pad: int) -> None:
        """Put an emulator beside the model.

        Args:
            owner: whole, in float32, frozen; it stays as it is.
            plan: which of its blocks the emulator keeps.
            objective: says what text a row is, and which of its tokens are learned.
            pad: fills up texts.

        Raises:
            UserError: the model's blocks cannot be found, or are not alike.
        """
        self.owner, self.plan, self.objective, self.pad = owner, plan, objective, pad
        self.emulator = beside(owner, plan)
        self.learning = [find(self.emulator, ASKED)[1][i] for i in plan.emulated]
        self.device = next(owner.parameters()).device
        self._of_owner = find(owner, ASKED)[1][plan.middle[-1]]

    def learn(self, course: Course, terms: Terms, optimizer: str, max_grad_norm: float | None) -> list[float]:
        """Train the emulator's middle blocks; the loss of every step.

        Args:
            course: examples and a learning rate for each step.
            terms: what is minimised.
            optimizer: adamw or sgd.
            max_grad_norm: longer gradients are shortened to it; None: never.

        Raises:
            RunStopped: a loss or gradient is not finite.
        """
        trained = [p for block in self.learning for p in block.requires_grad_(True).parameters()]
        steps = optimizers.make(OptimizerConfig(name=optimizer), trained, course.lrs[0])
        losses = []
        try:
            for step, (batch, lr) in enumerate(zip(course.batches, course.lrs, strict=True)):
                steps.zero_grad()
                loss = self._loss(batch, terms)
                loss.backward()
                _shorten(trained, loss.item(), max_grad_norm, f"step {step} (lr {lr:g})")
                for group in steps.param_groups:
                    group["lr"] = lr
                steps.step()
                losses.append(loss.item())
        finally:
            steps.zero_grad()
            self.emulator.requires_grad_(False)
        return losses

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        """What was trained loses what a file in this format would lose, and stays in float32."""
        for block in self.learning:
            for p in block.parameters():
                p.copy_(p.to(dtype))

    @torch.no_grad()
    def apart(self, examples: Sequence[Any], batch_size: int) -> float:
        """The distance on some rows, all together."""
        difference = size = 0.0
        for i in range(0, len(examples), batch_size):
            batch = self._batch(examples[i : i + batch_size])
            found = sums(self._owners(batch).double(), self._emulators(batch, whole=False)[0].double(), batch.real)
            difference, size = difference + float(found[0]), size + float(found[1])
        return difference / size

    def _loss(self, examples: Sequence[Any], terms: Terms) -> Tensor:
        batch = self._batch(examples)
        said, words = self._emulators(batch, whole=terms.lm > 0)
        loss = terms.kd * distance(self._owners(batch), said, batch.real)
        if words is None or not len(batch.targets):
            return loss
        logs = padded.apart(words[batch.rows, batch.places], batch.targets, batch.counts, "logprob")
        return loss - terms.lm * torch.cat(logs).mean()

    def _batch(self, examples: Sequence[Any]) -> padded.Batch:
        return padded.collate(self.objective.texts(examples), self.pad, self.device)

    def _owners(self, batch: padded.Batch) -> Tensor:
        """T: what comes out of the owner's last middle block.

        The blocks before the middle are the same tensors in both models, so what enters it is the same too.
        """
        with torch.no_grad():
            return heard(self.owner, self._of_owner, batch, whole=False)[0]

    def _emulators(self, batch: padded.Batch, whole: bool) -> tuple[Tensor, Tensor | None]:
        """S, and the words of the emulator if all of it is to speak."""
        return heard(self.emulator, self.learning[-1], batch, whole)


def beside(owner: nn.Module, plan: Plan) -> nn.Module:
    """An emulator that shares every tensor with the owner's model but those of its middle blocks, which are copies."""
    _, blocks = find(owner, ASKED)
    apart = {id(tensor) for i in plan.kept for tensor in _tensors(blocks[i])}
    shared = {id(tensor): tensor for tensor in _tensors(owner) if id(tensor) not in apart}
    emulator = copy.deepcopy(owner, dict[int, Any](shared))
    cut_out(emulator, plan)
    return emulator


def heard(module: nn.Module, block: nn.Module, batch: padded.Batch, whole: bool) -> tuple[Tensor, Tensor | None]:
    """What a block puts out, and what the model says in the end if it is to go on after it.

    Filling stands behind all text and is not seen from there, so no attention mask is needed.
    """
    with _listening(block, go_on=whole) as seen, suppress(_EnoughSeen):
        words = module(input_ids=batch.ids, use_cache=False).logits
        return seen[0], words
    return seen[0], None


@contextmanager
def _listening(block: nn.Module, go_on: bool) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(_block: nn.Module, _given: Any, out: Any) -> None:
        seen[:] = [out[0] if isinstance(out, tuple) else out]
        if not go_on:
            raise _EnoughSeen

    handle = block.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _shorten(trained: Sequence[nn.Parameter], loss: float, limit: float | None, where: str) -> None:
    """Shorten a gradient that is longer than the limit.

    Raises:
        RunStopped: it, or the loss, is not finite.
    """
    gradients = [p.grad for p in trained if p.grad is not None]
    norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RunStopped(
            f"the emulator was not aligned: loss or gradient not finite in {where}; lower offsite.align.lr, or set "
            "offsite.align.max_grad_norm. Nothing was written"
        )
    if limit is not None and norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / (norm + 1e-6))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
