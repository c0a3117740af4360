"""A client's memory on its own machine, in versions numbered by the dispatches that wrote them."""

from collections.abc import Mapping, Sequence

from fedloom.contracts import ClientId
from fedloom.runtime.store import Memory, OnDisk, PendingState


class Versions:
    """A client's memory by the number of the dispatch that wrote it; the store of a site."""

    def __init__(self, shelves: Mapping[ClientId, OnDisk]) -> None:
        self.shelves = dict(shelves)
        self._held: dict[ClientId, int] = {}
        self.wrote: dict[ClientId, bool] = {}

    def hold(self, client: ClientId, version: int, keep: Sequence[int]) -> None:
        """Let `version` be the memory; versions beyond it and `keep` go.

        Raises:
            LookupError: it is not here.
        """
        shelf = self.shelves[client]
        found = shelf.rounds(client)
        if version and version not in found:
            raise LookupError(f"version {version:x} of this client's memory")
        for old in found:
            if old != version and old not in keep:
                shelf.drop(client, old)
        self._held[client] = version

    def has(self, client: ClientId, version: int) -> bool:
        """Whether that version is here."""
        return version in self.shelves[client].rounds(client)

    def open(self, client: ClientId) -> PendingState:
        """The memory as a task sees it."""
        version = self._held[client]
        return PendingState(self.shelves[client].read(client, version) if version else Memory())

    def keep(self, client: ClientId, round: int, state: PendingState) -> None:
        """What was written becomes version `round`."""
        self.wrote[client] = bool(state.written)
        if state.written:
            self.shelves[client].write(client, round, Memory({**state.memory.entries, **state.written}))

    def commit(self, *rounds: int) -> None:
        """The server says what to keep with every task."""

    def rewind(self, round: int, search: bool = True) -> None:
        """The server says which version counts with every task."""
