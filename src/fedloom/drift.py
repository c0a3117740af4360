"""A model as a start and amounts along random directions: a few kilobytes, whatever its size.

w = start' + sum over seeds s of round_g(amount_s z(s)): every leaf has a grid g, a power of two, and both the start and
each product are rounded to its multiples. Sums of multiples of g below 2^24 g are exact in float32, so moves commute
and can be undone to the bit: neither history nor order, resuming, grouping or the device changes a bit of where amounts
lead. The range is 2^24 g, at least four times the leaf's largest number; a model that leaves it has diverged.
"""

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from fedloom import noise, rng
from fedloom.noise import PIECE, Kind
from fedloom.params import Layout, Params

STEPS: Final = 1 << 24
"""Multiples of the grid that float32 holds exactly."""
ROOM: Final = 4.0
"""The range is at least so many times a leaf's largest number at the start."""


class Strayed(ArithmeticError):
    """A model left the range in which its moves are exact: it has diverged."""


@dataclass(frozen=True)
class Drift:
    """How far a model was moved from its start along each direction."""

    seeds: Tensor | int
    """[K] int64; or the root of a pool, whose seed k is `pool(root, k)`, so that none of them travels."""
    amounts: Tensor
    """[K] float32"""
    kind: Kind = "gaussian"
    leaves: Tensor | None = None
    """[B] whole numbers: direction k is of leaf leaves[k modulo B] alone; None: every direction is of all."""

    def same(self, other: "Drift | None") -> bool:
        """Whether both lead to one place; those that came over a wire are equal, not identical."""
        if other is None or self.kind != other.kind or not _alike(self.leaves, other.leaves):
            return False
        if isinstance(self.seeds, Tensor) and isinstance(other.seeds, Tensor):
            seeds = torch.equal(self.seeds, other.seeds)
        else:
            seeds = type(self.seeds) is type(other.seeds) and bool(self.seeds == other.seeds)
        return seeds and torch.equal(self.amounts, other.amounts)

    def table(self) -> dict[int, float]:
        """Amount by seed, without zeros; a seed that comes twice counts twice.

        Raises:
            ValueError: not one amount for each seed, or one that is not finite.
        """
        amounts = self.amounts.to("cpu", torch.float32)
        if amounts.dim() != 1 or (isinstance(self.seeds, Tensor) and self.seeds.shape != amounts.shape):
            raise ValueError(f"a drift needs one amount for each seed, not amounts of shape {tuple(amounts.shape)}")
        if not bool(amounts.isfinite().all()):
            raise ValueError("a drift holds an amount that is not finite")
        places = amounts.nonzero()[:, 0].tolist()
        if isinstance(self.seeds, int):
            return {pool(self.seeds, k): float(amounts[k]) for k in places}
        found = dict[int, float]()
        for seed, amount in zip(self.seeds[places].tolist(), amounts[places].tolist(), strict=True):
            found[seed] = found.get(seed, 0.0) + amount
        return {seed: rounded(amount) for seed, amount in found.items() if amount}

    def places(self) -> dict[int, int]:
        """The leaf's number by seed, where directions are of one leaf each and amounts are not zero.

        Raises:
            ValueError: the seeds are not those of a pool.
        """
        if self.leaves is None:
            return {}
        if not isinstance(self.seeds, int) or not len(self.leaves):
            raise ValueError("directions of single leaves are numbered in a pool, and there is at least one")
        leaves = self.leaves.tolist()
        return {pool(self.seeds, k): leaves[k % len(leaves)] for k in self.amounts.nonzero()[:, 0].tolist()}


@functools.lru_cache(maxsize=1 << 18)
def pool(root: int, k: int) -> int:
    """Seed number k of a pool."""
    return rng.key(root, "seed pool", k)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return torch.equal(one, other) if one is not None and other is not None else one is other


def rounded(amount: float) -> float:
    """The nearest number of float32."""
    return torch.tensor(amount, dtype=torch.float32).item()


