"""Many clients' adapters in one forward pass: whose tokens stand where in a stream, and what each adapter adds there.

The engine lays the texts of several clients one behind the other and says with `Moment.segments` which tokens are
whose. An adapter kind takes part by answering two questions (`Together`): what a client's row of numbers means, and
what an adapted layer computes while segments are set. LoRA's answer stands here: every product of a client's factors
is computed from that client's tokens alone, with the same shapes whoever else is in the stream, so that neighbours
cannot change a bit of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom import masks, rng
from fedloom.adapters.dropout import Moment, draw
from fedloom.contracts import Carry
from fedloom.params import Layout


@dataclass(eq=False)
class Piece:
    """What one client's row means for one adapted layer; every tensor is a view of the row."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r]"""
    scale: float
    grad_a: Tensor | None
    """None: A is frozen, or nothing is trained."""
    grad_b: Tensor | None
    values: Tensor | None = None
    """[k] of a sparse update."""
    grad_values: Tensor | None = None
    carry: tuple[Tensor, Tensor] | None = None
    """L [out, k], R [k, in] of a carried product."""


@dataclass(eq=False)
class Segment:
    """One client's part of a stream."""

    start: int
    stop: int
    pieces: Sequence[Piece]
    """By adapted layer."""
    seed: int | None = None
    """Key of dropout for this pass; None: no dropout."""
    sparse: bool = False
    """Whether the sparse update counts: it costs as much as a dense layer."""


class Together(Protocol):
    """What an adapter kind offers so that clients can share a forward pass."""

    def pieces(self, w: Tensor, g: Tensor | None, layout: Layout) -> list[Piece]:
        """What a row w [P] and its gradients g [P] (None: only evaluated) mean, as views of both."""

    def carry(self, pieces: Sequence[Piece], carry: Carry) -> None:
        """Set what the client carries on top of the base, or nothing.

        Raises:
            ValueError: it does not fit the layers.
        """

    def heads(self, w: Tensor, g: Tensor | None, layout: Layout) -> dict[str, Tensor]:
        """What a row says of the model's classification head: its parameters by their names in the head, as views of w.

        For `torch.func.functional_call(classifier.head, heads, pooled)`. With g they want gradients, which a backward
        pass adds to views of g.

        Returns:
            Nothing, where the model has no head.
        """


class NotTogether(RuntimeError):
    """This model cannot be run for several clients at once."""


@dataclass(eq=False)
class Place:
    """One adapted layer, as the shared pass needs it."""

    name: str
    number: int
    """Its place in `Segment.pieces`."""
    base: nn.Module
    dropout: float
    places: Tensor | None
    """[k] where a sparse update stands in the flattened [out, in] matrix."""
    anchor: Tensor
    """A scalar that wants a gradient: makes autograd ask for the layer's backward even where its input wants none."""

    def __call__(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """[..., in] -> [..., out]: the frozen layer for all, each client's adapter for its own tokens.

        Raises:
            NotTogether: the layer does not see the stream token by token (routed experts).
        """
        flat = x.reshape(-1, x.shape[-1])
        if not segments or flat.shape[0] < segments[-1].stop:
            raise NotTogether(
                f"{self.name} sees {flat.shape[0]} rows where {segments[-1].stop if segments else 0} tokens stand"
            )
        weight = _matrix(self.base)
        if weight is None:  # a layer of another make: its own forward and backward, the adapters beside it
            y = self.base(x)
            added: Tensor = _Adapted.apply(flat, self.anchor, None, None, self, segments)  # type: ignore[no-untyped-call]
            return y + added.view(y.shape).to(y.dtype)
        y = _Adapted.apply(flat, self.anchor, weight, self.base.bias, self, segments)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])


def switched(layer: nn.Module, moment: Moment, place: Place) -> Callable[..., Tensor]:
    """The layer's forward: its own while nobody shares, the segments' while some do."""
    own = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        segments = moment.segments
        if segments is None:
            return own(x, *args, **kwargs)
        return place(x, segments)

    return forward


