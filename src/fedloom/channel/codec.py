"""Messages and states as bytes and back: safetensors, with everything that is not a tensor as JSON in its header.

A value is a frozen dataclass of tensors, numbers, text, None, and tuples or dicts of them. Decoding is driven by the
declared type, never by what the bytes claim, and nothing is executed. Bytes that do not fit are refused in words.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from fedloom.channel import frames

FORMAT = "fedloom-1"
KEY = "fedloom"
V = TypeVar("V")


class CodecError(ValueError):
    """Bytes that are not what they should be; the message says what was expected."""


@dataclass(frozen=True)
class Envelope:
    """What travels beside a message so that a stray one is refused."""

    schema: str
    """The message's class and fields."""
    run: str = ""
    round: int = 0
    dispatch: int = 0
    client: int = 0
    layout: str = ""
    config: str = ""


def schema_of(kind: type) -> str:
    """Name and fields of a message class, so that two versions of a page do not talk past each other."""
    return f"{kind.__name__}({', '.join(f.name for f in dataclasses.fields(kind))})"


def encode(value: Any, envelope: Envelope | None = None) -> bytes:
    """The value as bytes.

    Raises:
        TypeError: it holds something that cannot travel.
    """
    header, tensors = _split(value, envelope)
    return frames.write(tensors, header)


def size(value: Any, envelope: Envelope | None = None) -> int:
    """How many bytes `encode` would give, without copying a tensor."""
    header, tensors = _split(value, envelope)
    return frames.size(tensors, header)


def decode(kind: type[V], data: bytes | memoryview, expect: Envelope | None = None, own: bool = False) -> V:
    """The value of type `kind` in these bytes.

    Args:
        kind: a dataclass.
        data: what `encode` gave.
        expect: the envelope the bytes must be in, field by field.
        own: nobody else uses the bytes any more, so the value's tensors may lie in them.

    Raises:
        CodecError: truncated or foreign bytes, another envelope, or fields that do not fit `kind`.
    """
    try:
        head = frames.read_head(data)
        header = _header(head)
        if header.get("format") != FORMAT:
            raise CodecError(f"these bytes are of format {header.get('format')!r}, this version reads {FORMAT!r}")
        if expect is not None:
            _check(header.get("envelope"), expect)
        tensors = frames.read(data, head, own)
    except frames.FrameError as error:
        raise CodecError(f"{len(data)} bytes are not a whole message: {error}") from None
    try:
        return typing.cast(V, _join(kind, header["body"], tensors, kind.__name__))
    except CodecError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CodecError(f"the message's body does not fit {kind.__name__}: {error!r}") from None


def plain(value: Any) -> Any:
    """A value without tensors, as JSON can hold it.

    Raises:
        TypeError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    node = _plain(value, "value", tensors)
    if tensors:
        raise TypeError("a tensor cannot travel as JSON")
    return node


def joined(kind: type[V], node: Any) -> V:
    """The value of type `kind` that `plain` made this of; foreign input is refused.

    Raises:
        CodecError: it does not fit.
    """
    try:
        return typing.cast(V, _join(kind, node, {}, kind.__name__))
    except CodecError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CodecError(f"this does not fit {kind.__name__}: {error!r}") from None


def _split(value: Any, envelope: Envelope | None) -> tuple[dict[str, str], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    body = _plain(value, "v", tensors)
    head: dict[str, Any] = {"format": FORMAT, "body": body}
    if envelope is not None:
        head["envelope"] = dataclasses.asdict(envelope)
    # one entry only: safetensors writes several in an order that changes from run to run
    return {KEY: json.dumps(head, separators=(",", ":"))}, tensors


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for everything but tensors, which are put aside under a number."""
    if isinstance(value, Tensor):
        if value.dtype not in frames.NAMES:
            raise TypeError(f"{path}: a tensor of {value.dtype} cannot travel")
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"t": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{path}.{f.name}", tensors) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {"d": [[_plain(k, path, tensors), _plain(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, tuple | list):
        return [_plain(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot travel; use tensors, numbers, text, tuples and dicts")


def _header(head: Mapping[str, Any]) -> dict[str, Any]:
    """Our own part of a frame's header."""
    try:
        header = json.loads(head[frames.METADATA][KEY])
    except (ValueError, KeyError, TypeError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CodecError("the message's header is not readable: it is damaged or foreign")
    return header


def _check(found: Any, expect: Envelope) -> None:
    found = found if isinstance(found, dict) else {}
    for name, wanted in dataclasses.asdict(expect).items():
        if wanted != found.get(name):
            raise CodecError(f"the message is for {name} {found.get(name)!r}, expected is {name} {wanted!r}")


def _join(kind: Any, node: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    """The value of type `kind` from its plain form."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _join_union(typing.get_args(kind), node, tensors, path)
    if origin in (tuple, list) or kind in (tuple, list):
        return _join_items(kind, node, tensors, path)
    if origin is typing.Literal:
        return node if isinstance(node, str) and node in typing.get_args(kind) else _misfit(kind, node, path)
    if origin is not None and issubclass(origin, Mapping):
        key, item = typing.get_args(kind)
        pairs = node["d"] if isinstance(node, dict) and "d" in node else _misfit(kind, node, path)
        return {_join(key, k, tensors, path): _join(item, v, tensors, f"{path}.{k}") for k, v in pairs}
    if kind is Tensor:
        if not isinstance(node, dict) or node.get("t") not in tensors:
            raise CodecError(f"{path}: a tensor is missing")
        return tensors[node["t"]]
    if kind is bytes:
        return bytes.fromhex(node["b"]) if isinstance(node, dict) and "b" in node else _misfit(kind, node, path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _join_fields(kind, node, tensors, path)
    if kind is float:
        if isinstance(node, dict) and "f" in node:
            return float(node["f"])
        return (
            float(node) if isinstance(node, int | float) and not isinstance(node, bool) else _misfit(kind, node, path)
        )
    if kind in (int, str, bool, type(None)):
        return node if type(node) is kind else _misfit(kind, node, path)
    raise TypeError(f"{path}: {kind} is not a type that travels")


def _join_fields(kind: type, node: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    fields = {f.name for f in dataclasses.fields(kind)}
    if not isinstance(node, dict) or set(node) != fields:
        found = sorted(node) if isinstance(node, dict) else type(node).__name__
        raise CodecError(f"{path}: fields {found} are not those of {kind.__name__}: {sorted(fields)}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _join(hints[name], node[name], tensors, f"{path}.{name}") for name in fields})


def _join_items(kind: Any, node: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    if not isinstance(node, list):
        return _misfit(kind, node, path)
    args = typing.get_args(kind)
    whole = (typing.get_origin(kind) or kind) is list
    kinds = [args[0]] * len(node) if whole or (len(args) == 2 and args[1] is Ellipsis) else list(args)
    if len(kinds) != len(node):
        raise CodecError(f"{path}: {len(node)} items where {len(kinds)} belong")
    items = [_join(k, v, tensors, f"{path}.{i}") for i, (k, v) in enumerate(zip(kinds, node, strict=True))]
    return items if whole else tuple(items)


def _join_union(kinds: tuple[Any, ...], node: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    if node is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _join(kind, node, tensors, path)
            except CodecError as error:
                problems.append(str(error))
    raise CodecError("; ".join(problems))


def _misfit(kind: Any, node: Any, path: str) -> Any:
    raise CodecError(f"{path}: {str(node)[:40]!r} is not a {getattr(kind, '__name__', kind)}")
