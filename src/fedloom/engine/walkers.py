"""Many clients' trainings without gradients at once: every point a client looks at is a virtual client of one pass.

A shared pass takes the points of as many clients as its budget of tokens allows, those first that have waited longest.
A point is a row of weights of its own, made when its pass begins; what is computed from it has the same shapes whoever
else is in the pass.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedloom import noise
from fedloom.contracts import Call, ClientFailed, ClientId
from fedloom.drift import Drift, Footing, Strayed
from fedloom.engine.descent import split
from fedloom.engine.requests import Wander
from fedloom.engine.stream import Share, together
from fedloom.engine.zeroth import HERE, Moves, Point, Walk, advanced
from fedloom.objectives.base import Text
from fedloom.params import Params

if TYPE_CHECKING:
    from fedloom.engine.slots import Slots


class Walkers:
    """The clients that walk through an engine."""

    def __init__(self, engine: "Slots") -> None:
        self.engine = engine
        self._walking = list[_Walker]()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._walking)

    def clear(self) -> None:
        """Forget all."""
        self._walking = []

    @torch.no_grad()
    def begin(self, call: Call[Any]) -> ClientFailed | None:
        """Take a client on; why it cannot begin."""
        try:
            walker = _Walker(self.engine, call)
        except Strayed as strayed:
            return ClientFailed(str(strayed), "nonfinite")
        self._walking.append(walker)
        return None

    @torch.no_grad()
    def advance(self) -> list[tuple[ClientId, Any]]:
        """One step of some; the results of those that have none left."""
        chosen = self._chosen()
        references = self._references(chosen)
        shares = (share for walker in chosen for share in walker.shares())
        said = self._said(shares)
        for walker, mine in zip(chosen, references, strict=True):
            walker.close([walker.loss(said, mine) for _ in walker.points])
        done = [walker for walker in self._walking if not walker.points]
        self._walking = [walker for walker in self._walking if walker.points]
        return [(walker.client, walker.result()) for walker in done]

    def _chosen(self) -> list["_Walker"]:
        self._turn += 1
        chosen, tokens = list[_Walker](), 0
        for walker in sorted(self._walking, key=lambda walker: walker.served):
            if walker.points and (not chosen or tokens + walker.tokens <= self.engine.budget):
                chosen.append(walker)
                tokens += walker.tokens
                walker.served = self._turn
        return chosen

    def _said(self, shares: Iterator[Share]) -> Iterator[list[Tensor]]:
        """What the model says of each share's texts, a pass at a time."""
        for some in together(shares, self.engine.budget):
            yield from self.engine.read_said(self.engine.model.laid_out(some, self.engine.pad))

    def _references(self, walkers: Sequence["_Walker"]) -> list[list[list[Tensor] | None]]:
        """What the reference says of each part of each walker's batch."""
        if self.engine.objective.reference is None:
            return [[None] * len(walker.parts) for walker in walkers]
        said = self._said(walker.reference(texts) for walker in walkers for texts in walker.texts)
        return [[next(said) for _ in walker.texts] for walker in walkers]


class _Walker:
    """One client: its weights, and where it looks next."""

    def __init__(self, engine: "Slots", call: Call[Any]) -> None:
        request: Wander = call.request
        self.engine, self.client, self.request = engine, call.client, request
        self.walk = Walk(request, engine.objective)
        self.footing: Footing | None = None
        if isinstance(request.start, Drift):
            self.w, self.footing = engine.adapted.beside(request.start, request.layout)
        else:
            engine.adapted.check(request.start, request.layout)
            self.w = request.start.to(engine.adapted.w, copy=True)
        self.start = self.w.clone() if engine.objective.reference == "start" else None
        self.served = 0
        self.points, self.parts, self.texts = list[Point](), list[Sequence[Any]](), list[list[Text]]()
        self._next()

    @property
    def tokens(self) -> int:
        """Of its next step."""
        return len(self.points) * sum(text.own for texts in self.texts for text in texts)

    def shares(self) -> Iterator[Share]:
        """The parts of its batch at every point."""
        for point in self.points:
            w = self._near(point)
            yield from (self.share(texts, w) for texts in self.texts)

    def share(self, texts: Sequence[Text], w: Params) -> Share:
        """Some texts that meet weights [P]."""
        return self.engine.still(texts, w, self.request.layout, self.request.carry)

    def reference(self, texts: Sequence[Text]) -> Share:
        """Some texts that meet what its losses are compared with."""
        if self.start is None:
            return self.engine.still(texts, torch.zeros_like(self.w), self.request.layout, ())
        return self.share(texts, self.start)

    def loss(self, said: Iterator[list[Tensor]], references: Sequence[list[Tensor] | None]) -> float:
        """Mean over the batch's units at one point, from what is said of its parts."""
        total = 0.0
        for part, reference in zip(self.parts, references, strict=True):
            total += float(self.engine.objective.losses(next(said), reference, part).double().sum())
        return total / self.walk.count

    def close(self, losses: Sequence[float]) -> None:
        """Take the step and go to the next batch, if there is one."""
        self.walk.close(losses, self._move)
        self._next()

    def result(self) -> Any:
        """What the client gets."""
        return self.walk.result(lambda: self.w.to("cpu", copy=True))

    def _move(self, moves: Moves, shrink: float) -> None:
        advanced(self.w, self.footing, self.request, moves, shrink)

    def _next(self) -> None:
        self.points, self.parts = [], []
        if self.walk.next():
            self.points = self.walk.points()
            self.parts = list(split(self.walk.batch, self.request.accumulate))
        self.texts = [self.engine.objective.texts(part) for part in self.parts]

    def _near(self, point: Point) -> Params:
        if point == HERE:
            return self.w
        (seed, shift), w = point, self.w.clone()
        return noise.add(w, self.request.layout, seed, shift, self.request.kind)
