"""Whether a reply can be combined at all: what a server checks of every client's tensors before it counts them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedloom.contracts import ClientId, Fits


def vectors(sizes: Mapping[str, int]) -> Fits:
    """Each of these fields is one vector of so many numbers."""

    def fits(client: ClientId, up: Any) -> str | None:
        for name, size in sizes.items():
            why = misfit(name, getattr(up, name), (size,))
            if why is not None:
                return why
        return None

    return fits


def misfit(name: str, value: Tensor, wanted: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor's shape or format; None: nothing."""
    if tuple(value.shape) != wanted:
        return f"{name} is of shape {tuple(value.shape)}, its adapter calls for {wanted}"
    return None if value.is_floating_point() else f"{name} holds {value.dtype}, not floating-point numbers"