class _Adapted(torch.autograd.Function):
    """y = x W' + b for all tokens, and for each segment + scale (x A') B' + carried and sparse products.

    Saves x and x A' only. Gradients of the factors are added to the rows directly; what is returned is that of x. The
    thin products are computed in the rows' format on a CPU, whose libraries prepare every new size in bfloat16 for
    longer than such a product takes, and in that of x on a GPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        place: Place,
        segments: Sequence[Segment],
    ) -> Tensor:
        outputs = segments[0].pieces[place.number].b.shape[0]
        y = x.new_zeros(x.shape[0], outputs) if weight is None else functional.linear(x, weight, bias)
        lows, masks_ = list[Tensor](), list[Tensor]()
        thin = _thin(x, segments[0].pieces[place.number])
        for segment in segments:
            piece, mine = segment.pieces[place.number], _rows(thin, segment)
            if _dropped(place, segment):
                masks_.append(_mask(place, segment, mine))
            low = (mine * masks_[-1] if _dropped(place, segment) else mine) @ piece.a.to(thin.dtype).t()
            part = y[segment.start : segment.stop]
            _add_product(part, low, piece.b.to(thin.dtype).t(), _factor(piece, place, segment))
            for left, right in _products(piece, place, segment, thin.dtype):
                part += (mine @ right.t()) @ left.t() if right is not None else mine @ left.t()
            lows.append(low)
        ctx.save_for_backward(x, *lows, *masks_)
        ctx.weight, ctx.place, ctx.segments = weight, place, segments
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *kept = ctx.saved_tensors
        weight, place, segments = ctx.weight, ctx.place, ctx.segments
        lows, masks_ = kept[: len(segments)], iter(kept[len(segments) :])
        grad = grads[0].contiguous()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x) if weight is None else grad @ weight
        first = segments[0].pieces[place.number]
        thin_x, thin_grad = _thin(x, first), _thin(grad, first)
        for segment, low in zip(segments, lows, strict=True):
            piece, mine, own = segment.pieces[place.number], _rows(thin_x, segment), _rows(thin_grad, segment)
            mask = next(masks_) if _dropped(place, segment) else None
            factor = _factor(piece, place, segment)
            if piece.grad_b is not None:
                _add_product(piece.grad_b, own.t(), low, factor)
            if piece.grad_values is not None and segment.sparse:
                piece.grad_values += (own.t() @ mine).reshape(-1)[place.places]
            down = own @ piece.b.to(own.dtype)
            if piece.grad_a is not None:
                _add_product(piece.grad_a, down.t(), mine if mask is None else mine * mask, factor)
            if dx is None:
                continue
            part = dx[segment.start : segment.stop]
            if mask is None:
                _add_product(part, down, piece.a.to(own.dtype), factor)
            else:
                part.add_((down @ piece.a.to(own.dtype)) * mask, alpha=factor)
            for left, right in _products(piece, place, segment, own.dtype):
                part += (own @ left) @ right if right is not None else own @ left
        return dx, None, None, None, None, None


def _thin(x: Tensor, piece: Piece) -> Tensor:
    """The tokens in the format thin products are computed in."""
    return x if x.is_cuda else x.to(piece.b.dtype)


def _mask(place: Place, segment: Segment, x: Tensor) -> Tensor:
    """[tokens, in] bool: what dropout keeps, the same numbers as `KeyedDropout` draws."""
    assert segment.seed is not None
    kept = draw(rng.key(segment.seed, place.name), x.shape[0], x.shape[1], place.dropout)
    return torch.from_numpy(kept).to(x.device)


def _rows(x: Tensor, segment: Segment) -> Tensor:
    """The segment's rows, beginning at a whole cache line: where they do not, kernels may differ in the last bit."""
    mine = x[segment.start : segment.stop]
    return mine if mine.data_ptr() % 64 == 0 else mine.clone()


def _dropped(place: Place, segment: Segment) -> bool:
    return segment.seed is not None and place.dropout > 0


def _factor(piece: Piece, place: Place, segment: Segment) -> float:
    """What B A x is multiplied with; what dropout leaves is scaled up here, in one number."""
    return piece.scale / (1 - place.dropout) if _dropped(place, segment) else piece.scale


def _products(piece: Piece, place: Place, segment: Segment, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
    """Frozen products (L, R) and dense updates (D, None) that are added beside the factors."""
    found: list[tuple[Tensor, Tensor | None]] = []
    if piece.carry is not None:
        found.append((piece.carry[0].to(dtype), piece.carry[1].to(dtype)))
    if segment.sparse and piece.values is not None and place.places is not None:
        dense = masks.dense(piece.values, place.places, piece.b.shape[0], piece.a.shape[1])
        found.append((dense.to(dtype), None))
    return found


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Total += scale left right, in total's own format."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


def _matrix(base: nn.Module) -> Tensor | None:
    """The layer's weight as [out, in] (a view), where it is an ordinary linear layer."""
    if type(base) is nn.Linear:
        return base.weight
    weight = base.weight
    return weight.t() if type(base).__name__ == "Conv1D" and isinstance(weight, Tensor) else None


def fitted(carry: Carry, shapes: Sequence[tuple[int, int]], like: Tensor) -> list[tuple[Tensor, Tensor] | None]:
    """The carried product of each layer in the format and on the device of `like`; None where there is none.

    Args:
        carry: L [out, k] and R [k, in] of each layer, or nothing at all.
        shapes: (out, in) of each layer.
        like: any tensor of the model's numbers.

    Raises:
        ValueError: the number of factors or a shape does not fit.
    """
    if not carry:
        return [None] * len(shapes)
    if len(carry) != 2 * len(shapes):
        raise ValueError(f"a carry of {len(carry)} factors does not fit {len(shapes)} adapted modules")
    return [_pair(carry[2 * i], carry[2 * i + 1], shape, like) for i, shape in enumerate(shapes)]


def _pair(left: Tensor, right: Tensor, shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor] | None:
    both = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]
    if not both or (left.shape[0], right.shape[1]) != shape:
        raise ValueError(
            f"a carried product of {tuple(left.shape)} and {tuple(right.shape)} does not fit a module of "
            f"{shape[0]} x {shape[1]}"
        )
    return (left.to(like).contiguous(), right.to(like).contiguous()) if left.shape[1] else None
