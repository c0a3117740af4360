"""How far apart the clients of a round ended, and what the aggregation lost, without keeping replies.

Notation: W_i what client i has, p_i its share, W = Σ p_i W_i, W_0 where the round began, all free of gauge (plain
leaves and products). drift = sqrt(Σ p_i |W_i - W|²) / |W - W_0|; error = |result - W| / |W| over the products alone.
Products are seen through fixed Gaussian matrices, Ψ W Ω with E |Ψ W Ω|² = |W|², the same for all modules of a size, so
that a reply costs (Ψ L)(R Ω) in its own format and what is kept is small beside an adapter; a side with few numbers is
seen whole, and figures of small matrices are exact. Mean and spread are updated together in float64 (Welford 1962; Chan
et al. 1979 for merging): the difference of two large sums would lose them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fedloom import rng
from fedloom.aggregate.rules import CHUNK
from fedloom.contracts import Rule, Term
from fedloom.spaces import terms


@dataclass
class Spread:
    """Weighted mean and sum of squared distances from it, in float64."""

    mean: list[Tensor] | None = None
    """The plain numbers flat, then what is seen of all products, flat; None before the first reply."""
    squares: float = 0.0
    """Σ w |W_i - mean W|²."""
    weight: float = 0.0

    def add(self, seen: Iterable[Tensor], weight: float) -> None:
        """One more reply, as flat tensors; each is looked at once, so they need not be there all at a time."""
        if weight == 0:
            return
        share, before = weight / (self.weight + weight), self.weight
        self.weight += weight
        if self.mean is None:  # nothing is away from the first
            self.mean = [part.to(torch.float64, copy=True) for part in seen]
            return
        for mean, part in zip(self.mean, seen, strict=True):
            for i in range(0, len(mean), CHUNK):
                away = part[i : i + CHUNK].to(torch.float64) - mean[i : i + CHUNK]
                self.squares += before * share * float(away @ away)
                mean[i : i + CHUNK].add_(away, alpha=share)

    def merged(self, other: "Spread") -> "Spread":
        """Both as one."""
        if self.mean is None or other.mean is None:
            return other if self.mean is None else self
        both = Spread([mean.clone() for mean in self.mean], self.squares, self.weight)
        both.add(other.mean, other.weight)
        both.squares += other.squares
        return both


@dataclass
class Sketch:
    """The figures of one round; a rule fills it, then it can be asked. Without replies every figure is nan."""

    columns: int = 32
    """Seen of a wide matrix, and twice as many rows of a tall one. Figures are off by about 1 / sqrt(columns · rank),
    the rank that of the differences."""
    seed: int = 0
    spread: Spread | None = None

    def drift(self, start: Term) -> float:
        """Spread of the clients around their mean, as a share of the way the mean moved from `start`.

        0 where nobody moved; infinite where they moved but their mean did not.
        """
        if self.spread is None or self.spread.mean is None:
            return math.nan
        apart = math.sqrt(self.spread.squares / self.spread.weight)
        return _share(apart, _distance(self.parts(start), self.spread.mean))

    def error(self, result: Term) -> float:
        """Distance of a result from the mean of products, as a share of that mean's length; 0 without products."""
        if self.spread is None or self.spread.mean is None:
            return math.nan
        mean = self.spread.mean[1]
        seen = self.parts(result)[1]
        return _share(_distance([seen], [mean]), math.sqrt(float(mean @ mean)))

    def parts(self, term: Term) -> tuple[Tensor, Tensor]:
        """A term as it is measured, both flat: the plain numbers, and every product through Ω, one behind the other."""
        plain, products = terms.split(term)
        seen = list[Tensor]()
        for left, right in products:
            exact = torch.promote_types(left.dtype, torch.float32)
            tall, wide = left.detach().to(exact), right.detach().to(exact)
            rows = 2 * self.columns
            if len(tall) > 2 * rows:
                tall = (tall.T @ self._probe("rows", len(tall), rows, exact)).T
            if wide.shape[1] > self.columns:
                wide = wide @ self._probe("columns", wide.shape[1], self.columns, exact)
            seen.append((tall @ wide).reshape(-1))
        flat = plain.detach().reshape(-1)
        return flat, torch.cat(seen) if seen else flat.new_zeros(0)

    def _probe(self, side: str, size: int, kept: int, dtype: torch.dtype) -> Tensor:
        """[size, kept] Gaussian with E |x probe|² = |x|²."""
        known: dict[tuple[str, int, torch.dtype], Tensor] = self.__dict__.setdefault("_probes", {})
        if (side, size, dtype) not in known:
            drawn = rng.normal(rng.key(self.seed, "sketch", side, size), size, kept) / math.sqrt(kept)
            known[side, size, dtype] = drawn.to(dtype)
        return known[side, size, dtype]


@dataclass
class Watched:
    """A rule's own accumulator beside the spread."""

    inner: Any
    spread: Spread = field(default_factory=Spread)


@dataclass(frozen=True)
class Measured:
    """Any rule, with the same value; beside it the replies' spread goes into a sketch when it finishes.

    A stage that hides replies keeps sums of its own and only has the rule finish them: then nothing is measured.
    """

    rule: Rule
    form: Callable[[Term], Term]
    """What was sent, free of gauge."""
    sketch: Sketch

    @property
    def linear(self) -> bool:
        """As the rule."""
        return self.rule.linear

    @property
    def reveals(self) -> Literal["sum", "each"]:
        """As the rule."""
        return self.rule.reveals

    @property
    def holds(self) -> Literal["one", "all"]:
        """As the rule: what is measured does not grow with the replies."""
        return self.rule.holds

    @property
    def uniform(self) -> bool:
        """Whether the rule ignores weights; so do the figures."""
        return bool(getattr(self.rule, "uniform", False))

    def start(self) -> Watched:
        """Empty accumulators."""
        return Watched(self.rule.start())

    def add(self, acc: Watched, value: Term, weight: float | None) -> Watched:
        """One more reply."""
        inner = self.rule.add(acc.inner, value, weight)
        acc.spread.add(self.sketch.parts(self.form(value)), 1.0 if self.uniform or weight is None else weight)
        return Watched(inner, acc.spread)

    def merge(self, left: Watched, right: Watched) -> Watched:
        """Both as one."""
        return Watched(self.rule.merge(left.inner, right.inner), left.spread.merged(right.spread))

    def finish(self, acc: Any) -> Any:
        """The rule's value; the sketch is filled."""
        if not isinstance(acc, Watched):
            return self.rule.finish(acc)
        value = self.rule.finish(acc.inner)
        self.sketch.spread = acc.spread
        return value


def _distance(left: Iterable[Tensor], right: Iterable[Tensor]) -> float:
    apart = (a.to(torch.float64) - b for a, b in zip(left, right, strict=True))
    return math.sqrt(sum(float(d @ d) for d in apart))


def _share(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole
