"""Rules over one field of the replies: weighted mean, sum, maximum, and all of them as they came.

Sums are kept in float64 and normalised at the end, when it is known who really replied. Values are tensors of one
shape or plain numbers. Tensors are added in place into the rule's own accumulator, never into a reply.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Value = Tensor | float

CHUNK = 1 << 16
"""Elements converted to float64 at a time; larger pieces fall out of the cache and cost four times as much."""


def add_scaled(total: Tensor, value: Tensor, weight: float) -> None:
    """Total += weight * value, in place, in float64 whatever the value's format."""
    flat, source = total.view(-1), value.detach().reshape(-1)
    for i in range(0, flat.numel(), CHUNK):
        flat[i : i + CHUNK].add_(source[i : i + CHUNK].to(torch.float64), alpha=weight)


def divided(total: Tensor, divisor: float, dtype: torch.dtype | None) -> Tensor:
    """Total / divisor in another format, piece by piece: the whole in float64 once more would be two more replies."""
    result = total.new_empty(total.shape, dtype=dtype)
    flat, target = total.view(-1), result.view(-1)
    for i in range(0, flat.numel(), CHUNK):
        target[i : i + CHUNK] = flat[i : i + CHUNK] / divisor
    return result


@dataclass
class Total:
    """A running sum: `value` in float64 (None before the first), the weights' sum, and the format of the replies."""

    value: Any = None
    weight: float = 0.0
    dtype: torch.dtype | None = None

    def add(self, value: Value, weight: float) -> None:
        """Add weight * value.

        Raises:
            ValueError: a tensor of another shape or format than those before.
        """
        if isinstance(value, Tensor):
            if self.value is None:
                self.value, self.dtype = torch.zeros(value.shape, dtype=torch.float64), value.dtype
            if not isinstance(self.value, Tensor) or self.value.shape != value.shape:
                raise ValueError(
                    f"a reply of shape {tuple(value.shape)} cannot be added to one of "
                    f"{tuple(getattr(self.value, 'shape', ()))}; clients of different layouts need another space"
                )
            if value.dtype != self.dtype:
                raise ValueError(f"a reply of {value.dtype} cannot be added to one of {self.dtype}; all must be alike")
            add_scaled(self.value, value, weight)
        else:
            if isinstance(self.value, Tensor):
                raise ValueError("a plain number cannot be added to a tensor; replies must look alike")
            self.value = (self.value or 0.0) + weight * float(value)
        self.weight += weight

    def merged(self, other: "Total") -> "Total":
        """Both sums as one."""
        if self.value is None or other.value is None:
            return other if self.value is None else self
        if getattr(self.value, "shape", ()) != getattr(other.value, "shape", ()) or type(self.value) is not type(
            other.value
        ):
            raise ValueError("sums of different shapes cannot be merged; they come from different layouts")
        return Total(self.value + other.value, self.weight + other.weight, self.dtype)

    def over(self, divisor: float) -> Value:
        """The sum divided, in the replies' own format.

        Raises:
            ValueError: the divisor is 0.
        """
        if divisor == 0:
            raise ValueError("the weights of all replies sum to 0, so they have no mean")
        if isinstance(self.value, Tensor):
            return divided(self.value, divisor, self.dtype)
        return float(self.value) / divisor


@dataclass(frozen=True)
class Mean:
    """The weighted mean Σ w_i v_i / Σ w_i over the replies that counted (or over a fixed number)."""

    uniform: bool = False
    """Ignore the messages' weights: every reply counts the same."""
    over: float | None = None
    """Divide by this instead of the sum of weights (an expected cohort size, a buffer's size)."""
    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Total:
        """An empty sum."""
        return Total()

    def add(self, acc: Total, value: Value, weight: float | None) -> Total:
        """One more value.

        Raises:
            TypeError: the message carries no weight and the mean is not uniform, or the tensor holds whole numbers.
        """
        if not self.uniform and weight is None:
            raise TypeError("a weighted mean needs messages with a weight (Weighted); or use Mean(uniform=True)")
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise TypeError(f"a tensor of {value.dtype} cannot hold a mean; send it as float")
        acc.add(value, 1.0 if self.uniform or weight is None else weight)
        return acc

    def merge(self, left: Total, right: Total) -> Total:
        """Both sums as one."""
        return left.merged(right)

    def finish(self, acc: Total) -> Value:
        """The mean."""
        return acc.over(self.over if self.over is not None else acc.weight)


@dataclass(frozen=True)
class Sum:
    """The plain sum of the values, whatever their weights."""

    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Total:
        """An empty sum."""
        return Total()

    def add(self, acc: Total, value: Value, weight: float | None) -> Total:
        """One more value."""
        acc.add(value, 1.0)
        return acc

    def merge(self, left: Total, right: Total) -> Total:
        """Both sums as one."""
        return left.merged(right)

    def finish(self, acc: Total) -> Value:
        """The sum."""
        return acc.over(1.0)


@dataclass
class Largest:
    """The largest number so far."""

    value: float | None = None


@dataclass(frozen=True)
class Max:
    """The largest of plain numbers."""

    linear: bool = False
    reveals: Literal["sum", "each"] = "each"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Largest:
        """Nothing yet."""
        return Largest()

    def add(self, acc: Largest, value: Value, weight: float | None) -> Largest:
        """One more value."""
        return Largest(float(value) if acc.value is None else max(acc.value, float(value)))

    def merge(self, left: Largest, right: Largest) -> Largest:
        """The larger of two."""
        known = [x.value for x in (left, right) if x.value is not None]
        return Largest(max(known) if known else None)

    def finish(self, acc: Largest) -> float:
        """The maximum."""
        assert acc.value is not None
        return acc.value


@dataclass
class Gathered:
    """All values with their weights, in the order of client indices."""

    values: list[tuple[Any, float | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Gather:
    """Every value as it came, with its weight: memory grows with the cohort, and nothing is hidden."""

    linear: bool = False
    reveals: Literal["sum", "each"] = "each"
    holds: Literal["one", "all"] = "all"

    def start(self) -> Gathered:
        """An empty list."""
        return Gathered()

    def add(self, acc: Gathered, value: Any, weight: float | None) -> Gathered:
        """One more value."""
        acc.values.append((value, weight))
        return acc

    def merge(self, left: Gathered, right: Gathered) -> Gathered:
        """Both lists."""
        return Gathered(left.values + right.values)

    def finish(self, acc: Gathered) -> list[tuple[Any, float | None]]:
        """[(value, weight)]."""
        return acc.values
