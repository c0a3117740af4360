"""Whether a reply can be combined at all: what a server checks of every client's tensors before it counts them."""

from typing import Any

import torch
from torch import Tensor

from fedloom.contracts import ClientId, Fits


def vectors(**like: Tensor) -> Fits:
    """Each of these fields has the shape and format of the tensor given for it."""

    def fits(client: ClientId, up: Any) -> str | None:
        for name, wanted in like.items():
            why = misfit(name, getattr(up, name), tuple(wanted.shape), wanted.dtype)
            if why is not None:
                return why
        return None

    return fits


def misfit(name: str, value: Tensor, wanted: tuple[int, ...], format: torch.dtype) -> str | None:
    """What is wrong with a tensor's shape or format; None: nothing. A mean has the format of what is averaged."""
    if tuple(value.shape) != wanted:
        return f"{name} is of shape {tuple(value.shape)}, its adapter calls for {wanted}"
    return None if value.dtype == format else f"{name} holds {value.dtype}, its adapter calls for {format}"
