"""What pages have in common whose clients send numbers along directions that everybody draws alike."""

from dataclasses import dataclass
from typing import Literal

from fedloom import noise
from fedloom.contracts import ClientId, Federation
from fedloom.params import Layout


def origin(layout: Layout) -> str:
    """What two machines must agree on to mean the same by a number along a direction: how they draw random numbers, and
    which tensors these are for.
    """
    return f"noise {noise.fingerprint()}, tensors {layout.fingerprint}"


def stranger(said: str, client: ClientId, fed: Federation, layout: Layout) -> str | None:
    """Why a client's numbers mean something else here, or None.

    Args:
        said: the client's `origin`.
        client: who said it.
        fed: knows which tensors it was meant to train.
        layout: the shared one.
    """
    wanted, theirs = origin(layout), fed.profile(client).layout
    if theirs != layout:
        return (
            f"its adapter has other tensors ({theirs.fingerprint}) than the shared model ({layout.fingerprint}), so no "
            "direction is the same in both; give all clients the same ranks"
        )
    if said == wanted:
        return None
    return (
        f"it says {said[:80]}, expected is {wanted}: its directions are others than ours; it needs the same version "
        "of fedloom and the same adapter"
    )


@dataclass
class Held:
    """The first value."""

    value: str | None = None


@dataclass(frozen=True)
class Agreed:
    """A text that is the same in every reply that fits."""

    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Held:
        """Nothing yet."""
        return Held()

    def add(self, acc: Held, value: str, weight: float | None) -> Held:
        """One more, the same."""
        return acc if acc.value is not None else Held(value)

    def merge(self, left: Held, right: Held) -> Held:
        """Either."""
        return right if left.value is None else left

    def finish(self, acc: Held) -> str:
        """What all said."""
        assert acc.value is not None
        return acc.value
