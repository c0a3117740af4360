"""What a reply passes before the rules see it: whatever it holds, it counts or is refused in words.

A client may send anything that its message's class can hold. First every number is looked at, then the stages' other
ends undo what they did on the client, then the limits, the page's own check (`fits`), and last the rules, on an empty
likeness of the reply: an accumulator that broke in the middle of a real one could not be mended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedloom.channel.check import NO_LIMITS, Limits, fault
from fedloom.contracts import Fits, Missing, Stage
from fedloom.runtime.folding import Fold
from fedloom.runtime.site import Dispatch, Reply, Tasks

LONGEST: Final = 400
"""Characters of a reason; some of them may be the client's own."""


@dataclass(frozen=True)
class Gate:
    """Between link and fold."""

    tasks: Tasks
    stages: tuple[Stage, ...] = ()
    limits: Limits = NO_LIMITS

    def __post_init__(self) -> None:
        if self.limits != NO_LIMITS and any(stage.hides for stage in self.stages):
            raise ValueError("limits on single replies cannot be held where a stage hides them; drop one of both")

    def staged(self, dispatches: Sequence[Dispatch]) -> tuple[Stage, ...]:
        """The stages that work on the replies to these."""
        return self.stages if any(map(self.tasks.staged, dispatches)) else ()

    def add(self, fold: Fold, reply: Reply, fits: Fits | None) -> Missing | None:
        """Count a reply, or say why not and leave the fold as it was.

        Raises:
            ValueError: the rules are not those of the message, or cannot work under these stages: a bug of the page.
        """
        if reply.up is None:
            return reply.missing
        found = self._opened(reply)
        if isinstance(found, Missing):
            return found
        why = self._misfit(fold, reply, found, fits)
        if why is None:
            fold.add(reply.dispatch.client, found)
        return why

    def _opened(self, reply: Reply) -> Any:
        """The message as the rules would see it, or why it must not count."""
        stages = self.staged([reply.dispatch])
        limits = self.limits if self.tasks.staged(reply.dispatch) else NO_LIMITS
        hidden, up = any(stage.hides for stage in stages), reply.up
        assert up is not None
        if stages:
            why = fault(up, hidden)
            if why is not None:
                return why
            try:
                for stage in reversed(stages):
                    up = stage.incoming(up, reply.dispatch.down)
            except ValueError as error:
                return refused(str(error))
        return fault(up, hidden, limits) or up

    def _misfit(self, fold: Fold, reply: Reply, up: Any, fits: Fits | None) -> Missing | None:
        try:
            misfit = fits(reply.dispatch.client, up) if fits is not None else None
        except Exception as error:  # of what a client sent
            misfit = f"it cannot be looked at: {described(error)}"
        if misfit is not None:
            return refused(misfit)
        fold.begin(up)
        misfit = fold.misfit(up)
        if misfit is not None:
            return refused(misfit)
        weight = fold.weight_of(up)
        return self.limits.heavy(weight) if weight is not None and self.tasks.staged(reply.dispatch) else None


def refused(why: str) -> Missing:
    """A reason, no longer than it need be."""
    return Missing("refused", why if len(why) <= LONGEST else f"{why[:LONGEST]} ...")


def described(error: Exception) -> str:
    """An error in words."""
    return str(error) or type(error).__name__
