"""Rounds that train one factor of every LoRA pair while the other rests (RoLoRA).

Chen et al. 2025, Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA,
https://arxiv.org/abs/2502.01755. With A the same for all, Σ p_i B_i A = (Σ p_i B_i) A: averaging one factor is exact.
The first round trains B, since B starts at zero and A has no gradient beside a zero B. Only the active factor is
sent. Plain leaves (a bias, a head) are trained, sent and averaged in every round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedloom import lowrank
from fedloom.aggregate.rules import Mean
from fedloom.contracts import Carry, Rule, Term
from fedloom.params import Layout, Params
from fedloom.spaces import terms
from fedloom.spaces.steady import alike


@dataclass(frozen=True)
class Turns:
    """B in the first round, A in the second, B in the third; or one of them for ever."""

    layout: Layout
    first: Literal["A", "B"] = "B"
    """The factor of the first round."""
    alternate: bool = True
    """False: the first factor is trained in every round, the other stays where it started."""
    rule: Rule = Mean()

    @property
    def phases(self) -> int:
        """Two turns, or one."""
        return 2 if self.alternate else 1

    def phase(self, round: int) -> int:
        """0 in even rounds, which train `first`; 1 in odd ones."""
        return round % self.phases

    def active(self, phase: int, layout: Layout) -> Sequence[str]:
        """The turn's factor of every pair, and all plain leaves."""
        return resting(layout, "A" if (self.first == "B") == (phase == 0) else "B")

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The shared vector as it is.

        Raises:
            ValueError: the client's layout is of another size.
        """
        return alike(shared, self.layout, layout)

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """The active leaves, one behind the other."""
        return layout.take(y, self.active(phase, layout))

    def point(self, shared: Params, phase: int) -> Term:
        """The active leaves of the shared vector."""
        return self.layout.take(shared, self.active(phase, self.layout))

    def form(self, term: Term, phase: int) -> Term:
        """What was sent: beside one factor that is the same for all, the other stands for itself."""
        return term

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The shared vector with the active leaves replaced."""
        part, _ = terms.split(term)
        return self.layout.put(shared, self.active(self.phase(round), self.layout), part), carry


def resting(layout: Layout, factor: Literal["A", "B"]) -> tuple[str, ...]:
    """Names of all leaves but this factor of every pair."""
    rests = {(pair.a if factor == "A" else pair.b).name for pair in lowrank.pairs(layout)}
    return tuple(name for name in layout.names if name not in rests)
