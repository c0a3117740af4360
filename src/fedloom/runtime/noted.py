"""Trainings as a client's page awaits them: their numbers go into its log, and an attacker changes what they gave."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from fedloom.contracts import Call, Trained, Wandered
from fedloom.drift import Drift
from fedloom.engine.requests import Wander
from fedloom.errors import UserError
from fedloom.params import Params

Attacker: TypeAlias = Callable[[Params, Trained, int], Trained]
"""What a malicious client makes of its training: (start, training, seed) -> what it reports."""


class Noting(Protocol):
    """A client that keeps a log of its trainings."""

    @property
    def runs(self) -> list[Trained | Wandered]:
        """Of this task, in order."""

    @property
    def attack(self) -> Attacker | None:
        """What it makes of them; None: it is honest."""

    def key(self, purpose: str) -> int:
        """A seed of its own for this task and purpose."""


@dataclass(frozen=True)
class Noted:
    """Awaits a training and remembers its numbers for the log."""

    client: Noting
    x: Params
    call: Call[Trained]

    def __await__(self) -> Any:
        run = yield self.call
        if self.client.attack is not None:
            run = self.client.attack(self.x, run, self.client.key(f"attack {len(self.client.runs)}"))
        if run.lr_sum > 0 or not run.steps:  # a look at gradients is no training
            self.client.runs.append(run)
        return run


@dataclass(frozen=True)
class NotedWalk:
    """Awaits a training without gradients and remembers its numbers for the log."""

    client: Noting
    request: Wander
    call: Call[Wandered]

    def __await__(self) -> Any:
        run = yield self.call
        if self.client.attack is not None:
            run = self._attacked(run)
        self.client.runs.append(run)
        return run

    def _attacked(self, run: Wandered) -> Wandered:
        """What a malicious client makes of its weights.

        Raises:
            UserError: what it sends are slopes, and attacks are on weights.
        """
        start, y = self.request.start, run.y
        if y is None or isinstance(start, Drift):
            raise UserError(
                "attack: malicious clients change the weights they send, and this algorithm's clients send slopes "
                "along directions; use an algorithm that sends weights (fedmezo, fedavg), or leave `attack` out"
            )
        like = Trained(y, run.steps, run.lr_sum, run.examples, run.tokens, run.loss, run.skipped)
        attack, key = self.client.attack, self.client.key(f"attack {len(self.client.runs)}")
        assert attack is not None
        return replace(run, y=attack(start, like, key).y)
