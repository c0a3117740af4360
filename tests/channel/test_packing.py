"""Bytes in place of tensors: against numpy, and that nothing foreign gets through."""

import math
import struct

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.channel.codec import CodecError
from fedloom.channel.packing import BLOCK, FORMATS, KINDS, Overflow, pack, unpack

LAW = settings(deadline=None, derandomize=True, max_examples=60)


def numbers(count: int, seed: int = 0, size: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return size * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_numpy(v: numpy.ndarray) -> numpy.ndarray:
    """int8 and back, block by block, as the docstring of `packing` says it."""
    out = numpy.zeros_like(v)
    for i in range(0, len(v), 256):
        block = v[i : i + 256]
        s = numpy.float32(numpy.abs(block).max() / 127)
        q = numpy.clip(numpy.rint(block / s), -127, 127) if s > 0 else numpy.zeros_like(block)
        out[i : i + 256] = q.astype(numpy.int8).astype(v.dtype) * v.dtype.type(s)
    return out


@pytest.mark.parametrize("count", [2, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_int8_is_what_numpy_gives(count, dtype):
    v = numbers(count, dtype=dtype)
    v[: count // 2] *= 1e-3  # blocks of their own have scales of their own
    assert torch.equal(unpack(pack(v, "int8", dtype)).values, torch.from_numpy(by_numpy(v.numpy())))


def test_by_hand():
    """max 254 gives s = 2: 3 is 1.5 steps and goes to the even 2, 5 is 2.5 and goes to 2, -254 is -127."""
    v = torch.tensor([254.0, 3.0, 5.0, -254.0, 0.0, 0.9])
    assert unpack(pack(v, "int8", torch.float32)).values.tolist() == [254.0, 4.0, 4.0, -254.0, 0.0, 0.0]


@LAW
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=600), st.integers(0, 3))
def test_no_number_is_off_by_more_than_half_a_step(values, shift):
    v = torch.tensor(values) * 10.0 ** (-8 * shift)
    back = unpack(pack(v, "int8", torch.float32)).values
    for i in range(0, len(v), BLOCK):
        block = v[i : i + BLOCK].double()
        step = float(block.abs().max()) / 127
        assert float((back[i : i + BLOCK].double() - block).abs().max()) <= step / 2 * (1 + 1e-4) + 1e-44


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("shape", [(2,), (3, 100), (1, 1, 5, 60), (257, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_says_its_shape_format_and_reference(kind, shape, dtype):
    v = numbers(math.prod(shape)).reshape(shape)
    v = v.double() if dtype == torch.float64 else v
    found = unpack(pack(v, kind, dtype, reference=3))
    assert (found.kind, found.format, found.reference, tuple(found.values.shape)) == (kind, dtype, 3, shape)
    assert torch.allclose(found.values, v, atol=0.02)


def test_sizes():
    """8 + 8 for the head of a vector; then 2 bytes a number, or 1 and 4 for each block."""
    v = numbers(1000)
    assert len(pack(v, "fp16", v.dtype)) == 16 + 2000
    assert len(pack(v, "int8", v.dtype)) == 16 + 1000 + 4 * 4
    assert len(pack(v.to(torch.uint8), "uint8", torch.uint8)) == 16 + 1000


def test_zeros_and_the_smallest_numbers():
    assert unpack(pack(torch.zeros(300), "int8", torch.float32)).values.tolist() == [0.0] * 300
    tiny = torch.tensor([1e-45, -3e-45, 1e-44] * 100)
    assert bool((unpack(pack(tiny, "int8", torch.float32)).values - tiny).abs().max() <= 1.1e-44)


@pytest.mark.parametrize(
    ("kind", "value"), [("fp16", 65520.0), ("fp16", -1e6), ("int8", 1e300)], ids=["65520", "-1e6", "1e300"]
)
def test_too_large_is_said(kind, value):
    v = torch.tensor([0.0, value], dtype=torch.float64)
    with pytest.raises(Overflow, match="too large for"):
        pack(v, kind, torch.float64)


def head(kind: int = 2, format: int = 1, reference: int = 0, shape: tuple[int, ...] = (4,), magic: bytes = b"flq1"):
    return struct.pack("<4sBBBB", magic, kind, format, reference, len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)


def scale(value: float) -> bytes:
    return struct.pack("<f", value)


GOOD = head() + scale(0.5) + bytes([1, 2, 255, 127])


def test_the_bytes_written_by_hand():
    assert unpack(torch.frombuffer(bytearray(GOOD), dtype=torch.uint8)).values.tolist() == [0.5, 1.0, -0.5, 63.5]
    assert bytes(pack(torch.tensor([0.5, 1.0, -0.5, 63.5]), "int8", torch.float32).tolist()) == GOOD


BAD = {
    "empty": b"",
    "seven bytes": GOOD[:7],
    "head only": GOOD[:16],
    "one byte less": GOOD[:-1],
    "one byte more": GOOD + b"\0",
    "another beginning": head(magic=b"flq2") + GOOD[16:],
    "another kind": head(kind=3) + GOOD[16:],
    "another format": head(format=len(FORMATS)) + GOOD[16:],
    "uint8 numbers as int8": head(format=0) + GOOD[16:],
    "floats as plain bytes": head(kind=0) + bytes(4),
    "255 dimensions": struct.pack("<4sBBBB", b"flq1", 2, 1, 0, 255) + bytes(3000),
    "dimensions cut off": struct.pack("<4sBBBB", b"flq1", 2, 1, 0, 3) + bytes(8),
    "a larger shape": head(shape=(5,)) + GOOD[16:],
    "no number and a scale": head(shape=(0,)) + scale(1.0),
    "a shape beyond all memory": head(shape=(1 << 63, 1 << 63, 1 << 63)) + GOOD[16:],
    "a scale that is NaN": head() + scale(math.nan) + bytes(4),
    "an infinite scale": head() + scale(math.inf) + bytes(4),
    "a negative scale": head() + scale(-1.0) + bytes(4),
    "-128": head() + scale(1.0) + bytes([128, 0, 0, 0]),
    "an infinite float16": head(kind=1, shape=(2,)) + struct.pack("<ee", 1.0, math.inf),
    "a float16 that is NaN": head(kind=1, shape=(2,)) + struct.pack("<ee", math.nan, 1.0),
}


@pytest.mark.parametrize("name", BAD)
def test_foreign_bytes_are_refused(name):
    with pytest.raises(CodecError):
        unpack(torch.frombuffer(bytearray(BAD[name] or b"\0"), dtype=torch.uint8)[: len(BAD[name])])


@pytest.mark.parametrize("other", [torch.zeros(30), torch.zeros(5, 6, dtype=torch.uint8), torch.tensor(3.0)])
def test_only_vectors_of_bytes_are_read(other):
    with pytest.raises(CodecError, match="is not packed"):
        unpack(other)


@LAW
@given(st.data())
def test_changed_bytes_are_refused_or_read_but_never_break(data):
    raw = bytearray(pack(numbers(300), data.draw(st.sampled_from(KINDS[1:])), torch.float32).tolist())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw), len(raw) // 2]))]
    try:
        found = unpack(torch.frombuffer(raw, dtype=torch.uint8))
    except CodecError:
        return
    assert found.values.numel() == 300
