"""Frames against the library whose format they are: the same bytes, and nothing accepted that it refuses."""

import json
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedloom.channel import frames
from fedloom.channel.frames import FrameError

KINDS = list(frames.NAMES)


def filled(dtype: torch.dtype, shape: list[int]) -> Tensor:
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return (numbers % 2 == 0) if dtype == torch.bool else numbers.to(dtype)


TENSORS = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=4).filter(
        lambda name: name != frames.METADATA
    ),
    st.builds(filled, st.sampled_from(KINDS), st.lists(st.integers(0, 4), max_size=3)),
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(TENSORS, st.text(max_size=9))
def test_the_bytes_are_the_library_s(tensors: dict[str, Tensor], text: str) -> None:
    ours = frames.write(tensors, {"k": text})
    assert ours == safetensors.torch.save(tensors, metadata={"k": text})
    assert len(ours) == frames.size(tensors, {"k": text})


@settings(max_examples=100, deadline=None)
@given(TENSORS)
def test_what_the_library_wrote_is_read(tensors: dict[str, Tensor]) -> None:
    data = safetensors.torch.save(tensors, metadata={"k": "v"})
    found = frames.read(memoryview(data), frames.read_head(data))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


WHOLE = frames.write({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int8)}, {"k": "v"})


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_what_the_library_refuses_is_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    try:
        found: Any = frames.read(bytes(data), frames.read_head(bytes(data)))
    except FrameError:
        return
    theirs = dict(safetensors.deserialize(bytes(data)))  # raises where the library refuses
    assert {n: list(t.shape) for n, t in found.items()} == {n: t["shape"] for n, t in theirs.items()}


def framed(head: Any, body: bytes = b"") -> bytes:
    text = json.dumps(head).encode() if not isinstance(head, bytes) else head
    return len(text).to_bytes(8, "little") + text + body


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "head",
    [
        entry(shape=[3]),
        entry(shape=[-2]),
        entry(shape=[True, 2]),
        entry(shape=[2.0]),
        entry(shape="2"),
        entry(shape=[1 << 60, 0]),
        entry(shape=[1] * 65),
        entry(dtype="F8_E4M3"),
        entry(dtype=["F32"]),
        entry(data_offsets=[0, 9]),
        entry(data_offsets=[1, 9]),
        entry(data_offsets=[8, 0]),
        entry(data_offsets=[0]),
        entry(more=1),
        {**entry(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {"a": None},
        [],
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {"dtype": "I32", "shape": [2],'
        b' "data_offsets": [0, 8]}}',
        b"{" * 100_000,
        b'{"a": \xff}',
    ],
)
def test_headers_that_lie_are_refused(head: Any) -> None:
    data = framed(head, bytes(8))
    with pytest.raises(FrameError):
        frames.read(data, frames.read_head(data))


def test_a_header_longer_than_the_message_is_refused() -> None:
    with pytest.raises(FrameError, match="announce a header"):
        frames.read_head((1 << 62).to_bytes(8, "little") + b"{}")


def test_what_was_read_shares_no_memory_with_the_bytes() -> None:
    data = bytearray(WHOLE)
    found = frames.read(memoryview(data), frames.read_head(bytes(data)))
    data[-20:] = bytes(20)
    assert found["a"][1, 2] == 5
    assert found["a"].data_ptr() % 64 == 0
