"""Attention inside each text of a stream, through transformers' own interface, so that no model needs code of ours.

A model asks `ALL_ATTENTION_FUNCTIONS` for the function its configuration names. While clients share a pass that name is
NAME: the texts lie one behind the other without filling, no mask is built, and every text is attended to by itself,
with the same shapes whoever else is in the stream.

A text may begin as an earlier one does (two answers to one prompt). Then the stream holds only what comes after, and
that attends to its trunk, those tokens of the earlier text, as if they stood before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
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
    trunks: Mapping[int, Span] = {}
    way: Way = "fused"
    ends: Tensor | None = None
    """Where texts end, for the packed kernel."""
    unrolled: tuple[Tensor, Tensor] | None = None
    """For the packed kernel, where texts have trunks: the tokens of all texts in full, and which of those are own."""
    biases: dict[tuple[Any, ...], Tensor] = {}
    """What keeps later tokens out, by size: the same for all layers of a pass."""

    @classmethod
    def parts(cls) -> Iterator[tuple[Span, Span | None]]:
        """Own tokens and trunk of each text."""
        return ((span, cls.trunks.get(number)) for number, span in enumerate(cls.spans))


@contextmanager
def texts(config: Any, spans: Sequence[Span], way: Way, trunks: Mapping[int, Span] | None = None) -> Iterator[None]:
    """Within, a model of this configuration attends text by text.

    Args:
        config: the model's, whose attention is named anew and put back.
        spans: the texts of the stream, each one's own tokens.
        way: how each text is attended to.
        trunks: by number of a text, the tokens of an earlier one that stand before its own.
    """
    _register()
    before = config._attn_implementation
    kept = _Stream.spans, _Stream.trunks, _Stream.way, _Stream.biases, _Stream.ends, _Stream.unrolled
    config._attn_implementation = NAME
    _Stream.spans, _Stream.trunks, _Stream.way = spans, trunks or {}, way
    _Stream.biases, _Stream.ends, _Stream.unrolled = {}, None, None
    try:
        yield
    finally:
        config._attn_implementation = before
        _Stream.spans, _Stream.trunks, _Stream.way, _Stream.biases, _Stream.ends, _Stream.unrolled = kept


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
    """Attention inside each text, its trunk included: to earlier tokens, or to all where the layer is an encoder's.

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
        Unsuited: a batch of several rows, a mask, or an encoder's window or trunk.
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
        if window is not None or softcap is not None or _Stream.trunks:
            raise Unsuited("an encoder's window, cap or trunk")
        window = EVERYWHERE
    if softcap is not None:
        return _capped(query, key, value, scale, window, softcap), None
    if _Stream.way == "packed":
        return _packed(query, key, value, scale, window), None
    if _Stream.way == "plain":
        exact = torch.promote_types(query.dtype, torch.float32)  # small products: float32 is faster than bfloat16 here
        q, k, v = (t[0].to(exact, memory_format=torch.contiguous_format).contiguous() for t in (query, key, value))
        out: Tensor = _Plain.apply(q, k, v, scale, window)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1)[None].to(query.dtype), None
    return _fused(query, key, value, scale, window), None


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, by_text)


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """By torch's fused kernel: memory grows with the texts' lengths, not with their squares (but for trunks)."""
    grouped, found = query.shape[1] != key.shape[1], []
    for span, trunk in _Stream.parts():
        q, k, v = _own(query, span), _whole(key, span, trunk), _whole(value, span, trunk)
        masked = trunk is not None or (window is not None and 0 <= window < k.shape[2])
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=_seen(q.shape[2], k.shape[2], window, q.device) if masked else None,
            is_causal=not masked and window != EVERYWHERE,
            scale=scale, enable_gqa=grouped,
        )  # fmt: skip
        found.append(out.transpose(1, 2))
    return torch.cat(found, dim=1)


