"""The way from a federation to its clients, wherever they are."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from fedloom.contracts import ClientId, Missing
from fedloom.runtime.folding import Fold
from fedloom.runtime.site import Dispatch, Reply


class Link(Protocol):
    """The way to the clients."""

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Send each, yield replies as they come."""

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        """Tell a client whether its last reply counted, in `round` (from 1)."""

    def commit(self, *rounds: int) -> None:
        """Tell the clients of which rounds there are checkpoints on disk."""

    def rewind(self, round: int) -> None:
        """Tell the clients to forget what they wrote after `round`."""

    def memories(self) -> Mapping[ClientId, int]:
        """Which of its versions is each client's memory, where the server decides that; for the checkpoint."""

    def recall(self, memories: Mapping[ClientId, int]) -> None:
        """What `memories` gave counts again."""

    def away(self) -> Collection[ClientId]:
        """Who cannot be asked now."""

    def close(self) -> None:
        """Let go of processes and connections."""


class Near:
    """Links to clients on this machine: all are here, and the round says which version of their memory counts."""

    def memories(self) -> Mapping[ClientId, int]:
        """Nothing the server decides."""
        return {}

    def recall(self, memories: Mapping[ClientId, int]) -> None:
        """Nothing to put back."""

    def away(self) -> tuple[()]:
        """Everybody is here."""
        return ()


class Reducer(Protocol):
    """A link over several processes that adds replies up where they come, and exchanges sums only."""

    def reduce(
        self, dispatches: Sequence[Dispatch], fold: Fold, add: Callable[[Reply], Missing | None]
    ) -> Iterator[tuple[Reply, Missing | None]]:
        """Send each; yield replies without their messages and whether they count, in the order of the dispatches.

        `add` puts a reply into the fold, or says why not; after the last verdict the fold holds everybody's replies.
        """
