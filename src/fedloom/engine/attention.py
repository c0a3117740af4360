"""Attention inside each text of a stream, through transformers' own interface, so that no model needs code of ours.

A model asks `ALL_ATTENTION_FUNCTIONS` for the function its configuration names. While clients share a pass that name is
NAME: the texts lie one behind the other without filling, no mask is built, and every text is attended to by itself,
with the same shapes whoever else is in the stream.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "fedloom_texts"
DENSE = torch.contiguous_format
Way = Literal["plain", "fused", "packed"]
"""plain: products and softmax written out, best for short texts on a CPU. fused: torch's kernel, one text at a time.
packed: one flash kernel for all texts, on CUDA in half precision."""
EVERYWHERE = -1
"""In place of a window: tokens look at all others of their text, later ones too."""
Span = tuple[int, int]
"""First token of a text and the one behind its last."""


class Unsuited(RuntimeError):
    """This attention cannot be computed text by text."""


class _Stream:
    """The texts of the pass at hand; set by `texts`, read by the function transformers calls."""

    spans: Sequence[Span] = ()
    way: Way = "fused"
    ends: Tensor | None = None
    """Where texts end, for the packed kernel."""
    biases: dict[tuple[Any, ...], Tensor] = {}
    """What keeps later tokens out, by size: the same for all layers of a pass."""


@contextmanager
def texts(config: Any, spans: Sequence[Span], way: Way) -> Iterator[None]:
    """Within, a model of this configuration attends text by text.

    Args:
        config: the model's, whose attention is named anew and put back.
        spans: the texts of the stream.
        way: how each text is attended to.
    """
    _register()
    before = config._attn_implementation
    kept = _Stream.spans, _Stream.way, _Stream.biases, _Stream.ends
    config._attn_implementation = NAME
    _Stream.spans, _Stream.way, _Stream.biases, _Stream.ends = spans, way, {}, None
    try:
        yield
    finally:
        config._attn_implementation = before
        _Stream.spans, _Stream.way, _Stream.biases, _Stream.ends = kept


def by_text(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention inside each span: to earlier tokens, or to all of them where the layer is an encoder's.

    Args:
        module: the layer that asks.
        query: [1, heads, tokens, width].
        key: [1, key heads, tokens, width].
        value: [1, key heads, tokens, width].
        attention_mask: none is built under this name.
        scaling: of the products; default 1 / sqrt(width).
        dropout: 0, the base has none.
        more: `sliding_window` and `softcap` are heeded.

    Returns:
        [1, tokens, heads, width], and no weights.

    Raises:
        Unsuited: a batch of several rows, a mask, or an encoder's window.
    """
    spans = _Stream.spans
    tokens = query.shape[2]
    if query.shape[0] != 1 or key.shape[2] != tokens or not spans or spans[-1][1] != tokens:
        raise Unsuited(f"queries of {tuple(query.shape)} and keys of {tuple(key.shape)} are no stream of texts")
    if attention_mask is not None or dropout or more.get("s_aux") is not None:
        raise Unsuited("a mask, dropout or sinks")
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    window, softcap = more.get("sliding_window"), more.get("softcap")
    told = more.get("is_causal")
    if not (told if told is not None else getattr(module, "is_causal", True)):
        if window is not None or softcap is not None:
            raise Unsuited("an encoder's window or cap")
        window = EVERYWHERE
    if softcap is not None:
        return _capped(query, key, value, spans, scale, window, softcap), None
    if _Stream.way == "packed":
        return _packed(query, key, value, spans, scale, window), None
    if _Stream.way == "plain":
        exact = torch.promote_types(query.dtype, torch.float32)  # small products: float32 is faster than bfloat16 here
        q, k, v = (t[0].to(exact, memory_format=torch.contiguous_format).contiguous() for t in (query, key, value))
        out: Tensor = _Plain.apply(q, k, v, spans, scale, window)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1)[None].to(query.dtype), None
    return _fused(query, key, value, spans, scale, window), None


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, by_text)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float, window: int | None
) -> Tensor:
    """By torch's fused kernel: memory grows with the texts' lengths, not with their squares."""
    grouped, found = query.shape[1] != key.shape[1], []
    for start, stop in spans:
        q, k, v = (t[:, :, start:stop].contiguous() for t in (query, key, value))
        banded = window is not None and 0 <= window < stop - start
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=_seen(stop - start, window, q.device) if banded else None,
            is_causal=not banded and window != EVERYWHERE,
            scale=scale, enable_gqa=grouped,
        )  # fmt: skip
        found.append(out.transpose(1, 2))
    return torch.cat(found, dim=1)


