"""Directions to try a model in: random numbers that two machines draw alike from a seed, without sending them.

A number is a function of (seed, leaf, index) alone, made of 32-bit integer arithmetic, shifts and one table: the same
bits on every device, in every number format of the base, with any number of threads and in pieces of any size. Two
numbers come of one hash (Wellons' `lowbias32`, https://nullprogram.com/blog/2018/07/31, over the index, keyed twice).
gaussian: the 65,536 middle quantiles of the standard normal, in units of 1/4096, scaled to variance 1; the largest is
4.3. rademacher: +1 or -1. uniform: the odd multiples of 2^-16 between -1 and 1.
"""

import functools
import hashlib
import threading
from collections.abc import Collection, Iterator
from typing import Final, Literal, TypeAlias

import numpy
import numpy.typing
import torch
from torch import Tensor

from fedloom.params import Layout, Params

Kind: TypeAlias = Literal["gaussian", "rademacher", "uniform"]
Hashes: TypeAlias = numpy.typing.NDArray[numpy.uint32]
PIECE: Final = 1 << 16
"""Numbers drawn at a time: their integers stay in a core's cache."""
UNIT: Final = 4096
INT: Final = torch.int32
_FIRST, _SECOND, _SPREAD = 0x7FEB352D, 0x846CA68B, 0x9E3779B9


