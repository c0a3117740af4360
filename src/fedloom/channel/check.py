"""Whether a reply may count: every number in it finite, its weight not negative."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedloom.contracts import Message, Missing, Weighted


def fault(up: Message, hidden: bool = False) -> Missing | None:
    """Why the reply must not count, or None; a `hidden` reply shows nothing but that it is finite."""
    for path, value in numbers(up):
        if not _finite(value):
            return Missing("nonfinite", f"{path} holds a number that is not finite")
    if hidden or not isinstance(up, Weighted):
        return None
    if up.weight < 0:
        return Missing("refused", f"weight {up.weight} is negative")
    if up.weight == 0:
        return Missing("failed", "its weight is 0: no example was trained on")
    return None


def _finite(value: Tensor | float) -> bool:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return True
        # a finite sum needs no second look; only one that is not may be an overflow of finite numbers
        return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number no float can hold
        return False


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Tensor | float]]:
    """Every tensor and number in a message, with its path."""
    if isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield path or "value", value
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from numbers(getattr(value, f.name), f"{path}.{f.name}" if path else f.name)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from numbers(item, f"{path}[{name}]")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from numbers(item, f"{path}[{i}]")
