"""Guards that work number by number: the median, the trimmed mean, and Bulyan.

Median and trimmed mean: Yin et al. 2018, Byzantine-Robust Distributed Learning, https://arxiv.org/abs/1803.01498,
definitions 1 and 2. Bulyan: El Mhamdi et al. 2018, The Hidden Vulnerability of Distributed Learning in Byzantium,
https://arxiv.org/abs/1802.07927.

Notation: n replies, f of them hostile at most. The replies are vectors, since a single number of a factored product
means nothing apart from its factor's other half. Weights do not count.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedloom.aggregate.rules import CHUNK, Gather, Gathered
from fedloom.aggregate.selection import Form, enough, not_negative, ranking
from fedloom.aggregate.terms import alike, squares
from fedloom.contracts import Rule, Term

Column = Callable[[Tensor], Tensor]
"""Of values [n, some coordinates] in float64, what becomes of each coordinate."""


@dataclass(frozen=True)
class Median:
    """The middle value of each number; the mean of the two middle ones of an even count."""

    coordinates: ClassVar[bool] = True
    takes_one: ClassVar[bool] = False

    @property
    def least(self) -> int:
        """Fewest replies it can work with."""
        return 1

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round.

        Args:
            rule: how the space averages; not used.
            point: where the shared model stands; a vector.
            form: what distances are measured in; not used.

        Raises:
            ValueError: the space's terms are no vectors.
        """
        only_vectors(point, "the median")
        return ByCoordinate(name="the median", least=self.least, column=middle)


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each number without its k = floor(share n) largest and k smallest values."""

    coordinates: ClassVar[bool] = True
    takes_one: ClassVar[bool] = False

    share: float = 0.1
    """Part of the replies that is dropped on each side; below one half."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise ValueError(
                f"share is {self.share}; it is dropped on both sides, so it must be 0 or more and below 0.5"
            )

    @property
    def least(self) -> int:
        """Fewest replies it can work with: n - 2 k is never below 1."""
        return 1

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round; arguments and errors as for `Median`."""
        only_vectors(point, "the trimmed mean")
        return ByCoordinate(name="the trimmed mean", least=self.least, column=self.trimmed)

    def trimmed(self, values: Tensor) -> Tensor:
        """Means of the columns of values [n, d] without both ends, [d]."""
        n = len(values)
        k = math.floor(self.share * n + 1e-9)  # 0.29 of 100 is 28.999999999999996
        return values.sort(dim=0).values[k : n - k].mean(dim=0)


@dataclass(frozen=True)
class Bulyan:
    """Krum, again and again, then for each number the mean of the values nearest their median.

    θ = n - 2 f replies are picked one by one, each by Krum among those left (with max(1, left - f - 2) neighbours);
    of their values the β = θ - 2 f nearest to the median are averaged.
    """

    coordinates: ClassVar[bool] = True
    takes_one: ClassVar[bool] = False

    f: int = 1
    """Hostile replies it withstands; n must be 4 f + 3 at least."""

    def __post_init__(self) -> None:
        not_negative("f", self.f)

    @property
    def least(self) -> int:
        """Fewest replies it can work with."""
        return 4 * self.f + 3

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round; arguments and errors as for `Median`, but the form is used."""
        only_vectors(point, "Bulyan")
        return Picked(name="Bulyan", least=self.least, column=self.central, point=point, form=form, f=self.f)

    def central(self, values: Tensor) -> Tensor:
        """Means of the θ - 2 f values nearest the median in the columns of values [θ, d], [d]."""
        order = (values - middle(values)).abs().sort(dim=0, stable=True).indices  # ties: the lower index
        return values.gather(0, order[: len(values) - 2 * self.f]).mean(dim=0)


# -- the rules they make --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ByCoordinate(Gather):
    """A vector computed number by number from all replies."""

    name: str
    least: int
    column: Column

    def add(self, acc: Gathered, value: Any, weight: float | None) -> Gathered:
        """One more value.

        Raises:
            ValueError: it is no vector, or of another shape than those before.
            TypeError: it holds whole numbers.
        """
        vector = only_vectors(value, self.name)
        if not vector.is_floating_point():
            raise TypeError(f"a tensor of {vector.dtype} cannot hold a mean; send it as float")
        if acc.values and acc.values[0][0].shape != vector.shape:
            raise ValueError(
                f"a reply of shape {tuple(vector.shape)} cannot be compared with one of "
                f"{tuple(acc.values[0][0].shape)} number by number; clients of different layouts need another guard"
            )
        return super().add(acc, vector, weight)

    def finish(self, acc: Gathered) -> Any:
        """The vector.

        Raises:
            TooFewReplies: fewer than `least`.
        """
        enough(acc, self.least)
        return self.computed([value for value, _ in acc.values])

    def computed(self, values: list[Tensor]) -> Tensor:
        """The vector from these values, in their format; a few coordinates at a time."""
        flat = [value.detach().reshape(-1) for value in values]
        out, width = torch.empty_like(flat[0]), max(256, 4 * CHUNK // len(flat))
        for i in range(0, len(out), width):
            block = torch.stack([vector[i : i + width].to(torch.float64) for vector in flat])
            out[i : i + width] = self.column(block)
        return out.view(values[0].shape)


@dataclass(frozen=True, kw_only=True)
class Picked(ByCoordinate):
    """The same from the n - 2 f replies that repeated Krum picks."""

    point: Term
    form: Form
    f: int

    def add(self, acc: Gathered, value: Any, weight: float | None) -> Gathered:
        """One more value.

        Raises:
            ValueError, TypeError: as in `ByCoordinate`, or it cannot be compared with the point.
        """
        vector = only_vectors(value, self.name)
        if not acc.values:  # all others must look like the first
            alike(self.form(vector), self.form(self.point))
        return super().add(acc, vector, weight)

    def finish(self, acc: Gathered) -> Any:
        """The vector.

        Raises:
            TooFewReplies: fewer than `least`.
        """
        n = enough(acc, self.least)
        values = [value for value, _ in acc.values]
        picked = repeated(squares([self.form(v) for v in values], self.form(self.point)), self.f, n - 2 * self.f)
        return self.computed([values[i] for i in sorted(picked)])


# -- what they share ------------------------------------------------------------------------------------------------


def middle(values: Tensor) -> Tensor:
    """Medians of the columns of values [n, d], [d]; torch's own takes the lower of two middle values."""
    n = len(values)
    ordered = values.sort(dim=0).values
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return low + (high - low) / 2


def repeated(apart: Tensor, f: int, count: int) -> list[int]:
    """Replies in the order in which Krum picks them one by one, each from those left.

    Args:
        apart: [n, n], squared distances.
        f: hostile replies.
        count: how many are picked.
    """
    left, picked = list(range(len(apart))), list[int]()
    while len(picked) < count:
        best = ranking(apart[left][:, left], len(left) - f - 2)[0]
        picked.append(left.pop(best))
    return picked


def only_vectors(term: Any, name: str) -> Tensor:
    """The term itself.

    Raises:
        ValueError: it is no vector.
    """
    if isinstance(term, Tensor):
        return term
    given = f"{len(term) // 2} products of LoRA factors" if isinstance(term, tuple) else type(term).__name__
    raise ValueError(
        f"{name} works number by number, but this space sends {given}; take a space that averages vectors, such as "
        "`factors`, or a guard that weighs whole replies: Krum, Multi-Krum, the geometric median or a norm bound"
    )
