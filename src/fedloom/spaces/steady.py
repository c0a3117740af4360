"""What spaces have in common that do the same in every round."""

from collections.abc import Sequence

from fedloom.contracts import Term
from fedloom.params import Layout, Params


class Steady:
    """No turns: one phase, in which every leaf is trained, sent and averaged."""

    @property
    def phases(self) -> int:
        """One."""
        return 1

    def phase(self, round: int) -> int:
        """Always the first."""
        return 0

    def active(self, phase: int, layout: Layout) -> Sequence[str] | None:
        """All leaves."""
        return None

    def form(self, term: Term, phase: int) -> Term:
        """What is sent holds products already."""
        return term


def alike(shared: Params, ours: Layout, layout: Layout) -> Params:
    """The shared vector, for a client that has the shared layout.

    Raises:
        ValueError: the client's vectors are of another length, as with another rank.
    """
    if layout.size != ours.size:
        raise ValueError(
            f"a client's vector holds {layout.size} numbers, the shared one {ours.size}; this way of averaging needs "
            "one rank for all: give every client the same, or average products (flexlora, flora, raflora, hetlora)"
        )
    return shared
