"""One client's training in its slot of the many-clients engine: its row, its batches, its optimiser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedloom import rng
from fedloom.adapters.together import Piece, Together
from fedloom.contracts import Call
from fedloom.engine import optimizers
from fedloom.engine.descent import Descent, split
from fedloom.engine.requests import Descend
from fedloom.engine.stream import Share
from fedloom.objectives.base import Objective, Text
from fedloom.params import Layout


@dataclass(frozen=True)
class Row:
    """A slot's weights and gradients [P], and what they mean."""

    layout: Layout
    w: Tensor
    g: Tensor
    pieces: Sequence[Piece]
    heads: Mapping[str, Tensor]
    """The numbers of a head, as leaves whose gradients are views of g; empty without one."""


class Seat:
    """A client in its slot."""

    def __init__(self, number: int, call: Call[Any], row: Row, together: Together, objective: Objective) -> None:
        """Sit down.

        Args:
            number: of the slot.
            call: what is asked.
            row: the slot's, cut by the request's layout.
            together: sets what the client carries.
            objective: what is minimised.

        Raises:
            ValueError: the request trains leaves there are not, or its kept memory is of other tensors.
        """
        request: Descend = call.request
        self.number, self.client, self.request = number, call.client, request
        self.w, self.g, self.pieces = row.w, row.g, row.pieces
        self.w.copy_(request.start)
        together.carry(self.pieces, request.carry)
        sparse = {f"{leaf.module}.S" for leaf in request.layout.leaves} & set(request.layout.names)
        self.sparse = live(self.pieces) or bool(sparse & set(request.train or sparse))
        self.optimizer = self._optimizer()
        self.objective, self.heads = objective, row.heads
        self.descent = Descent(request, objective, self.g, lambda: self.w, self.optimizer)
        self.served = 0
        self.parts = list[Sequence[Any]]()
        self._texts: list[Text] | None = None
        self._begin()

    @property
    def texts(self) -> list[Text]:
        """Of its next micro-batch."""
        if self._texts is None:
            self._texts = self.objective.texts(self.parts[0])
        return self._texts

    @property
    def tokens(self) -> int:
        """Of its next micro-batch."""
        return sum(text.own for text in self.texts)

    def share(self) -> Share:
        """Its next micro-batch."""
        seed = rng.key(self.request.seed, "step", self.descent.step, self._part)
        return Share(self.texts, self.pieces, seed, self.sparse, self.heads)

    def add(self, losses: Tensor) -> list[Tensor]:
        """One micro-batch is done: its summed loss in; with the last one of a step, loss and gradient norm out."""
        self._loss.append(losses / self.descent.count)
        if self._part == 0:
            self._penalise()
        self.parts.pop(0)
        self._texts = None
        self._part += 1
        if self.parts:
            return []
        return [torch.stack(self._loss).sum(), self.descent.settle()]

    def close(self, loss: float, norm: float) -> None:
        """Take the step and go to the next batch, if there is one."""
        self.descent.close(loss, norm)
        self._begin()

    def result(self) -> Any:
        """What the client gets."""
        return self.descent.result(self.w.to("cpu", copy=True), self._memory)

    def _begin(self) -> None:
        self._part, self._loss = 0, list[Tensor]()
        if self.descent.next():
            self.parts = list(split(self.descent.batch, self.request.accumulate))

    def _penalise(self) -> None:
        if self.request.penalty is None:
            return
        leaves = {name: part.detach().requires_grad_() for name, part in self.request.layout.views(self.w).items()}
        value = self.descent.penalty(leaves)
        assert value is not None
        if value.requires_grad:
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            for total, grad in zip(self.request.layout.views(self.g).values(), found, strict=True):
                if grad is not None:
                    total += grad
        self._loss.append(value.detach().to(self._loss[0]))

    def _optimizer(self) -> torch.optim.Optimizer:
        request = self.request
        if request.train is None:
            tensors = [_parameter(self.w, self.g)]
        else:
            w, g = request.layout.views(self.w), request.layout.views(self.g)
            unknown = sorted(set(request.train) - set(w))
            if unknown or not request.train:
                raise ValueError(f"`train` names {unknown or 'no leaf at all'}; leaves: {', '.join(list(w)[:4])} ...")
            tensors = [_parameter(w[name], g[name]) for name in request.train]
        made = optimizers.make(request.optimizer, tensors, request.lrs[0] if request.lrs else 0.0)
        if request.inner:
            flat = request.train is None
            optimizers.recall(made, optimizers.joined(request.inner, request.layout) if flat else request.inner)
        return made

    def _memory(self) -> dict[str, Tensor]:
        kept = optimizers.memory(self.optimizer)
        return optimizers.cut(kept, self.request.layout) if self.request.train is None else kept


def live(pieces: Sequence[Piece]) -> bool:
    """Whether a sparse update is not zero."""
    return any(piece.values is not None and bool(piece.values.any()) for piece in pieces)


def _parameter(w: Tensor, g: Tensor) -> nn.Parameter:
    tensor = nn.Parameter(w)
    tensor.grad = g
    return tensor