def moved(start: Params, layout: Layout, drift: Drift) -> Params:
    """The model [P] a drift leads to, a new tensor.

    Raises:
        Strayed: it leaves the range.
        ValueError: the drift is not one.
    """
    footing = Footing(start.clone(), layout)
    footing.to(drift)
    return footing.w


class Footing:
    """A vector that stands at a drift and moves on to others, in place, by what changes."""

    def __init__(self, w: Params, layout: Layout) -> None:
        """Stand at the start.

        Args:
            w: [P] float32 or float64, the start; from now on it belongs to the footing, which rounds it to its grids.
            layout: its leaves.
        """
        self.w, self.layout = w, layout
        self.amounts = dict[int, float]()
        """By seed: where it stands."""
        self.places: Mapping[int, int] = {}
        """The leaf's number of those seeds that move one leaf alone."""
        self.kind: Kind = "gaussian"
        self.ranges = ranges(w, layout)
        settle_(w, layout, self.ranges)

    def begin(self, start: Params) -> None:
        """Stand at the start again, whatever `w` holds now."""
        self.w.copy_(start)
        settle_(self.w, self.layout, self.ranges)
        self.amounts, self.places = {}, {}

    def copied(self, w: Params) -> "Footing":
        """The same, standing in another tensor that holds the same numbers."""
        new = copy.copy(self)
        new.w, new.amounts = w, dict(self.amounts)
        return new

    def to(self, drift: Drift) -> None:
        """Move to a drift.

        Raises:
            Strayed: it leaves the range; the footing stands where it stood.
            ValueError: the drift is not one.
        """
        self.go(drift.table(), drift.kind, drift.places())

    def go(
        self, amounts: Mapping[int, float], kind: Kind | None = None, places: Mapping[int, int] | None = None
    ) -> None:
        """Move to these amounts, numbers of float32 by seed.

        Args:
            amounts: where to.
            kind: distribution of the directions; None: as before.
            places: the leaf's number of those seeds that move one leaf alone.

        Raises:
            Strayed: as `to`.
        """
        kind = kind or self.kind
        if kind != self.kind:
            self._move(self.amounts, {}, self.places)
            self.kind, self.amounts, self.places = kind, {}, {}
        self._move(self.amounts, amounts, {**self.places, **(places or {})})
        self.amounts = {seed: amount for seed, amount in amounts.items() if amount}
        self.places = places or {}

    def add(self, moves: Mapping[int, float]) -> None:
        """Move on by these amounts, by seed.

        Raises:
            Strayed: as `to`.
        """
        changed = {seed: rounded(self.amounts.get(seed, 0.0) + amount) for seed, amount in moves.items()}
        before = {seed: self.amounts.get(seed, 0.0) for seed in changed}
        self._move(before, changed, self.places)
        self.amounts |= changed

    def _move(self, before: Mapping[int, float], after: Mapping[int, float], places: Mapping[int, int]) -> None:
        move_(self.w, self.layout, before, after, self.ranges, self.kind, places)


def ranges(start: Params, layout: Layout) -> tuple[float, ...]:
    """Of each leaf: the smallest power of two that is at least 1 and at least ROOM times its largest number.

    Raises:
        ValueError: a number of the start is not finite.
    """
    found = []
    for view in layout.views(start).values():
        largest = float(view.abs().max()) if view.numel() else 0.0
        if not math.isfinite(largest):
            raise ValueError("a start that holds numbers which are not finite cannot be moved")
        found.append(2.0 ** max(0, math.ceil(math.log2(ROOM * largest)) if largest else 0))
    return tuple(found)


def settle_(w: Params, layout: Layout, ranges: tuple[float, ...]) -> None:
    """Round every leaf to its grid, in place."""
    for view, reach in zip(layout.views(w).values(), ranges, strict=True):
        for part in view.view(-1).split(PIECE):
            _snap(part, reach)


Change: TypeAlias = tuple[int, float, float]
"""(seed, amount before, amount after)."""
Piece: TypeAlias = tuple[str, int, Tensor, list[Change]]
"""(leaf, index of its first number in it, its numbers, what changes there)."""


