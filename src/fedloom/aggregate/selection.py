"""Guards that choose whole replies, Krum and Multi-Krum, and what all guards share.

Blanchard et al. 2017, Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
https://arxiv.org/abs/1703.02757.

Notation: n replies, f of them hostile at most. Distances are those of the replies' forms; those chosen are averaged by
the space's own rule, so that these guards work in every space. How large f should be cannot be learnt from the replies.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from fedloom.aggregate.rules import Gather, Gathered
from fedloom.aggregate.terms import alike, squares
from fedloom.contracts import Rule, Term, TooFewReplies

Form = Callable[[Term], Term]


@dataclass(frozen=True)
class Krum:
    """The reply with the smallest sum of squared distances to its n - f - 2 nearest others; weights do not count."""

    coordinates: ClassVar[bool] = False
    takes_one: ClassVar[bool] = True

    f: int = 1
    """Hostile replies it withstands; n must be 2 f + 3 at least."""

    def __post_init__(self) -> None:
        not_negative("f", self.f)

    @property
    def least(self) -> int:
        """Fewest replies it can work with."""
        return 2 * self.f + 3

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round.

        Args:
            rule: how the space averages; linear.
            point: where the shared model stands.
            form: what distances are measured in, of a reply or of the point.
        """
        return Chosen(inner=weighing(rule), point=point, form=form, f=self.f, count=1, least=self.least)


@dataclass(frozen=True)
class MultiKrum:
    """The plain mean of the m replies with Krum's lowest scores."""

    coordinates: ClassVar[bool] = False
    takes_one: ClassVar[bool] = False

    f: int = 1
    """Hostile replies it withstands; n must be 2 f + 3 at least."""
    m: int = 3
    """How many are averaged; n - f - 2 at most, or a hostile reply could be among them."""

    def __post_init__(self) -> None:
        not_negative("f", self.f)
        if self.m < 1:
            raise ValueError(f"m = {self.m} replies have no mean; Multi-Krum averages 1 or more")

    @property
    def least(self) -> int:
        """Fewest replies it can work with."""
        return max(2 * self.f + 3, self.m + self.f + 2)

    def __call__(self, rule: Rule, point: Term, form: Form) -> Rule:
        """The guarded rule of one round; arguments as for `Krum`."""
        return Chosen(inner=weighing(rule), point=point, form=form, f=self.f, count=self.m, least=self.least)


@dataclass(frozen=True, kw_only=True)
class Chosen(Gather):
    """Replies picked by Krum's scores, and their plain mean."""

    inner: Rule
    point: Term
    form: Form
    f: int
    count: int
    """How many are picked."""
    least: int

    def add(self, acc: Gathered, value: Any, weight: float | None) -> Gathered:
        """One more value.

        Raises:
            ValueError, TypeError: it cannot be compared with the point.
        """
        alike(self.form(value), self.form(self.point))
        return super().add(acc, value, weight)

    def finish(self, acc: Gathered) -> Any:
        """The mean of those picked.

        Raises:
            TooFewReplies: fewer than `least`.
        """
        n = enough(acc, self.least)
        apart = squares([self.form(value) for value, _ in acc.values], self.form(self.point))
        picked = ranking(apart, n - self.f - 2)[: self.count]
        return folded(self.inner, [(acc.values[i][0], 1.0) for i in sorted(picked)])


# -- what they share ------------------------------------------------------------------------------------------------


def ranking(apart: Tensor, neighbours: int) -> list[int]:
    """Replies from the lowest Krum score to the highest; a score is the sum of squared distances to the nearest others.

    Two replies that are each other's nearest always tie when one neighbour counts. A tie goes to the one whose next
    neighbours are nearer, which does not depend on the order of the replies, and last to the lower index.

    Args:
        apart: [n, n], squared distances, symmetric.
        neighbours: how many of the nearest others count; at least 1 is taken.
    """
    others = apart.clone().fill_diagonal_(math.inf)  # by index: a duplicate of a reply is another reply
    sums = others.sort(dim=1).values.cumsum(dim=1)[:, max(1, neighbours) - 1 :].tolist()
    return sorted(range(len(sums)), key=lambda i: (sums[i], i))


def enough(acc: Gathered, least: int) -> int:
    """How many replies there are.

    Raises:
        TooFewReplies: fewer than `least`.
    """
    n = len(acc.values)
    if n < least:
        raise TooFewReplies(n, least, {})
    return n


def weighing(rule: Rule, normal: bool = True) -> Rule:
    """The space's rule, told to take the weights it is given.

    Args:
        rule: the space's own.
        normal: also to divide by their sum, not by a fixed number.

    Raises:
        ValueError: it is not linear.
    """
    if not rule.linear:
        raise ValueError(
            f"{type(rule).__name__} is no weighted mean, so a guard cannot choose or weigh its replies; "
            "give the guard the space's own rule"
        )
    if not is_dataclass(rule) or isinstance(rule, type):
        return rule
    known = {f.name for f in fields(rule)}
    wanted: dict[str, Any] = {"uniform": False} | ({"over": None} if normal else {})
    changed: Rule = replace(rule, **{name: value for name, value in wanted.items() if name in known})
    return changed


def folded(rule: Rule, weighed: Sequence[tuple[Any, float]]) -> Any:
    """The weighted mean of values by a rule."""
    acc = rule.start()
    for value, weight in weighed:
        if weight != 0:
            acc = rule.add(acc, value, weight)
    return rule.finish(acc)


def not_negative(name: str, value: float) -> None:
    """Refuse numbers below 0.

    Raises:
        ValueError: it is.
    """
    if not value >= 0:
        raise ValueError(f"{name} is {value}; it must be 0 or more")
