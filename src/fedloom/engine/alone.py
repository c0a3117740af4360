"""A client's training without gradients through the plain model: one forward pass after the other, nothing saved.

An adapter's few numbers are shifted where they stand, and put back. A model all of whose parameters are trained is
shifted leaf by leaf as it runs: while a module computes, its own parameters lie in a scratch buffer, shifted; the
weights themselves are never touched, so that nothing must be undone and no copy of them is needed. Everywhere else a
parameter is then nothing but NaN: a model that uses one outside its module is found out before it trains.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedloom import noise
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import ClientFailed, Wandered
from fedloom.drift import Drift, Footing, Strayed
from fedloom.engine.descent import split
from fedloom.engine.requests import Wander
from fedloom.engine.zeroth import HERE, Moves, Point, Walk, advanced
from fedloom.errors import UserError
from fedloom.noise import Kind
from fedloom.params import Leaf, Params

if TYPE_CHECKING:
    from fedloom.engine.reference import Reference

TOLERANCE = 1e-4
"""Largest relative difference of a loss computed leaf by leaf that is rounding."""


def wander(engine: "Reference", request: Wander) -> Wandered | ClientFailed:
    """Serve a request.

    Raises:
        UserError: all parameters are trained, and the model uses some of them outside their modules.
    """
    walk = Walk(request, engine.objective)
    try:
        ground = _Ground(engine.adapted, request)
    except Strayed as strayed:
        return ClientFailed(str(strayed), "nonfinite")
    engine.adapted.module.eval()
    steps = _Steps(engine, walk, ground)
    with torch.no_grad(), ground.open():
        while walk.next():
            walk.close(steps.losses(walk.points()), ground.move)
    return walk.result(ground.read)


class _Steps:
    """Losses of a walk's batches."""

    def __init__(self, engine: "Reference", walk: Walk, ground: "_Ground") -> None:
        self.engine, self.walk, self.ground = engine, walk, ground
        self.references = [self._reference(batch) for batch in walk.request.batches]  # while it stands at the start

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Means over the batch's units at each point."""
        if self.ground.leafwise is not None and not self.engine.leafwise_proven:
            self._prove()
        return [self._loss(point) for point in points]

    def _loss(self, point: Point) -> float:
        total, objective = 0.0, self.engine.objective
        with self.ground.at(point):
            for examples, reference in zip(self._parts(), self.references[self.walk.step], strict=True):
                said = self.engine.said(objective.texts(examples))
                total += float(objective.losses(said, reference, examples).double().sum())
        return total / self.walk.count

    def _parts(self) -> list[Sequence[Any]]:
        return list(split(self.walk.batch, self.walk.request.accumulate))

    @torch.no_grad()
    def _reference(self, batch: Sequence[Any]) -> list[list[Tensor] | None]:
        """What the reference says of each part of a batch."""
        engine = self.engine
        texts = [engine.objective.texts(part) for part in split(batch, self.walk.request.accumulate)]
        match engine.objective.reference:
            case None:
                return [None] * len(texts)
            case "base":
                return [engine.said_bare(part) for part in texts]
            case "start":
                return [engine.said(part) for part in texts]

    def _prove(self) -> None:
        """Once: leaf by leaf, the model gives the loss it gives as a whole."""
        assert self.ground.leafwise is not None
        whole = self._loss(HERE)
        if not math.isfinite(whole):
            return
        self.ground.leafwise.always = True
        apart = self._loss(HERE)
        self.ground.leafwise.always = False
        if not math.isclose(whole, apart, rel_tol=TOLERANCE):
            raise UserError(
                "adapter.kind=full without gradients shifts each module's parameters while the module runs, and this "
                f"model uses some of them elsewhere too (its loss would be {apart:g} for {whole:g}); tune an adapter "
                "(adapter.kind=lora), or train with gradients"
            )
        self.engine.leafwise_proven = True


