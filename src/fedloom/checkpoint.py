"""Checkpoints: everything a run needs to go on to the same bits, in a folder that is whole or absent.

`checkpoints/round-0040/` holds `state.safetensors` (the algorithm's state) and `federation.safetensors` (dispatch
counter, work in flight), `progress.json` (round, best, early stopping) and, last, `sums.json` with the
BLAKE2 of each file. Client states live beside it in the store, versioned by round.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedloom import atomic
from fedloom.channel.codec import CodecError, decode, encode
from fedloom.errors import UserError
from fedloom.runtime.federation import FederationState

S = TypeVar("S")
FILES = {"state.safetensors", "federation.safetensors", "progress.json"}
REMEDY = "remove that folder, and resume goes on from the checkpoint before it"


@dataclass(frozen=True)
class Progress:
    """What the round loop knows besides the state."""

    round: int = 0
    """Rounds finished."""
    best_round: int | None = None
    best_value: float | None = None
    stop_best: float | None = None
    """Best value early stopping has seen, and how many evaluations ago."""
    stop_count: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in memory."""

    progress: Progress
    state: Any
    federation: FederationState


def name(round: int) -> str:
    """The folder of a round's checkpoint."""
    return f"round-{round:04d}"


def save(root: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then remove all but the `keep` newest."""
    path = root / name(checkpoint.progress.round)
    files = {
        "state.safetensors": encode(checkpoint.state),
        "federation.safetensors": encode(checkpoint.federation),
        "progress.json": json.dumps(asdict(checkpoint.progress), indent=1).encode(),
    }
    sums = {file: _sum(data) for file, data in files.items()}
    with atomic.folder(path) as aside:
        for file, data in files.items():
            (aside / file).write_bytes(data)
        (aside / "sums.json").write_text(json.dumps(sums))
    for old in found(root)[:-keep]:
        shutil.rmtree(old)
    return path


def found(root: Path) -> list[Path]:
    """Checkpoints under `root`, oldest first."""
    whole = (p for p in root.glob("round-*") if p.is_dir() and p.name.removeprefix("round-").isdigit())
    return sorted(whole, key=round_of)


def round_of(path: Path) -> int:
    """The round of a checkpoint's folder."""
    return int(path.name.removeprefix("round-"))


def load(path: Path, kind: type) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: its folder.
        kind: class of the algorithm's state.

    Raises:
        UserError: a file is missing or damaged, or belongs to another algorithm.
    """
    try:
        sums = json.loads((path / "sums.json").read_text())
        if not isinstance(sums, dict) or set(sums) != FILES:
            raise ValueError(f"sums.json does not list {', '.join(sorted(FILES))}")
        files = {file: (path / file).read_bytes() for file in sums}
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}; {REMEDY}") from None
    damaged = [file for file, data in files.items() if _sum(data) != sums[file]]
    if damaged:
        raise UserError(f"checkpoint {path} is damaged ({', '.join(damaged)}); {REMEDY}")
    try:
        return Checkpoint(
            Progress(**json.loads(files["progress.json"])),
            decode(kind, files["state.safetensors"]),
            decode(FederationState, files["federation.safetensors"]),
        )
    except (CodecError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path} does not belong to this run's algorithm or version: {error}") from None


def _sum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
