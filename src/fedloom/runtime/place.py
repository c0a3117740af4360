"""Which of several processes this one is, as its environment says; light, so that the command line may ask.

`torchrun` and everything that speaks its language sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; `runtime.workers`
starts processes with RANK, WORLD_SIZE and a file in place of the address (`fedloom.runtime.launch`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedloom.errors import UserError

FILE: Final = "FEDLOOM_STORE"
"""Names the file over which processes of one machine find each other."""
ADDRESS: Final = ("MASTER_ADDR", "MASTER_PORT")


class Elsewhere(RuntimeError):
    """Another process raised, and says so itself."""


@dataclass(frozen=True)
class Place:
    """One process among `size`, and where they find each other."""

    rank: int
    size: int
    local_rank: int = 0
    """Its number among the processes of its machine."""
    local_size: int = 1
    file: str | None = None
    """Processes of one machine meet over this file; None: over an address."""
    host: str = ""
    port: int = 0
    hosted: bool = False
    """The launcher itself listens at the address; else process 0 has to."""
    attempt: str = "0"
    """How often the launcher started all processes anew."""

    @property
    def one_machine(self) -> bool:
        """Whether all processes are on this machine."""
        return self.file is not None or self.local_size == self.size


def found(environ: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place; None where it is the only one.

    Raises:
        UserError: the environment contradicts itself.
    """
    file = environ.get(FILE)
    if not {"RANK", "WORLD_SIZE"} <= set(environ) or (file is None and not set(ADDRESS) <= set(environ)):
        return None
    try:
        rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        local_rank, local_size = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
        port = 0 if file else int(environ["MASTER_PORT"])
    except ValueError as error:
        raise UserError(
            f"the environment of this process names no place among others ({error}): {_named(environ)}"
        ) from None
    if not 0 <= rank < size:
        raise UserError(f"the environment of this process names no place among others: {_named(environ)}")
    if size == 1:
        return None
    return Place(
        rank, size, local_rank, local_size, file, environ.get("MASTER_ADDR", ""), port,
        hosted=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )  # fmt: skip


def first() -> bool:
    """Whether this process is the one that speaks: the only one, or number 0."""
    try:
        place = found()
    except UserError:  # whoever runs something will say so
        return True
    return place is None or place.rank == 0


def _named(environ: Mapping[str, str]) -> str:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    return ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
