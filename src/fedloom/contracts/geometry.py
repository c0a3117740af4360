"""How replies are combined: rules over fields, spaces for LoRA geometry, stages on the way."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from fedloom.contracts.client import Client
from fedloom.contracts.messages import Carry
from fedloom.params import Layout, Params


class Rule(Protocol):
    """How one field of the replies becomes one value. Replies are added in the order of client indices."""

    @property
    def linear(self) -> bool:
        """Whether the result is a weighted sum of the values."""

    @property
    def reveals(self) -> Literal["sum", "each"]:
        """Whether it needs to see single replies."""

    @property
    def holds(self) -> Literal["one", "all"]:
        """Whether its memory is independent of the number of replies."""

    def start(self) -> Any:
        """An empty accumulator."""

    def add(self, acc: Any, value: Any, weight: float | None) -> Any:
        """The accumulator with one more value; `weight` is None for messages without one."""

    def merge(self, left: Any, right: Any) -> Any:
        """Two accumulators of disjoint clients, as one."""

    def finish(self, acc: Any) -> Any:
        """The value; called only when something was added.

        Raises:
            TooFewReplies: it needs more than were added.
        """


Rules: TypeAlias = Rule | Mapping[str, Rule]
"""One rule for every field (but `weight`), or one for each."""


Term: TypeAlias = Tensor | tuple[Tensor, ...]
"""What a space averages: a vector, or (plain, L_1, R_1, L_2, R_2, ...), the leaves that are no factors as one vector
and, for each adapted module in the order of the layout, a product L R with L [out, k], R [k, in], the scale within."""


class Space(Protocol):
    """What is averaged, and how it becomes a client's numbers and back. LoRA geometry lives here.

    A space averages what clients have, not differences. Rounds may take turns (train B, then A): each turn is a phase,
    and only the leaves active in it are trained, sent and touched by the server's optimiser.
    """

    @property
    def phases(self) -> int:
        """How many phases there are; 1 for most."""

    def phase(self, round: int) -> int:
        """Which one this round is (0 behind us: the first)."""

    def active(self, phase: int, layout: Layout) -> Sequence[str] | None:
        """Names of the leaves that move; None: all."""

    def lower(self, shared: Params, layout: Layout) -> Params:
        """A client's start [its own P] from the shared vector [P]."""

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """A client's result [its own P] as what it sends."""

    @property
    def rule(self) -> Rule:
        """How what clients send is combined, to a term like `point`."""

    def point(self, shared: Params, phase: int) -> Term:
        """Where the shared vector stands, as a term; the server's optimiser goes on from it."""

    def form(self, term: Term, phase: int) -> Term:
        """What a client sent, free of gauge (products of factors), to measure distances in."""

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The shared vector [P] and the carry that stand for a combined term."""


class Stage(Protocol):
    """A transformation of replies between client and rule; it owns both ends.

    It works on what clients send in an algorithm's own tasks, not on evaluations, nor on the server's own worker.
    """

    @property
    def hides(self) -> bool:
        """Whether the server sees only sums."""

    async def outgoing(self, up: Any, client: Client, down: Any) -> Any:
        """The reply as it leaves the client; may talk to the other clients. `down` is the message it answers."""

    def incoming(self, up: Any, down: Any) -> Any:
        """The reply as the rule sees it, from what came and the message it answers.

        Raises:
            ValueError: what came is not what `outgoing` makes; the reply is refused.
        """

    def combine(self, rule: Rule) -> Rule:
        """The rule, changed so that it gives the same value from what this stage lets through."""