def leaf_key(name: str) -> int:
    """32 bits that stand for a leaf's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def fill(out: Tensor, seed: int, leaf: str, start: int = 0, kind: Kind = "gaussian") -> Tensor:
    """Draw the numbers start, start + 1, ... of a leaf into `out`, flat and float32 or float64.

    Args:
        out: [n], contiguous; on any device.
        seed: 63 bits.
        leaf: the tensor's name.
        start: index of the first number inside the leaf.
        kind: their distribution.

    Returns:
        `out`.
    """
    if out.dim() != 1:
        raise ValueError(f"random numbers are drawn into a flat tensor, not one of shape {tuple(out.shape)}")
    for begin in range(0, len(out), PIECE):
        part = out[begin : begin + PIECE]
        _piece(part, seed, leaf_key(leaf), start + begin, kind)
    return out


def add(
    w: Params, layout: Layout, seed: int, scale: float, kind: Kind = "gaussian", leaves: Collection[str] | None = None
) -> Params:
    """W [P] += scale z(seed), in place, for these leaves (None: all); the direction itself is never held as a whole.

    Product and sum are rounded one after the other: as one operation they are, on some machines, in parts of a tensor.
    """
    room = w.new_empty(min(PIECE, layout.size))
    for leaf, begin, part in pieces(w, layout):
        if leaves is None or leaf in leaves:
            part.add_(fill(room[: len(part)], seed, leaf, begin, kind).mul_(scale))
    return w


def near(out: Tensor, w: Tensor, seed: int, shift: float, leaf: str, kind: Kind = "gaussian") -> Tensor:
    """A leaf a little way off: out [n] = w + shift z(seed); both flat, and not in one place."""
    for begin in range(0, len(out), PIECE):
        part = out[begin : begin + PIECE]
        fill(part, seed, leaf, begin, kind).mul_(shift).add_(w[begin : begin + PIECE])
    return out


def direction(seed: int, layout: Layout, kind: Kind = "gaussian", dtype: torch.dtype = torch.float32) -> Params:
    """Z(seed) as a vector [P]."""
    z = torch.empty(layout.size, dtype=dtype)
    for leaf in layout.leaves:
        fill(z[leaf.offset : leaf.offset + leaf.size], seed, leaf.name, 0, kind)
    return z


def pieces(w: Params, layout: Layout) -> Iterator[tuple[str, int, Tensor]]:
    """The vector's parts of at most PIECE numbers: the leaf's name, index of the first number in it, the numbers."""
    for leaf in layout.leaves:
        for begin in range(0, leaf.size, PIECE):
            stop = min(begin + PIECE, leaf.size)
            yield leaf.name, begin, w[leaf.offset + begin : leaf.offset + stop]


def largest(kind: Kind) -> float:
    """No number of a direction is larger."""
    return float(_quantiles(torch.device("cpu"), torch.float32).max()) if kind == "gaussian" else 1.0


def variance(kind: Kind) -> float:
    """Of the distribution the numbers are drawn from."""
    return (1 - 2.0**-32) / 3 if kind == "uniform" else 1.0


@functools.cache
def fingerprint(kinds: tuple[Kind, ...] = ("gaussian", "rademacher")) -> str:
    """Sixteen hex digits over some numbers as this machine draws them: equal where two machines draw alike."""
    digest = hashlib.blake2b(digest_size=8)
    for kind in kinds:
        found = fill(torch.empty(4096), 0x1234_5678_9ABC_DEF0 >> 1, "a leaf", 12345, kind)
        unit = 1 << 16 if kind == "uniform" else UNIT
        digest.update((found.double() * unit).to(torch.int32).numpy().tobytes())
    return digest.hexdigest()


def _piece(out: Tensor, seed: int, leaf: int, start: int, kind: Kind) -> None:
    """At most PIECE numbers; pairs of them share a hash, so a piece may begin or end inside a pair."""
    first, last = start // 2, (start + len(out) + 1) // 2
    edge = (first >> 32) + 1 << 32
    if last > edge:  # pairs are counted in 32 bits; what is above is the same for all numbers of a piece
        _piece(out[: 2 * edge - start], seed, leaf, start, kind)
        _piece(out[2 * edge - start :], seed, leaf, 2 * edge, kind)
        return
    hashed = _on_cpu if out.device.type == "cpu" else _on_device
    halves = hashed(seed, leaf, first, last - first, out.device)[start - 2 * first :][: len(out)]
    match kind:
        case "gaussian":
            places = _room.places[: len(out)] if out.device.type == "cpu" else halves.new_empty(len(out), dtype=INT)
            torch.index_select(_quantiles(out.device, out.dtype), 0, places.copy_(halves).bitwise_and_(0xFFFF), out=out)
        case "uniform":
            out.copy_(halves).add_(0.5).mul_(2.0**-15)  # each of them exact
        case "rademacher":
            out.copy_((halves & 1) * 2 - 1)


class _Room(threading.local):
    """What a thread hashes in, so that nothing is asked of the system piece by piece."""

    def __init__(self) -> None:
        self.x, self.shifted = (numpy.empty(PIECE // 2 + 1, numpy.uint32) for _ in range(2))
        self.places = torch.empty(PIECE + 2, dtype=INT)


_room = _Room()


def _on_cpu(seed: int, leaf: int, first: int, count: int, device: torch.device) -> Tensor:
    """[2 count] int16, the halves of `count` hashes; numpy knows unsigned numbers and asks less of each call.

    They are good until the next call of this thread.
    """
    x, shifted = _room.x[:count], _room.shifted[:count]
    begin = (first * _SPREAD + (leaf ^ (seed & 0xFFFFFFFF))) & 0xFFFFFFFF
    numpy.add(_spread()[:count], numpy.uint32(begin), out=x)
    if first >> 32:
        numpy.bitwise_xor(x, numpy.uint32(first >> 32), out=x)
    _stirred(x, shifted)
    numpy.bitwise_xor(x, numpy.uint32(seed >> 32 & 0xFFFFFFFF), out=x)
    numpy.add(x, numpy.uint32(leaf), out=x)
    _stirred(x, shifted)
    return torch.from_numpy(x.view(numpy.int16))


def _stirred(x: Hashes, shifted: Hashes) -> None:
    """Every bit of uint32 numbers into every other, in place."""
    for shift, factor in ((16, _FIRST), (15, _SECOND), (16, None)):
        numpy.right_shift(x, numpy.uint32(shift), out=shifted)
        numpy.bitwise_xor(x, shifted, out=x)
        if factor is not None:
            numpy.multiply(x, numpy.uint32(factor), out=x)


@functools.cache
def _spread() -> Hashes:
    """0, 1, ..., spread over 32 bits: one for each pair of a piece."""
    return numpy.arange(PIECE // 2 + 1, dtype=numpy.uint32) * numpy.uint32(_SPREAD)


def _on_device(seed: int, leaf: int, first: int, count: int, device: torch.device) -> Tensor:
    """The same hashes on any device, in signed numbers."""
    x = _count(device)[:count] + _signed(first)
    x.mul_(_signed(_SPREAD)).add_(_signed(leaf ^ (seed & 0xFFFFFFFF)))
    if first >> 32:
        x.bitwise_xor_(torch.full_like(x, _signed(first >> 32)))
    room = torch.empty_like(x)
    _mixed(x, room)
    x.bitwise_xor_(torch.full_like(x, _signed((seed >> 32) & 0xFFFFFFFF))).add_(_signed(leaf))
    _mixed(x, room)
    return x.view(torch.int16)


def _mixed(x: Tensor, room: Tensor) -> None:
    """Every bit of int32 numbers into every other, in place."""
    for shift, factor in ((16, _FIRST), (15, _SECOND), (16, None)):
        torch.bitwise_right_shift(x, shift, out=room)  # an arithmetic shift: what it copies from the left is cut off
        x.bitwise_xor_(room.bitwise_and_(_mask(shift, x.device)[: len(x)]))
        if factor is not None:
            x.mul_(_signed(factor))


@functools.cache
def _count(device: torch.device) -> Tensor:
    """0, 1, ...: one for each pair of a piece."""
    return torch.arange(PIECE // 2 + 1, dtype=torch.int32, device=device)


@functools.cache
def _mask(shift: int, device: torch.device) -> Tensor:
    """What a shift to the right leaves, once for each pair: with a single number torch takes ten times as long."""
    return torch.full((PIECE // 2 + 1,), (1 << (32 - shift)) - 1, dtype=torch.int32, device=device)


def _signed(bits: int) -> int:
    """32 bits as the signed number torch wants."""
    bits &= 0xFFFFFFFF
    return bits - (1 << 32) if bits >= 1 << 31 else bits


@functools.cache
def _quantiles(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[65536], multiples of 1 / UNIT: coarse enough that no library's last digit shows. In the order of 16 bits read as
    a number from 0: first those above the median.
    """
    share = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    exact = torch.special.ndtri(share)
    exact /= exact.square().mean().sqrt()
    return ((exact * UNIT).round() / UNIT).roll(1 << 15).to(device, dtype)