def _packed(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float, window: int | None
) -> Tensor:
    """By one flash kernel for all texts; `num_splits=1` keeps each text's order of sums whoever is beside it."""
    from torch.nn.attention.varlen import varlen_attn

    if _Stream.ends is None:
        _Stream.ends = torch.tensor([0, *(stop for _, stop in spans)], dtype=torch.int32, device=query.device)
    longest = max(stop - start for start, stop in spans)
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    out = varlen_attn(
        q, k, v, _Stream.ends, _Stream.ends, longest, longest, scale=scale, num_splits=1,
        window_size=(-1, -1) if window == EVERYWHERE else (-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out[None]


def _capped(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float, window: int | None, cap: float
) -> Tensor:
    """With products kept below a cap by tanh (Gemma 2)."""
    repeat, found = query.shape[1] // key.shape[1], []
    for start, stop in spans:
        q, k, v = (t[:, :, start:stop].contiguous() for t in (query, key, value))
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = torch.tanh(q @ k.transpose(2, 3) * scale / cap) * cap
        scores = scores.masked_fill(~_seen(stop - start, window, q.device), -torch.inf)
        exact = scores.dtype if scores.dtype == torch.float64 else torch.float32
        found.append((torch.softmax(scores, -1, dtype=exact).to(q.dtype) @ v).transpose(1, 2))
    return torch.cat(found, dim=1)


class _Plain(torch.autograd.Function):
    """Products and softmax written out, one text after the other; cheaper than a graph of small nodes.

    query [heads, tokens, width], key and value [key heads, tokens, width], contiguous -> [heads, tokens, width].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float, window: int | None
    ) -> Tensor:
        groups = len(key)
        out, kept = query.new_empty(*query.shape[:2], value.shape[-1]), list[Tensor]()
        for span in spans:
            q, k, v = (_text(t, span, groups) for t in (query, key, value))
            scores = torch.baddbmm(_bias(q, k, window), q, k.transpose(1, 2), alpha=scale)
            weights = torch.softmax(scores, -1)
            kept.append(weights)
            _put(out, span, groups, weights, v, 1.0)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, *kept = ctx.saved_tensors
        groups, grad = len(key), grads[0].contiguous()
        dq, dk, dv = (torch.empty_like(t) for t in (query, key, value))
        for span, weights in zip(ctx.spans, kept, strict=True):
            q, k, v, g = (_text(t, span, groups) for t in (query, key, value, grad))
            back = torch._softmax_backward_data(g @ v.transpose(1, 2), weights, -1, weights.dtype)
            _put(dq, span, groups, back, k, ctx.scale)
            _put(dk, span, groups, back.transpose(1, 2), q, ctx.scale)
            _put(dv, span, groups, weights.transpose(1, 2), g, 1.0)
        return dq, dk, dv, None, None, None


def _text(t: Tensor, span: Span, groups: int) -> Tensor:
    """One text's [key heads, repeat * tokens, width] out of [heads, tokens, width].

    A view where it begins at a whole cache line: where it does not, kernels may differ in the last bit.
    """
    part = t[:, span[0] : span[1]]
    if len(t) != groups:
        return part.reshape(groups, -1, t.shape[-1])
    lines = 64 // t.element_size()
    return part if span[0] * t.shape[-1] % lines == 0 == t[0].numel() % lines else part.clone(memory_format=DENSE)


def _put(out: Tensor, span: Span, groups: int, left: Tensor, right: Tensor, scale: float) -> None:
    """One text's part of [heads, tokens, width] = scale left right."""
    found = (left @ right).view(groups, -1, span[1] - span[0], out.shape[-1])
    part = out[:, span[0] : span[1]].unflatten(0, (groups, -1))
    if scale == 1:
        part.copy_(found)
    else:
        torch.mul(found, scale, out=part)


def _bias(q: Tensor, k: Tensor, window: int | None) -> Tensor:
    """[repeat * tokens, tokens]: 0 where a token may look, minus infinity elsewhere."""
    size, repeat = k.shape[1], q.shape[1] // k.shape[1]
    key = (size, repeat, window, q.dtype, q.device)
    bias = _Stream.biases.get(key)
    if bias is None:
        bias = torch.zeros(size, size, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill_(~_seen(size, window, q.device), -torch.inf).repeat(repeat, 1)
        _Stream.biases[key] = bias
    return bias


def _seen(size: int, window: int | None, device: torch.device) -> Tensor:
    """[size, size] bool: token i sees j <= i, of a window only the last `window`; or everything."""
    if window == EVERYWHERE:
        return torch.ones(size, size, dtype=torch.bool, device=device)
    seen = torch.ones(size, size, dtype=torch.bool, device=device).tril_()
    return seen.triu_(1 - window) if window is not None and size > window else seen