def _packed(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """By one flash kernel for all texts; `num_splits=1` keeps each text's order of sums whoever is beside it.

    Texts with trunks are attended to in full, and what the trunks' tokens get a second time is left out.
    """
    from torch.nn.attention.varlen import varlen_attn

    sizes = [stop - start + (trunk[1] - trunk[0] if trunk else 0) for (start, stop), trunk in _Stream.parts()]
    if _Stream.ends is None:
        _Stream.ends = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=query.device)
        _Stream.unrolled = _unrolled(query.device) if _Stream.trunks else None
    longest = max(sizes)
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    if _Stream.unrolled is not None:
        q, k, v = (t[_Stream.unrolled[0]] for t in (q, k, v))
    out = varlen_attn(
        q, k, v, _Stream.ends, _Stream.ends, longest, longest, scale=scale, num_splits=1,
        window_size=(-1, -1) if window == EVERYWHERE else (-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return (out if _Stream.unrolled is None else out[_Stream.unrolled[1]])[None]


def _unrolled(device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens of the stream, text by text in full [n], and which of these n are each text's own [tokens]."""
    everything, own = list[int](), list[int]()
    for (start, stop), trunk in _Stream.parts():
        everything.extend(range(*trunk) if trunk else ())
        own.extend(range(len(everything), len(everything) + stop - start))
        everything.extend(range(start, stop))
    return torch.tensor(everything, device=device), torch.tensor(own, device=device)


def _own(t: Tensor, span: Span) -> Tensor:
    """[1, heads, own tokens, width]"""
    return t[:, :, span[0] : span[1]].contiguous()


def _whole(t: Tensor, span: Span, trunk: Span | None) -> Tensor:
    """[1, heads, trunk's and own tokens, width]"""
    return _own(t, span) if trunk is None else torch.cat((_own(t, trunk), _own(t, span)), 2)


def _capped(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, cap: float) -> Tensor:
    """With products kept below a cap by tanh (Gemma 2)."""
    repeat, found = query.shape[1] // key.shape[1], []
    for span, trunk in _Stream.parts():
        q, k, v = _own(query, span), _whole(key, span, trunk), _whole(value, span, trunk)
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = torch.tanh(q @ k.transpose(2, 3) * scale / cap) * cap
        scores = scores.masked_fill(~_seen(q.shape[2], k.shape[2], window, q.device), -torch.inf)
        exact = scores.dtype if scores.dtype == torch.float64 else torch.float32
        found.append((torch.softmax(scores, -1, dtype=exact).to(q.dtype) @ v).transpose(1, 2))
    return torch.cat(found, dim=1)


class _Plain(torch.autograd.Function):
    """Products and softmax written out, one text after the other; cheaper than a graph of small nodes.

    query [heads, tokens, width], key and value [key heads, tokens, width], contiguous -> [heads, tokens, width].
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        groups, parts = len(key), list(_Stream.parts())
        repeat = len(query) // groups
        out, kept = query.new_empty(*query.shape[:2], value.shape[-1]), list[Tensor]()
        for span, trunk in parts:
            q, k, v = _text(query, span, groups), _text(key, span, groups, trunk), _text(value, span, groups, trunk)
            scores = torch.baddbmm(_bias(q, k, repeat, window), q, k.transpose(1, 2), alpha=scale)
            weights = torch.softmax(scores, -1)
            kept.append(weights)
            _put(out, span, groups, weights, v, 1.0)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, *kept = ctx.saved_tensors
        groups, grad = len(key), grads[0].contiguous()
        dq, dk, dv = (torch.empty_like(t) for t in (query, key, value))
        for (span, trunk), weights in zip(ctx.parts, kept, strict=True):
            q, g = (_text(t, span, groups) for t in (query, grad))
            k, v = (_text(t, span, groups, trunk) for t in (key, value))
            back = torch._softmax_backward_data(g @ v.transpose(1, 2), weights, -1, weights.dtype)
            _put(dq, span, groups, back, k, ctx.scale)
            _put(dk, span, groups, back.transpose(1, 2), q, ctx.scale, trunk)
            _put(dv, span, groups, weights.transpose(1, 2), g, 1.0, trunk)
        return dq, dk, dv, None, None


def _text(t: Tensor, span: Span, groups: int, trunk: Span | None = None) -> Tensor:
    """One text's [key heads, repeat * tokens, width] out of [heads, tokens, width]; with a trunk only of key heads.

    A view where it begins at a whole cache line: where it does not, kernels may differ in the last bit.
    """
    part = t[:, span[0] : span[1]]
    if trunk is not None:
        return torch.cat((t[:, trunk[0] : trunk[1]], part), 1)
    if len(t) != groups:
        return part.reshape(groups, -1, t.shape[-1])
    lines = 64 // t.element_size()
    return part if span[0] * t.shape[-1] % lines == 0 == t[0].numel() % lines else part.clone(memory_format=DENSE)


def _put(
    out: Tensor, span: Span, groups: int, left: Tensor, right: Tensor, scale: float, trunk: Span | None = None
) -> None:
    """One text's part of [heads, tokens, width] = scale left right; what is its trunk's is added there."""
    found = left @ right
    if trunk is not None:
        shared = trunk[1] - trunk[0]
        out[:, trunk[0] : trunk[1]].add_(found[:, :shared], alpha=scale)
        found = found[:, shared:]
    found = found.reshape(groups, -1, span[1] - span[0], out.shape[-1])
    part = out[:, span[0] : span[1]].unflatten(0, (groups, -1))
    if scale == 1:
        part.copy_(found)
    else:
        torch.mul(found, scale, out=part)


def _bias(q: Tensor, k: Tensor, repeat: int, window: int | None) -> Tensor:
    """[repeat * own tokens, tokens]: 0 where a token may look, minus infinity elsewhere."""
    own, size = q.shape[1] // repeat, k.shape[1]
    key = (own, size, repeat, window, q.dtype, q.device)
    bias = _Stream.biases.get(key)
    if bias is None:
        bias = torch.zeros(own, size, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill_(~_seen(own, size, window, q.device), -torch.inf).repeat(repeat, 1)
        _Stream.biases[key] = bias
    return bias


def _seen(own: int, size: int, window: int | None, device: torch.device) -> Tensor:
    """[own, size] bool, the last `own` of `size` tokens: i sees j <= i, of a window only the last `window`; or all."""
    seen = torch.ones(own, size, dtype=torch.bool, device=device)
    if window == EVERYWHERE:
        return seen
    seen.tril_(size - own)
    return seen.triu_(size - own + 1 - window) if window is not None and size > window else seen
