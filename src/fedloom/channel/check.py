"""Whether a reply may count: every number in it finite, its weight not negative, both no larger than is allowed."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from fedloom.contracts import Message, Missing, Weighted


@dataclass(frozen=True)
class Limits:
    """What a reply may be at most; None: anything."""

    norm: float | None = None
    """L2 norm of all its floating-point tensors together."""
    weight: float | None = None

    def heavy(self, weight: float) -> Missing | None:
        """Why a reply of this weight must not count, or None."""
        if self.weight is None or weight <= self.weight:
            return None
        return Missing("refused", f"its weight is {weight:.6g}, at most {self.weight:g} is allowed")


NO_LIMITS: Final = Limits()


def fault(up: Message, hidden: bool = False, limits: Limits = NO_LIMITS) -> Missing | None:
    """Why the reply must not count, or None; a `hidden` reply shows nothing but that it is finite."""
    for path, value in numbers(up):
        if not _finite(value):
            return Missing("nonfinite", f"{path} holds a number that is not finite")
    if hidden:
        return None
    if isinstance(up, Weighted):
        if not isinstance(up.weight, int | float):
            return Missing("refused", f"its weight is no number but {type(up.weight).__name__}")
        if up.weight < 0:
            return Missing("refused", f"weight {up.weight} is negative")
        if up.weight == 0:
            return Missing("failed", "its weight is 0: no example was trained on")
        if (why := limits.heavy(up.weight)) is not None:
            return why
    if limits.norm is not None and (length := norm(up)) > limits.norm:
        return Missing("refused", f"its numbers have the norm {length:.6g}, at most {limits.norm:g} is allowed")
    return None


def norm(up: Message) -> float:
    """The L2 norm of all floating-point tensors of a message together, in float64; infinite beyond all floats."""
    found = (value for _, value in numbers(up) if isinstance(value, Tensor) and value.is_floating_point())
    return math.hypot(*(float(torch.linalg.vector_norm(value, dtype=torch.float64)) for value in found))


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
