"""Tensors with fewer bits: one tensor of numbers as one vector of bytes that says what it is, and back.

    bytes   0-3   "flq1"
            4     kind: 0 the bytes of a uint8 tensor as they are, 1 float16, 2 int8
            5     format of the tensor: its place in `FORMATS`
            6     reference: 0 none, k the k-th tensor the values are a difference to
            7     d, number of dimensions
            8-    d dimensions, 8 bytes each
            then  kind 1: a float16 for each number
                  kind 2: a float32 scale for each block of 256 numbers, then an int8 for each number

int8: q = round(v / s), s = max |v| / 127 over the block (0 where all are 0), so that |v - s q| <= s / 2. Bytes are read
as little-endian, like those of safetensors.
"""

import math
import struct
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from fedloom.channel.codec import CodecError

Kind = Literal["uint8", "fp16", "int8"]
BLOCK: Final = 256
KINDS: Final[tuple[Kind, ...]] = ("uint8", "fp16", "int8")
FORMATS: Final = (torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MAGIC: Final = b"flq1"
_HEAD: Final = struct.Struct("<4sBBBB")
_MOST_DIMENSIONS: Final = 8


class Overflow(ValueError):
    """A number is too large for the encoding."""


@dataclass(frozen=True)
class Packed:
    """What a vector of bytes holds."""

    kind: Kind
    format: torch.dtype
    """Of the tensor that was packed."""
    reference: int
    """0: the values themselves; k: their difference to the k-th tensor both ends know."""
    values: Tensor
    """In the shape that was packed; float64 for a float64 tensor, uint8 as it was, else float32."""


def wide(format: torch.dtype) -> torch.dtype:
    """The format values of a tensor are computed in."""
    return torch.float64 if format == torch.float64 else torch.float32


def pack(values: Tensor, kind: Kind, format: torch.dtype, reference: int = 0) -> Tensor:
    """The bytes [n] uint8.

    Args:
        values: of any shape, finite, float32 or float64; uint8 for the kind `uint8`.
        kind: how they are written.
        format: of the tensor they stand for.
        reference: what they are a difference to.

    Raises:
        Overflow: a number is too large for this kind.
    """
    flat = values.detach().reshape(-1).contiguous()
    match kind:
        case "uint8":
            body = [flat]
        case "fp16":
            half = flat.to(torch.float16)
            if not bool(torch.isfinite(half).all()):
                raise Overflow(f"{float(flat.abs().max()):.3g} is too large for float16, which ends at 65504")
            body = [half.view(torch.uint8)]
        case "int8":
            scale = scales(flat)
            if not bool(torch.isfinite(scale).all()):
                raise Overflow(f"{float(flat.abs().max()):.3g} is too large for a float32 scale")
            body = [scale.view(torch.uint8), _rounded(flat, scale).view(torch.uint8)]
    head = _HEAD.pack(_MAGIC, KINDS.index(kind), FORMATS.index(format), reference, values.dim())
    head += struct.pack(f"<{values.dim()}Q", *values.shape)
    return torch.cat([torch.frombuffer(bytearray(head), dtype=torch.uint8), *body])


def unpack(data: Tensor) -> Packed:
    """What the bytes hold; nothing in them is believed that their number does not bear out.

    Raises:
        CodecError: they are not what `pack` makes.
    """
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise CodecError(f"a tensor of {data.dtype} and shape {tuple(data.shape)} is not packed: a uint8 vector is")
    if len(data) < _HEAD.size:
        raise CodecError(f"{len(data)} bytes are too few for a packed tensor")
    magic, kind, format, reference, dimensions = _HEAD.unpack(bytes(data[: _HEAD.size].tolist()))
    if magic != _MAGIC or kind >= len(KINDS) or format >= len(FORMATS) or dimensions > _MOST_DIMENSIONS:
        raise CodecError("these bytes do not begin like a packed tensor")
    if (KINDS[kind] == "uint8") != (FORMATS[format] == torch.uint8):
        raise CodecError(f"a packed tensor of {FORMATS[format]} cannot be of kind {KINDS[kind]}")
    begin = _HEAD.size + 8 * dimensions
    if len(data) < begin:
        raise CodecError(f"a packed tensor of {dimensions} dimensions ends before it names them")
    shape = struct.unpack(f"<{dimensions}Q", bytes(data[_HEAD.size : begin].tolist()))
    count = math.prod(shape)
    wanted = begin + count * (2 if KINDS[kind] == "fp16" else 1)
    wanted += 4 * math.ceil(count / BLOCK) if KINDS[kind] == "int8" else 0
    if len(data) != wanted:
        raise CodecError(f"a packed tensor of shape {shape} takes {wanted} bytes as {KINDS[kind]}, it has {len(data)}")
    values = _read(KINDS[kind], data[begin:], count, wide(FORMATS[format]))
    return Packed(KINDS[kind], FORMATS[format], reference, values.reshape(shape))


def scales(flat: Tensor) -> Tensor:
    """[blocks] float32: max |v| / 127 of every block of a vector."""
    whole = len(flat) // BLOCK * BLOCK
    largest = [flat[:whole].view(-1, BLOCK).abs().amax(dim=1)] if whole else []
    largest += [flat[whole:].abs().amax(dim=0, keepdim=True)] if whole < len(flat) else []
    return (torch.cat(largest) / 127).to(torch.float32) if largest else flat.new_zeros(0, dtype=torch.float32)


def _rounded(flat: Tensor, scale: Tensor) -> Tensor:
    """[n] int8: every number over the scale of its block, to the nearest whole number."""
    over = torch.where(scale > 0, scale, 1.0).to(flat.dtype)  # below the least float32 a block is all zeros
    numbers = (flat / over.repeat_interleave(BLOCK)[: len(flat)]).round_().clamp_(-127, 127)
    return numbers.to(torch.int8)


def _read(kind: Kind, body: Tensor, count: int, format: torch.dtype) -> Tensor:
    match kind:
        case "uint8":
            return body.clone()
        case "fp16":
            half = body.clone().view(torch.float16)
            if not bool(torch.isfinite(half).all()):
                raise CodecError("a packed tensor holds a float16 that is not finite")
            return half.to(format)
    blocks = math.ceil(count / BLOCK)
    scale = body[: 4 * blocks].clone().view(torch.float32)  # a copy of its own begins where four bytes may
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise CodecError("a packed tensor holds a scale that is negative or not finite")
    numbers = body[4 * blocks :].clone().view(torch.int8)
    if bool((numbers == -128).any()):
        raise CodecError("a packed tensor holds -128, which is no value of a symmetric int8")
    return numbers.to(format) * scale.to(format).repeat_interleave(BLOCK)[:count]
