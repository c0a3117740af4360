"""What a rule has added up so far, as values that travel, and back.

An accumulator is a dataclass of tensors, numbers, None, further accumulators, and tuples or lists of tensors and
numbers. It is taken apart into pieces, leaf by leaf, and put together along an empty one (`Rule.start()`), so that
bytes never say which class is made.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from torch import Tensor

_DTYPES: Final = {str(one): one for one in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


@dataclass(frozen=True)
class Piece:
    """One leaf, or the beginning of a sequence."""

    kind: str
    """none, tensor, int, float, bool, text, dtype; or tuple, list: the next `count` pieces are its items."""
    tensor: Tensor | None = None
    number: float = 0.0
    count: int = 0
    text: str = ""


def packed(accumulator: Any) -> tuple[Piece, ...]:
    """Its pieces.

    Raises:
        TypeError: it holds something else.
    """
    return tuple(_taken_apart(accumulator, type(accumulator).__name__))


def unpacked(empty: Any, pieces: Sequence[Piece]) -> Any:
    """The accumulator again.

    Args:
        empty: what the rule starts with.
        pieces: of an accumulator of the same rule.

    Raises:
        ValueError: they are of another.
    """
    left = iter(pieces)
    made = _put_together(empty, left)
    if next(left, None) is not None:
        raise ValueError(f"these sums are not those of a {type(empty).__name__}: more of them came than it holds")
    return made


def _taken_apart(value: Any, path: str) -> Iterator[Piece]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _taken_apart(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, tuple | list):
        yield Piece("tuple" if isinstance(value, tuple) else "list", count=len(value))
        for i, item in enumerate(value):
            if dataclasses.is_dataclass(item):
                raise TypeError(f"{path}.{i}: a {type(item).__name__} in a sequence cannot be sent as part of a sum")
            yield from _taken_apart(item, f"{path}.{i}")
    else:
        yield _leaf(value, path)


def _leaf(value: Any, path: str) -> Piece:
    match value:
        case None:
            return Piece("none")
        case Tensor():
            return Piece("tensor", tensor=value)
        case bool():
            return Piece("bool", count=int(value))
        case int():
            return Piece("int", count=value)
        case float():
            return Piece("float", number=value)
        case str():
            return Piece("text", text=value)
        case torch.dtype() if str(value) in _DTYPES:
            return Piece("dtype", text=str(value))
    raise TypeError(
        f"{path}: a {type(value).__name__} cannot be sent as part of a sum; use runtime.reduce=replies, or a rule "
        "whose sums hold tensors and numbers"
    )


def _put_together(empty: Any, left: Iterator[Piece]) -> Any:
    if dataclasses.is_dataclass(empty) and not isinstance(empty, type):
        return type(empty)(**{field.name: _put_together(getattr(empty, field.name), left) for field in fields(empty)})
    piece = next(left, None)
    if piece is None:
        raise ValueError("sums are incomplete: they are of another rule")
    match piece.kind:
        case "none":
            return None
        case "tensor":
            return piece.tensor
        case "bool":
            return bool(piece.count)
        case "int":
            return piece.count
        case "float":
            return piece.number
        case "text":
            return piece.text
        case "dtype":
            return _DTYPES[piece.text]
        case "tuple":
            return tuple(_put_together(None, left) for _ in range(piece.count))
        case "list":
            return [_put_together(None, left) for _ in range(piece.count)]
    raise ValueError(f"{piece.kind!r} is no part of a sum")
