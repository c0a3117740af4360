"""All clients in this process: messages are handed over as they are."""

from collections.abc import Iterator, Sequence

from fedloom.contracts import ClientId
from fedloom.runtime.link import Near
from fedloom.runtime.site import Dispatch, Reply, Site


class InProcess(Near):
    """The link of a simulation: a site called directly."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Run them here."""
        return self.site.run(dispatches)

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        """Tell the site."""
        self.site.settle(client, round, counted)

    def commit(self, *rounds: int) -> None:
        """Tell the site."""
        self.site.commit(*rounds)

    def rewind(self, round: int) -> None:
        """Tell the site."""
        self.site.rewind(round)

    def close(self) -> None:
        """Nothing is held."""
