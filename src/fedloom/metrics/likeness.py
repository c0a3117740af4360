"""What is found when an emulator is compared with its owner's model: numbers, and how they are written down."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fedloom import atomic
from fedloom.errors import UserError

FORMAT: Final = 1
BEFORE, AFTER, ATTACKED, BOTH = "before tuning", "after tuning", "attacked", "tuned, then attacked"


@dataclass(frozen=True)
class Measured:
    """One model's scores."""

    moment: str
    model: str
    """owner or emulator."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Attack:
    """What the attacker did."""

    steps: int
    rows: int
    source: str
    loss: float
    """Mean over its steps."""
    closed: float | None
    """Share of the way from the emulator's loss down to the owner's model's (tuned, where a run is given) that it went;
    None: there was no way."""


@dataclass(frozen=True)
class Likeness:
    """The whole report."""

    base: str
    emulator: str
    """Fingerprint of the artefact."""
    method: str
    source: str
    """Where the scored rows are from."""
    rows: int
    tokens: int
    """Learned tokens of these rows, at which words are compared."""
    kl: float
    """Mean over tokens of KL(owner's model, emulator), in nats."""
    agreement: float
    """Share of tokens where both say the same is likeliest."""
    scores: tuple[Measured, ...]
    attack: Attack | None
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """As JSON; never over an older file.

        Raises:
            UserError: there is one.
        """
        check_new(path)
        atomic.write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def check_new(path: Path) -> None:
    """A report is not written over another.

    Raises:
        UserError: there is something.
    """
    if path.exists():
        raise UserError(f"{path} exists, and is not overwritten; choose another --out")


def closed(scores: Sequence[Measured], attacked: float) -> float | None:
    """Share of the way an attack went from the emulator's loss down to that of the owner's model.

    Args:
        scores: of both; where a run tuned them, the owner's model with the tuned blocks is the aim.
        attacked: the emulator's loss afterwards.

    Returns:
        None: the emulator was no worse to begin with.
    """
    aim = [one.metrics["loss"] for one in scores if one.model == "owner"][-1]
    first = next(one.metrics["loss"] for one in scores if one.model == "emulator")
    return None if first <= aim else (first - attacked) / (first - aim)
