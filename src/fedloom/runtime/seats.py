"""One client as the server of a deployment sees it, and the letters it was sent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedloom.runtime.letters import Letter


def nothing() -> bytes:
    """The body of a letter without one."""
    return b""


@dataclass
class Asked:
    """A letter to one client, as often as it was sent."""

    letter: Callable[[str], Letter]
    """The letter, given a ticket."""
    body: Callable[[], bytes]
    """Makes its body; bytes are not kept while the answer is awaited."""
    stamp: str | None = None
    """When the client had last announced itself as this was sent last; None: it was not sent yet."""
    tickets: dict[str, str] = field(default_factory=dict)
    """By message id: of every time it was sent and not yet answered."""
    answer: Any = None
    """What came; it lies in the mailroom until it is read."""
    ticket: str = ""
    """The ticket `answer` must show."""


@dataclass
class Seat:
    """A client's place at the table."""

    name: str
    node: int
    """Its number in the mailroom."""
    stamp: str | None = None
    """When it last announced itself; None: it gives no sign of life."""
    left: float | None = None
    """Since when it gives none."""
    joining: Asked | None = None
    """The recipe, on its way."""
    ready: bool = False
    """It has built the recipe."""
    refused: str | None = None
    """Why it cannot take part."""
    asked: Asked | None = None
    """A task whose answer is awaited."""
    late: Asked | None = None
    """A task it may still work on, whose answer does not count any more."""
    rows: Mapping[str, int] = field(default_factory=dict)
    down: int = 0
    """Bytes of all bodies it was sent."""
    up: int = 0
    """Bytes of all bodies it sent, whether they counted or not."""

    @property
    def here(self) -> bool:
        """Whether it may be asked now."""
        return self.stamp is not None and self.ready and self.late is None and self.refused is None

    @property
    def why(self) -> str:
        """In words, why it may not."""
        if self.refused is not None:
            return f"it cannot take part: {self.refused}"
        if self.stamp is None:
            return "it is not here"
        return "it is still busy with an earlier task" if self.late is not None else "it has not joined yet"
