"""An emulator that is fitted to its owner's model while both carry an adapter: the server's half of FedBiOT.

Wu et al. 2024, https://arxiv.org/abs/2406.17706. Of the emulator's vector only some leaves move; the owner's model
carries the others, so it is the model as it is tuned so far. With T and S what the middle blocks of the two put out and
p, q what they expect as next tokens, a step's loss over its batch's real tokens is

    mean(((T − S) / σ)²) + kd_weight · mean KL(p ‖ q),   σ = √mean(T²)

There is no dropout, neither in the owner's model nor in the emulator. Steps are ended as in any local training.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedloom.adapters.adapted import Adapted
from fedloom.contracts import ClientFailed, Fitted
from fedloom.engine import generation, optimizers, padded
from fedloom.engine.aligning import heard
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.descent import Descent, split
from fedloom.engine.lessons import Align
from fedloom.engine.requests import Descend
from fedloom.models.emulator import ASKED
from fedloom.models.layers import find
from fedloom.models.offsite import Plan
from fedloom.objectives.base import Objective
from fedloom.objectives.emulation import divergence, sums

ADAMW = OptimizerConfig(name="adamw")


class Fitter:
    """Holds the owner's model beside the emulator, and fits the one to the other."""

    asked: ClassVar[type[Any]] = Align

    def __init__(self, emulator: Adapted, owner: Adapted, plan: Plan, tokenizer: Any, objective: Objective) -> None:
        """Prepare.

        Args:
            emulator: the federated model; it may be in use elsewhere between two calls.
            owner: the owner's; its leaves are some of the emulator's, by the same names.
            plan: whose blocks are whose.
            tokenizer: fills up texts.
            objective: says what text a row is.
        """
        self.emulator, self.owner, self.objective = emulator, owner, objective
        self.device = emulator.w.device
        self.pad = generation.filling(emulator.module, tokenizer)
        self.last = find(emulator.module, ASKED)[1][plan.emulated[-1]]
        """Its last middle block."""
        self.owners_last = find(owner.module, ASKED)[1][plan.middle[-1]]

    def serve(self, request: Align) -> Fitted | ClientFailed:
        """All steps of a request.

        Raises:
            ValueError: a leaf of the owner's model was to move, or one of neither would stay unmoved.
        """
        staying = self.owner.layout.names
        if {*staying, *request.train} != {*request.layout.names} or {*staying} & {*request.train}:
            raise ValueError("the emulator's leaves are those that move and those of the owner's model")
        self.owner.load(request.layout.take(request.x, staying))
        self.emulator.load(request.x, request.layout)
        for one in (self.owner, self.emulator):
            one.module.eval()
        return _Fitting(self, request).run()


class _Fitting:
    """One request."""

    def __init__(self, fitter: Fitter, request: Align) -> None:
        self.fitter, self.request, self.emulator = fitter, request, fitter.emulator
        course = request.course
        descend = Descend(
            start=request.x, layout=request.layout, batches=course.batches, lrs=course.lrs, optimizer=ADAMW,
            max_grad_norm=request.max_grad_norm, accumulate=request.accumulate, seed=0, label=request.label,
            train=request.train,
        )  # fmt: skip
        self.optimizer = optimizers.make(ADAMW, self.emulator.parameters(request.train), course.lrs[0])
        self.descent = Descent(descend, fitter.objective, self.emulator.g, self.emulator.now, self.optimizer)
        self.distance = self.divergence = 0.0

    def run(self) -> Fitted | ClientFailed:
        """All steps, then what came out."""
        while self.descent.next():
            distance, words = self._backward()
            loss = distance + self.request.kd_weight * words
            if self.descent.close(loss, float(self.descent.settle())):
                self.distance, self.divergence = self.distance + distance, self.divergence + words
        run = self.descent.result(self.emulator.read(), dict)
        if isinstance(run, ClientFailed):
            return ClientFailed(f"alignment: {run}", run.missing.reason)
        if not run.steps:
            return ClientFailed("alignment: there is nothing to learn in the public rows")
        return Fitted(run.y, run.steps, run.skipped, self.distance / run.steps, self.divergence / run.steps)

    def _backward(self) -> tuple[float, float]:
        """Gradients of the whole batch's loss into `g`, part by part; its two terms."""
        parts = [self._batch(part) for part in split(self.descent.batch, self.request.accumulate)]
        tokens, size = sum(int(part.real.sum()) for part in parts), self._size(parts) if len(parts) > 1 else None
        distance = words = 0.0
        for part in parts:
            apart, own, differing = self._terms(part)
            one, other = apart / (own if size is None else size), differing / tokens
            (one + self.request.kd_weight * other).backward()
            distance, words = distance + one.item(), words + other.item()
        return distance, words

    def _batch(self, examples: Sequence[Any]) -> padded.Batch:
        return padded.collate(self.fitter.objective.texts(examples), self.fitter.pad, self.fitter.device)

    def _size(self, parts: Sequence[padded.Batch]) -> Tensor:
        """Σ T² of all parts: σ is the whole batch's, and is needed before its first part."""
        said = [(padded.exact(self._owners(part, whole=False)[0]), part.real) for part in parts]
        return torch.stack([sums(one, one, real)[1] for one, real in said]).sum()

    def _terms(self, part: padded.Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Σ (T − S)², Σ T², and Σ over tokens of KL(p ‖ q)."""
        theirs, expected = self._owners(part, whole=True)
        said, words = heard(self.emulator.module, self.fitter.last, part, whole=True)
        apart, size = sums(padded.exact(theirs), padded.exact(said), part.real)
        assert expected is not None and words is not None  # both were let go on to the end
        return apart, size, divergence(padded.exact(expected[part.real]), padded.exact(words[part.real]))

    @torch.no_grad()
    def _owners(self, part: padded.Batch, whole: bool) -> tuple[Tensor, Tensor | None]:
        return heard(self.fitter.owner.module, self.fitter.owners_last, part, whole)
