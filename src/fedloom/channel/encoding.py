"""Replies in fewer bits: the stage of `channel.encoding`.

Every floating-point tensor of more than one number in a reply is packed into bytes (`packing`); whole numbers, single
numbers and text travel as they are.

**What is coded.** Pages send what clients have (y) or how it changed, as their papers do. An encoding's error grows
with what it encodes, and y is much larger than the way y went from x: coded as it is, y in int8 may lose more than a
round of training moves it. So each tensor is coded either as it is or as its difference to a tensor of the same shape
and format in the message it answers, whichever loses less (as image formats choose a predictor line by line); one byte
says which. Both ends know that message. Nothing has to be declared: y finds x, a change finds nothing closer than
zero. What has no tensor of its shape on the way down is coded as it is: part of a vector (turns, refactored, sparse,
fedper) and products of factors (products, slices, stacked).

**Error feedback** (int8; Seide et al. 2014, 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
Distributed Training of Speech DNNs, Interspeech; Karimireddy et al. 2019, Error Feedback Fixes SignSGD,
https://arxiv.org/abs/1901.09847, algorithm 2). With v what a client means to send, e what was lost before: it sends
Q(v + e) and keeps e' = v + e - Q(v + e), so that what arrives over many rounds adds up to what was meant, but for the
last e. e is part of the client's memory and so of its transaction: a reply that did not count leaves it as it was. It
makes sense only where a field means the same numbers in every round, which the recipe's method decides (`feedback`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from fedloom.channel.check import numbers
from fedloom.channel.codec import CodecError
from fedloom.channel.config import ChannelConfig
from fedloom.channel.packing import Overflow, pack, scales, unpack, wide
from fedloom.contracts import Client, ClientFailed, Rule, Stage

MEMORY: Final = "channel "
"""What names in a client's memory begin with; the path of the field follows."""
_CODED: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TRIED: Final = 8
"""Tensors of the message down that are tried as a reference, at most."""


def stages(config: ChannelConfig, feedback: bool) -> tuple[Stage, ...]:
    """The stages of a recipe's section `channel`.

    Args:
        config: the section.
        feedback: a client's reply holds the same numbers in every round, so what was lost may be added to the next.
    """
    if config.encoding == "fp32":
        return ()
    return (Encoding(config.encoding, feedback and config.encoding == "int8"),)


@dataclass(frozen=True)
class Encoding:
    """Packs the tensors of replies on the client and unpacks them on the server."""

    kind: Literal["fp16", "int8"]
    feedback: bool = False
    """Add what was lost to the next reply's value of the same field."""
    hides: bool = False

    async def outgoing(self, up: Any, client: Client, down: Any) -> Any:
        """The reply with bytes in place of tensors.

        Raises:
            ClientFailed: a number is not finite, or too large for the encoding.
        """
        known = tensors(down)
        return rebuilt(up, lambda path, tensor: self._packed(path, tensor, known, client))

    def incoming(self, up: Any, down: Any) -> Any:
        """The reply with its tensors again, in the formats they had.

        Raises:
            CodecError: the reply is not what `outgoing` makes.
        """
        known = tensors(down)
        return rebuilt(up, lambda path, tensor: self._unpacked(path, tensor, known))

    def combine(self, rule: Rule) -> Rule:
        """The rule itself: it sees values."""
        return rule

    def _packed(self, path: str, tensor: Tensor, known: list[Tensor], client: Client) -> Tensor:
        if tensor.dtype == torch.uint8:  # so that every uint8 tensor on the way is packed, and none is mistaken for it
            return pack(tensor, "uint8", tensor.dtype)
        if not coded(tensor):
            return tensor
        if not bool(torch.isfinite(tensor).all()):
            raise ClientFailed(f"{path} holds a number that is not finite", "nonfinite")
        format = wide(tensor.dtype)
        values, name = tensor.detach().to(format), f"{MEMORY}{path}"
        if self.feedback:
            lost = client.state.get(name)
            if isinstance(lost, Tensor) and lost.shape == values.shape and lost.dtype == format:
                values = values + lost
        place, values = self._closest(values, references(tensor, known))
        try:
            data = pack(values, self.kind, tensor.dtype, place)
        except Overflow as error:
            raise ClientFailed(f"{path} cannot be sent as {self.kind}: {error}. Use channel.encoding=fp32") from None
        if self.feedback:
            client.state[name] = values - unpack(data).values
        return data

    def _closest(self, values: Tensor, known: list[Tensor]) -> tuple[int, Tensor]:
        """(0, the values) or (k, their difference to the k-th tensor), whichever is encoded with the least error."""
        best, found = self._loss(values), (0, values)
        for place, reference in enumerate(known, start=1):
            difference = values - reference.to(values.dtype)
            loss = self._loss(difference)
            if loss < best:
                best, found = loss, (place, difference)
        return found

    def _loss(self, values: Tensor) -> float:
        """In proportion to the squared error to expect."""
        sizes = scales(values.reshape(-1)) if self.kind == "int8" else values
        return float(torch.linalg.vector_norm(sizes, dtype=torch.float64))

    def _unpacked(self, path: str, tensor: Tensor, known: list[Tensor]) -> Tensor:
        if tensor.dtype != torch.uint8:
            if coded(tensor):
                raise CodecError(f"{path} came as {tensor.dtype}, but replies are encoded as {self.kind}")
            return tensor
        try:
            packed = unpack(tensor)
        except CodecError as error:
            raise CodecError(f"{path}: {error}") from None
        if packed.kind == "uint8":
            return packed.values
        blank = torch.empty((), dtype=packed.format).expand(packed.values.shape)
        if packed.kind != self.kind or not coded(blank):
            raise CodecError(f"{path} came as {packed.kind} of shape {tuple(blank.shape)}; {self.kind} was expected")
        if not packed.reference:
            return packed.values.to(packed.format)
        found = references(blank, known)
        if packed.reference > len(found):
            raise CodecError(f"{path} is a difference to tensor {packed.reference} of its shape, of {len(found)} sent")
        return (packed.values + found[packed.reference - 1].to(packed.values.dtype)).to(packed.format)


def coded(tensor: Tensor) -> bool:
    """Whether a tensor is packed: floating-point numbers, more than one."""
    return tensor.dtype in _CODED and tensor.numel() > 1


def references(tensor: Tensor, known: list[Tensor]) -> list[Tensor]:
    """Those of a tensor's shape and format, the first few."""
    return [one for one in known if one.shape == tensor.shape and one.dtype == tensor.dtype][:_TRIED]


def tensors(message: Any) -> list[Tensor]:
    """All tensors of a message, in its order."""
    return [value for _, value in numbers(message) if isinstance(value, Tensor)]


def rebuilt(value: Any, change: Callable[[str, Tensor], Tensor], path: str = "") -> Any:
    """The same value with every tensor changed; paths are those of `check.numbers`."""
    if isinstance(value, Tensor):
        return change(path, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        parts = {name: rebuilt(getattr(value, name), change, f"{path}.{name}" if path else name) for name in names}
        return dataclasses.replace(value, **parts)
    if isinstance(value, Mapping):
        return {name: rebuilt(item, change, f"{path}[{name}]") for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [rebuilt(item, change, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value
