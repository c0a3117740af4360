"""What an aggregation function is given and what it gives back: one layer, numpy arrays only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Client:
    """The adapter one client holds after local training; it adds scale · b @ a to the layer's [out, in] weight."""

    a: Array
    """[rank, in]"""
    b: Array
    """[out, rank]"""
    rank: int
    alpha: float
    scale: float
    """alpha / rank, or alpha / sqrt(rank) with rank-stabilised scaling."""
    weight: float
    """Number of examples; not normalised."""


@dataclass(frozen=True)
class Base:
    """The frozen weight under the adapters. A correct function may ignore its numbers, never how it is stored."""

    weight: Array
    """[out, in] for a linear layer; [in, out] where `transposed`."""
    transposed: bool
    """True for GPT-2's Conv1D."""


@dataclass(frozen=True)
class Factors:
    """A new shared adapter: the layer becomes base + residual + scale · b @ a."""

    a: Array
    """[k, in]; any k."""
    b: Array
    """[out, k]"""
    scale: float
    residual: Array | None = None
    """What is added to the base besides, stored as the base is: [out, in], or [in, out] where `transposed`."""


@dataclass(frozen=True)
class Update:
    """A change of the base: the layer becomes base + delta. A rule that makes a new weight gives the difference."""

    delta: Array
    """Stored as the base is: [out, in], or [in, out] where `transposed`."""


Answer: TypeAlias = Factors | Update
Aggregate: TypeAlias = Callable[[Sequence[Client], Base], Answer]
"""Raises NotImplementedError for what it cannot do; such a cell counts as refused, not as failed."""


class MalformedError(Exception):
    """An answer that cannot be compared.

    Args:
        words: what is wrong with it.
        turned: [in, out], the update, if the answer has the right shape but for a transposition.
        looks: what it looks like, if that is plain already.
    """

    def __init__(self, words: str, turned: Array | None = None, looks: tuple[str, ...] = ()) -> None:
        super().__init__(words)
        self.turned, self.looks = turned, looks


RESIDUAL_TURNED = "the residual is transposed"


def effective(answer: Any, base: Base) -> Array:
    """What an answer adds to the layer, [out, in] float64, whichever way the base is stored.

    Raises:
        MalformedError: it is no answer, or its shapes do not fit.
    """
    outputs, inputs = base.weight.shape[::-1] if base.transposed else base.weight.shape
    if isinstance(answer, Update):
        delta = _matrix(answer.delta, "delta")
        if delta.shape == base.weight.shape:
            return _upright(delta, base)
        words = f"delta is {delta.shape}, the base weight is stored {base.weight.shape}"
        raise MalformedError(words, _upright(delta, base) if delta.shape == base.weight.shape[::-1] else None)
    if not isinstance(answer, Factors):
        raise MalformedError(f"the answer is {_kind(answer)}; it must be fedloom.conformance.Factors or Update")
    a, b = _matrix(answer.a, "a"), _matrix(answer.b, "b")
    try:
        product = float(answer.scale) * (b @ a)
    except (TypeError, ValueError) as error:
        raise MalformedError(
            f"b {b.shape} and a {a.shape} times scale {answer.scale!r}: no product; b must be [{outputs}, k], "
            f"a [k, {inputs}], scale a number"
        ) from error
    if product.shape != (outputs, inputs):
        words = f"b @ a is {product.shape}, the layer is [out, in] = {(outputs, inputs)}"
        turned = product if product.shape == (inputs, outputs) and answer.residual is None else None
        raise MalformedError(words, turned)
    if answer.residual is None:
        return product
    residual = _matrix(answer.residual, "residual")
    if residual.shape == base.weight.shape:
        return product + _upright(residual, base)
    looks = (RESIDUAL_TURNED,) if residual.shape == base.weight.shape[::-1] else ()
    raise MalformedError(f"residual is {residual.shape}, the base weight is stored {base.weight.shape}", looks=looks)


def _upright(stored: Array, base: Base) -> Array:
    return stored.T if base.transposed else stored


def _matrix(value: Any, name: str) -> Array:
    if np.iscomplexobj(value):
        raise MalformedError(f"{name} holds complex numbers")
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MalformedError(f"{name} is {_kind(value)}, not an array of real numbers") from error
    if array.ndim != 2:
        raise MalformedError(f"{name} has shape {array.shape}; it must be a matrix")
    return array


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__module__}.{type(value).__qualname__}"