@torch.no_grad()
def move_(
    w: Params,
    layout: Layout,
    before: Mapping[int, float],
    after: Mapping[int, float],
    ranges: tuple[float, ...],
    kind: Kind,
    places: Mapping[int, int] | None = None,
) -> None:
    """Move a model [P] in place from one drift to another; what has not changed costs nothing.

    Args:
        w: where `before` leads.
        layout: its leaves.
        before: amounts by seed, numbers of float32.
        after: the same.
        ranges: of each leaf.
        kind: distribution of the directions.
        places: the leaf's number of those seeds that move one leaf alone.

    Raises:
        Strayed: it leaves the range; w is then as it was before.
        ValueError: a place is no leaf's.
    """
    changes = [
        (seed, before.get(seed, 0.0), after.get(seed, 0.0))
        for seed in dict.fromkeys([*before, *after])
        if before.get(seed, 0.0) != after.get(seed, 0.0)
    ]
    if not changes:
        return
    farthest = max(abs(new) for _, _, new in changes) * noise.largest(kind)
    if not farthest < min(ranges) / 2:  # what one seed changes must be exact by itself
        leaf, reach = min(zip(layout.names, ranges, strict=True), key=lambda pair: pair[1])
        raise Strayed(_strayed(leaf, reach / 2, farthest))
    reach_of = dict(zip(layout.names, ranges, strict=True))
    done, room = list[Piece](), torch.empty(3, PIECE, dtype=torch.float32, device=w.device)
    try:
        for leaf, begin, part, mine in _changing(w, layout, changes, places or {}):
            _move_piece(part, mine, leaf, begin, reach_of[leaf], kind, room)
            done.append((leaf, begin, part, mine))
    except Strayed:
        for leaf, begin, part, mine in done:
            back = [(seed, new, old) for seed, old, new in reversed(mine)]  # through the same places
            _move_piece(part, back, leaf, begin, reach_of[leaf], kind, room)
        raise


def _changing(w: Params, layout: Layout, changes: list[Change], places: Mapping[int, int]) -> list[Piece]:
    """The pieces that move, each with what changes there."""
    anywhere = [change for change in changes if change[0] not in places]
    of_leaf = dict[str, list[Change]]()
    if not all(0 <= place < len(layout.leaves) for place in places.values()):
        raise ValueError(f"a drift moves tensors that are not among the {len(layout.leaves)} there are")
    for change in changes:
        if change[0] in places:
            of_leaf.setdefault(layout.names[places[change[0]]], []).append(change)
    mine = {leaf: anywhere + of_leaf.get(leaf, []) for leaf in layout.names}
    return [(leaf, begin, part, mine[leaf]) for leaf, begin, part in noise.pieces(w, layout) if mine[leaf]]


def _move_piece(
    part: Tensor,
    changes: list[Change],
    leaf: str,
    begin: int,
    reach: float,
    kind: Kind,
    room: Tensor,
) -> None:
    """All changes of one piece, which stays in the cache meanwhile; it is as it was if it leaves the range."""
    kept = part.clone()
    z, product, gone = (row[: len(part)] for row in room)
    bound, far = _largest(part), noise.largest(kind)
    for seed, old, new in changes:
        noise.fill(z, seed, leaf, begin, kind)
        _snap(torch.mul(z, new, out=product), reach)
        if old:
            product.sub_(_snap(torch.mul(z, old, out=gone), reach))
        part.add_(product)
        bound += (abs(old) + abs(new)) * far + 2 * reach / STEPS
        if bound >= reach:
            bound = _largest(part)
            if not bound < reach:
                part.copy_(kept)
                raise Strayed(_strayed(leaf, reach, bound))


def _snap(part: Tensor, reach: float) -> Tensor:
    """Numbers rounded to multiples of the grid, half to even, in place."""
    return part.mul_(STEPS / reach).round_().mul_(reach / STEPS)


def _largest(part: Tensor) -> float:
    return float(part.abs().max())


def _strayed(leaf: str, reach: float, found: float) -> str:
    return (
        f"{leaf} reached {found:.3g}, beyond the {reach:g} in which its moves are exact: the model has diverged; "
        "lower the learning rate"
    )
