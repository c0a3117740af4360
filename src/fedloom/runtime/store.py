"""The clients' private memories, as transactions by round.

A client's writes in round r become version r. They are pending until the reply they belong to counted; a reply that
did not count leaves no trace. Version r is valid once the checkpoint of round r is on disk: after a crash, `rewind`
forgets every version beyond the checkpoint, so that a repeated round sees what the first attempt saw. Of each client
as many versions are kept as that needs: for every checkpoint on disk the newest not beyond it, and the newest two.

On disk a version is one file, `<root>/<client>/<round>.safetensors`, written aside and renamed. Several processes may
share the folder: a client belongs to one of them at a time, and each remembers only what it wrote itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from fedloom.atomic import write_bytes
from fedloom.channel.codec import decode, encode
from fedloom.contracts import ClientId

Entry = Tensor | float | int | str


@dataclass(frozen=True)
class Memory:
    """All entries of one client."""

    entries: dict[str, Tensor | int | float | str] = field(default_factory=dict)


class Shelf(Protocol):
    """Where versions lie: in memory or on disk."""

    def rounds(self, client: ClientId) -> list[int]:
        """Rounds this client has versions of, ascending."""

    def read(self, client: ClientId, round: int) -> Memory:
        """One version."""

    def write(self, client: ClientId, round: int, memory: Memory) -> None:
        """Keep a version: whole or not at all."""

    def drop(self, client: ClientId, round: int) -> None:
        """Forget a version."""

    def clients(self) -> Iterator[ClientId]:
        """Everybody with a version."""


class InMemory:
    """Versions as objects; for tests and runs without a folder."""

    def __init__(self) -> None:
        self._versions: dict[ClientId, dict[int, Memory]] = {}

    def rounds(self, client: ClientId) -> list[int]:
        """Rounds this client has versions of, ascending."""
        return sorted(self._versions.get(client, {}))

    def read(self, client: ClientId, round: int) -> Memory:
        """One version; what a task does to it in place stays with the task."""
        entries = self._versions[client][round].entries
        return Memory({k: v.clone() if isinstance(v, Tensor) else v for k, v in entries.items()})

    def write(self, client: ClientId, round: int, memory: Memory) -> None:
        """Keep a version."""
        self._versions.setdefault(client, {})[round] = memory

    def drop(self, client: ClientId, round: int) -> None:
        """Forget a version."""
        del self._versions[client][round]

    def clients(self) -> Iterator[ClientId]:
        """Everybody with a version."""
        return iter(sorted(self._versions))


class OnDisk:
    """Versions as files; a client that was never written costs nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def rounds(self, client: ClientId) -> list[int]:
        """Rounds this client has versions of, ascending."""
        folder = self._folder(client)
        return sorted(int(path.stem) for path in folder.glob("*.safetensors")) if folder.is_dir() else []

    def read(self, client: ClientId, round: int) -> Memory:
        """One version."""
        return decode(Memory, self._file(client, round).read_bytes())

    def write(self, client: ClientId, round: int, memory: Memory) -> None:
        """Keep a version: whole or not at all."""
        write_bytes(self._file(client, round), encode(memory))

    def drop(self, client: ClientId, round: int) -> None:
        """Forget a version; another process may have been quicker."""
        self._file(client, round).unlink(missing_ok=True)

    def clients(self) -> Iterator[ClientId]:
        """Everybody with a folder."""
        if self.root.is_dir():
            yield from sorted(int(path.name) for path in self.root.iterdir() if path.is_dir())

    def _folder(self, client: ClientId) -> Path:
        return self.root / f"{client:07d}"

    def _file(self, client: ClientId, round: int) -> Path:
        return self._folder(client) / f"{round:06d}.safetensors"


class Store:
    """All clients' memories on one shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.safe: tuple[int, ...] = (0,)
        """Rounds whose checkpoints are on disk: any of them may be asked for again."""
        self._settled: int | None = None
        """Nobody but those of `_recent` has a version after this round; None: the shelf was not looked through yet."""
        self._recent: dict[ClientId, int] = {}
        """Who was written to since then, and in which round last."""

    def open(self, client: ClientId) -> "PendingState":
        """The client's memory as a task sees it now; what it writes is pending."""
        rounds = self.shelf.rounds(client)
        return PendingState(self.shelf.read(client, rounds[-1]) if rounds else Memory())

    def keep(self, client: ClientId, round: int, state: "PendingState") -> None:
        """The reply counted in `round` (from 1): what was written becomes that version."""
        if state.written:
            self._recent[client] = round
            self.shelf.write(client, round, Memory({**state.memory.entries, **state.written}))
            self._prune(client, round)

    def commit(self, *rounds: int) -> None:
        """The checkpoints on disk are those of `rounds`."""
        self.safe = rounds
        newest = max(rounds, default=0)
        if self._settled is not None and newest > self._settled:
            self._settled = newest
            self._recent = {client: version for client, version in self._recent.items() if version > newest}

    def rewind(self, round: int, search: bool = True) -> None:
        """Forget every version after `round`: a round is tried again, or a run resumes from its checkpoint.

        The first time everybody's versions are looked at, later only those of clients written to in the meantime.

        Args:
            round: to which.
            search: False: where everybody's are to be looked at, another process with the same shelf does it.
        """
        known = self._settled is not None and round >= self._settled
        everybody = self.shelf.clients() if search else ()
        for client in sorted(self._recent) if known else everybody:
            for version in self.shelf.rounds(client):
                if version > round:
                    self.shelf.drop(client, version)
        self._settled, self._recent = round, {}

    def _prune(self, client: ClientId, round: int) -> None:
        """Drop what no crash and no repeated round can ask for again."""
        versions = self.shelf.rounds(client)
        wanted = {round}
        for bound in (*self.safe, round - 1):
            wanted.update([v for v in versions if v <= bound][-1:])
        for version in versions:
            if version not in wanted:
                self.shelf.drop(client, version)


class PendingState:
    """One client's memory inside one task: reads see the task's own writes; nothing is kept until it counts."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.written: dict[str, Entry] = {}

    @overload
    def get(self, name: str, *, like: Tensor) -> Tensor: ...
    @overload
    def get(self, name: str) -> Any: ...
    def get(self, name: str, *, like: Tensor | None = None) -> Any:
        """The value; zeros shaped `like` that, or None, when there is none yet."""
        value = self.written.get(name, self.memory.entries.get(name))
        if value is None and like is not None:
            return like.new_zeros(like.shape)
        return value

    def names(self, prefix: str = "") -> list[str]:
        """Names of all entries that begin so, sorted."""
        return sorted(name for name in {**self.memory.entries, **self.written} if name.startswith(prefix))

    def __setitem__(self, name: str, value: Entry) -> None:
        """Write an entry; it counts with the reply.

        Raises:
            TypeError: something that cannot be kept.
        """
        if not isinstance(value, Tensor) and type(value) not in (float, int, str):
            raise TypeError(
                f"client state {name!r}: a {type(value).__name__} cannot be kept; use tensors, numbers, text"
            )
        self.written[name] = (
            value.detach().clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
        )