class _Ground:
    """The model's own weights; which move, and for a moment stand somewhere near."""

    def __init__(self, adapted: Adapted, request: Wander) -> None:
        self.adapted, self.request = adapted, request
        self.footing: Footing | None = None
        if isinstance(request.start, Drift):
            self.footing = adapted.stand(request.start, request.layout)
        else:
            adapted.load(request.start, request.layout, request.carry)
        for extra in adapted.extras.values():
            extra.live = extra.values is not None  # shifted, they are not zero
        self.leafwise = Leafwise(adapted, request.kind) if adapted.differences else None

    def open(self) -> AbstractContextManager[None]:
        """Within, the model may be shifted."""
        return self._nothing() if self.leafwise is None else self.leafwise.hooked()

    def at(self, point: Point) -> AbstractContextManager[None]:
        """Within, the model stands at a point near by; then where it stood, to the bit."""
        if self.leafwise is not None:
            return self.leafwise.at(point)
        return self._nothing() if point == HERE else self._shifted(point)

    def move(self, moves: Moves, shrink: float) -> None:
        """Go on, see `advanced`."""
        advanced(self.adapted.w, self.footing, self.request, moves, shrink)

    def read(self) -> Params:
        """[P] on the CPU."""
        return self.adapted.read()

    @contextmanager
    def _shifted(self, point: Point) -> Iterator[None]:
        w, (seed, shift) = self.adapted.w, point
        kept = w.clone()
        noise.add(w, self.request.layout, seed, shift, self.request.kind)
        try:
            yield
        finally:
            w.copy_(kept)

    @staticmethod
    @contextmanager
    def _nothing() -> Iterator[None]:
        yield


class Leafwise:
    """A module whose parameters are shifted one module at a time, as it runs."""

    def __init__(self, adapted: Adapted, kind: Kind) -> None:
        self.module, self.kind, self.w = adapted.module, kind, adapted.w
        leaves = {id(p): leaf for p, leaf in zip(adapted.tensors, adapted.layout.leaves, strict=True)}
        self.tensors = list(zip(adapted.tensors, adapted.layout.leaves, strict=True))
        self.own: dict[nn.Module, list[tuple[nn.Parameter, Leaf]]] = {}
        for module in self.module.modules():
            mine = [(p, leaves[id(p)]) for p in module.parameters(recurse=False) if id(p) in leaves]
            if mine:
                self.own[module] = mine
        self.always = False
        """Go leaf by leaf even where nothing is shifted."""
        self._point, self._shifting = HERE, False
        self._most = _most(self.module, self.own)
        self._scratch: Tensor | None = None
        self._used = 0
        self._inside = list[tuple[nn.Parameter, Tensor, int]]()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within, `at` may be used."""
        handles = [
            handle
            for module in self.own
            for handle in (
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(self._leave),
            )
        ]
        handles.append(self.module.register_forward_hook(self._release))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def at(self, point: Point) -> Iterator[None]:
        """Within, the module computes as if it stood there."""
        if point == HERE and not self.always:
            yield
            return
        self._point = point
        nowhere = self.w.new_full((), math.nan)
        for tensor, leaf in self.tensors:
            tensor.data = nowhere.expand(leaf.shape)
        self._shifting = True
        try:
            yield
        finally:
            self._shifting, self._used, self._scratch = False, 0, None
            self._inside.clear()
            for tensor, leaf in self.tensors:
                tensor.data = self._weights(leaf).view(leaf.shape)

    def _enter(self, module: nn.Module, _: Any) -> None:
        if not self._shifting:
            return
        seed, shift = self._point
        if self._scratch is None:
            self._scratch = self.w.new_empty(self._most)
        for tensor, leaf in self.own[module]:
            self._inside.append((tensor, tensor.data, self._used))
            room = self._scratch[self._used : self._used + leaf.size]
            if len(room) < leaf.size:  # a module that runs inside one it is no part of
                room = self.w.new_empty(leaf.size)
            self._used += leaf.size
            tensor.data = noise.near(room, self._weights(leaf), seed, shift, leaf.name, self.kind).view(leaf.shape)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if not self._shifting:
            return
        for _tensor in self.own[module]:
            tensor, before, self._used = self._inside.pop()
            tensor.data = before

    def _release(self, *_: Any) -> None:
        """The model has said its word: what is made of that may have the room."""
        self._scratch = None

    def _weights(self, leaf: Leaf) -> Tensor:
        return self.w[leaf.offset : leaf.offset + leaf.size]


def _most(module: nn.Module, own: dict[nn.Module, list[tuple[nn.Parameter, Leaf]]]) -> int:
    """Most numbers that lie in the scratch buffer at a time: a module's own and those of one inside it."""
    inside = max((_most(child, own) for child in module.children()), default=0)
    return sum(leaf.size for _, leaf in own.get(module, ())) + inside
