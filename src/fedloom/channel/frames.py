"""Tensors as safetensors' bytes and back, with one copy each way.

The format is safetensors' (https://github.com/huggingface/safetensors, README): eight bytes that say how long the
header is, a JSON header, the tensors' bytes without gaps. The library makes two more copies of everything, which counts
where a server holds adapters of hundreds of megabytes; what is written here is byte for byte what it writes, and what
it refuses to read is refused here (the tests compare both). Nothing in the bytes is trusted before it was checked.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

LENGTH = 8
"""Bytes that say how long the header is."""
LONGEST = 100_000_000
"""Bytes of a header, as in the library."""
METADATA = "__metadata__"
ALIGNMENT = 64
"""Bytes; where torch's own tensors begin."""
LARGEST = 1 << 48
"""Numbers along one side of a tensor."""
ORDER = (
    torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
"""Formats in the order the library lays them out."""
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
FORMATS = {name: dtype for dtype, name in NAMES.items()}


class FrameError(ValueError):
    """Bytes that are not what they should be."""


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes; tensors are contiguous, on the CPU, of a format in `NAMES`."""
    head, order = _head(tensors, metadata)
    out = io.BytesIO()
    out.write(head)
    for name in order:
        if tensors[name].numel():
            out.write(memoryview(_raw(tensors[name])))
    return out.getvalue()


def size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """How many bytes `write` would give."""
    head, _ = _head(tensors, metadata)
    return len(head) + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def read_head(data: bytes | memoryview) -> dict[str, Any]:
    """The header.

    Raises:
        FrameError: there is none.
    """
    if len(data) < LENGTH:
        raise FrameError(f"{len(data)} bytes are too few for a message")
    length = int.from_bytes(data[:LENGTH], "little")
    if length > min(LONGEST, len(data) - LENGTH):
        raise FrameError(f"{len(data)} bytes announce a header of {length}: they are truncated or foreign")
    try:
        head = json.loads(bytes(data[LENGTH : LENGTH + length]).decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"the header is not readable ({error}): it is damaged or foreign") from None
    if not isinstance(head, dict):
        raise FrameError("the header is no object: it is damaged or foreign")
    return head


def read(data: bytes | memoryview, head: Mapping[str, Any], own: bool = False) -> dict[str, Tensor]:
    """The tensors under a header, where torch would have put them: products of numbers that begin elsewhere may differ
    in the last bit.

    Args:
        data: all of the bytes.
        head: their header.
        own: nobody else uses the bytes any more, so tensors that already lie well may stay where they are.

    Raises:
        FrameError: the header does not fit the bytes.
    """
    body = memoryview(data)[LENGTH + int.from_bytes(data[:LENGTH], "little") :]
    found: dict[str, Tensor] = {}
    at = 0
    for name, dtype, shape, begin, end in sorted(_entries(head), key=lambda entry: entry[3:]):
        if begin != at or math.prod(shape) * dtype.itemsize != end - begin or end > len(body):
            raise FrameError(f"tensor {name[:40]!r} does not lie where the header says, or has another size")
        try:
            found[name], at = _tensor(body[begin:end], dtype, shape, own), end
        except (RuntimeError, OverflowError, TypeError):
            raise FrameError(f"tensor {name[:40]!r} cannot have the shape {shape}") from None
    if at != len(body):
        raise FrameError(f"{len(body) - at} bytes follow the last tensor")
    return found


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    order = sorted(tensors, key=lambda n: (ORDER.index(tensors[n].dtype), n))
    entries: dict[str, Any] = {METADATA: dict(metadata)}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH)
    return len(text).to_bytes(LENGTH, "little") + text, order


def _raw(tensor: Tensor) -> Any:
    """A tensor's bytes as an array over the same memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _tensor(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...], own: bool) -> Tensor:
    if own and len(data) and not data.readonly:
        tensor = torch.frombuffer(data, dtype=torch.uint8)
        if tensor.data_ptr() % ALIGNMENT == 0:
            return tensor.view(dtype).view(shape)
    tensor = torch.empty(shape, dtype=dtype)
    if len(data):
        _raw(tensor)[:] = numpy.frombuffer(data, dtype=numpy.uint8)
    return tensor


def place(length: int, first: bytes | memoryview) -> memoryview:
    """Room for so many bytes, laid so that the first tensor lies well; `first` is how they begin."""
    head = LENGTH + int.from_bytes(bytes(first[:LENGTH]), "little")
    room = torch.empty(length + ALIGNMENT, dtype=torch.uint8)
    at = (-head - room.data_ptr()) % ALIGNMENT
    array: Any = room[at : at + length].numpy()
    return memoryview(array)


def _entries(head: Mapping[str, Any]) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], int, int]]:
    """Name, format, shape and place of every tensor, checked one by one."""
    for name, entry in head.items():
        if name == METADATA:
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FrameError(f"the header does not describe tensor {name[:40]!r}")
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in FORMATS:
            raise FrameError(f"tensor {name[:40]!r} has the unknown format {str(dtype)[:20]!r}")
        if not _whole(shape) or not _whole(place) or len(place) != 2 or len(shape) > 64:
            raise FrameError(f"tensor {name[:40]!r} has a shape or a place that is none")
        yield name, FORMATS[dtype], tuple(shape), place[0], place[1]


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(one) is int and 0 <= one < LARGEST for one in numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which every name stands once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found
