"""Attention text by text against its formula, written out one token after the other; gradients by autograd of that."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedloom.engine.attention import Unsuited, by_text, texts

SPANS = {
    "one text": ((0, 7),),
    "several": ((0, 5), (5, 6), (6, 8), (8, 17)),
    "ones": ((0, 1), (1, 2), (2, 3), (3, 4)),
}


def drawn(tokens, heads=4, groups=2, width=6, seed=0, dtype=torch.float64):
    """Queries [1, heads, tokens, width], keys and values [1, groups, tokens, width]."""
    source = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, n, tokens, width, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (heads, groups, groups)
    ]


def formula(query, key, value, spans, scale, window=None, cap=None):
    """out[t] = sum_s softmax_s(q_t k_s scale) v_s over s <= t of the same text, s > t - window."""
    repeat = query.shape[1] // key.shape[1]
    rows = []
    for t in range(query.shape[2]):
        start = next(a for a, b in spans if a <= t < b)
        first = start if window is None else max(start, t - window + 1)
        heads = []
        for h in range(query.shape[1]):
            products = key[0, h // repeat, first : t + 1] @ query[0, h, t] * scale
            if cap is not None:
                products = cap * torch.tanh(products / cap)
            weights = products.exp() / products.exp().sum()
            heads.append(weights @ value[0, h // repeat, first : t + 1])
        rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


def asked(inputs, spans, way, **more):
    config = SimpleNamespace(_attn_implementation="eager")
    with texts(config, spans, way):
        out, weights = by_text(nn.Module(), *inputs, None, **more)
    assert weights is None
    assert config._attn_implementation == "eager"
    return out


@pytest.mark.parametrize("way", ["plain", "fused"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("spans", SPANS)
def test_the_formula(spans, window, groups, way):
    spans = SPANS[spans]
    inputs = drawn(spans[-1][1], groups=groups)
    more = {} if window is None else {"sliding_window": window}
    out = asked(inputs, spans, way, **more)
    wanted = formula(*inputs, spans, 1 / math.sqrt(6), window)
    assert out.shape == wanted.shape == (1, spans[-1][1], 4, 6)
    assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-13)
    up = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(out, inputs, up)
    for ours, theirs in zip(found, torch.autograd.grad(wanted, inputs, up), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("way", ["plain", "fused"])
@pytest.mark.parametrize("window", [None, 3])
def test_a_cap_and_a_scale(window, way):
    spans = SPANS["several"]
    inputs = drawn(spans[-1][1])
    out = asked(inputs, spans, way, scaling=0.7, softcap=1.5, sliding_window=window)
    wanted = formula(*inputs, spans, 0.7, window, 1.5)
    assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-13)
    found, theirs = (torch.autograd.grad(o.square().sum(), inputs) for o in (out, wanted))
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-12) for a, b in zip(found, theirs, strict=True))
    assert torch.allclose(asked(inputs, spans, way, scaling=0.7), formula(*inputs, spans, 0.7), atol=1e-13)


@pytest.mark.parametrize("way", ["plain", "fused"])
@pytest.mark.parametrize("more", [{}, {"sliding_window": 3}, {"softcap": 2.0}], ids=["all", "window", "cap"])
def test_neighbours_change_no_bit(more, way):
    """A text alone, and among others before and behind it, one of which is no number."""
    alone = drawn(5, dtype=torch.float32)
    around = [torch.cat([torch.full_like(t[:, :, :3], math.nan), t, 7 * t[:, :, :2]], 2) for t in alone]
    company = [t.detach().requires_grad_() for t in around]
    one, other = asked(alone, ((0, 5),), way, **more), asked(company, ((0, 3), (3, 8), (8, 10)), way, **more)
    assert torch.equal(one, other[:, 3:8])
    up = torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([torch.full_like(up[:, :3], math.nan), up, up[:, :2]], 1)
    for ours, theirs in zip(
        torch.autograd.grad(other, company, wide), torch.autograd.grad(one, alone, up), strict=True
    ):
        assert torch.equal(ours[:, :, 3:8], theirs)


LAID = ((0, 7), (7, 10), (10, 11), (11, 14), (14, 18))
"""Two texts that branch off the first, one of them by a single token; one by itself; one that branches off that."""
TRUNKS = {1: (0, 5), 2: (0, 6), 4: (11, 13)}


def unrolled():
    """Tokens of every text in full, one behind the other, the texts' spans there, and which tokens are own ones."""
    tokens, spans, own = [], [], []
    for number, (start, stop) in enumerate(LAID):
        begun = len(tokens)
        tokens += range(*TRUNKS.get(number, (0, 0)))
        own += range(len(tokens), len(tokens) + stop - start)
        tokens += range(start, stop)
        spans.append((begun, len(tokens)))
    return tokens, spans, own


@pytest.mark.parametrize("way", ["plain", "fused", "packed"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("more", [{}, {"sliding_window": 3}, {"softcap": 2.0}], ids=["all", "window", "cap"])
def test_a_trunk_counts_as_often_as_texts_begin_with_it(more, groups, way, monkeypatch):
    """As the formula over all texts written out in full, gradients of what they share summed."""
    if way == "packed":
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    inputs = drawn(18, groups=groups)
    tokens, spans, own = unrolled()
    with texts(SimpleNamespace(_attn_implementation="eager"), LAID, way, TRUNKS):
        out, _ = by_text(nn.Module(), *inputs, None, **more)
    full = formula(*(t[:, :, tokens] for t in inputs), spans, 6**-0.5, more.get("sliding_window"), more.get("softcap"))
    wanted = full[:, own]
    assert out.shape == wanted.shape
    assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-13)
    up = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, theirs = (torch.autograd.grad(one, inputs, up) for one in (out, wanted))
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-12) for a, b in zip(found, theirs, strict=True))


def varlen(q, k, v, ends, _, longest, __, *, scale, num_splits, window_size, enable_gqa):
    """In the place of the flash kernel [tokens, heads, width], which wants a GPU: the formula."""
    spans = list(zip(ends.tolist(), ends.tolist()[1:], strict=False))
    assert longest == max(b - a for a, b in spans)
    window = None if window_size == (-1, 0) else window_size[0] + 1
    return formula(*(t.transpose(0, 1)[None] for t in (q, k, v)), spans, scale, window)[0]


@pytest.mark.parametrize("way", ["plain", "fused"])
@pytest.mark.parametrize("more", [{}, {"sliding_window": 3}, {"softcap": 2.0}], ids=["all", "window", "cap"])
def test_neighbours_change_no_bit_of_texts_with_a_trunk(more, way):
    alone = drawn(8, dtype=torch.float32)
    company = [torch.cat([torch.full_like(t[:, :, :3], math.nan), t, 7 * t[:, :, :2]], 2) for t in alone]
    alone, company = ([t.detach().requires_grad_() for t in each] for each in (alone, company))
    with texts(SimpleNamespace(_attn_implementation="eager"), ((0, 5), (5, 8)), way, {1: (0, 4)}):
        one, _ = by_text(nn.Module(), *alone, None, **more)
    with texts(SimpleNamespace(_attn_implementation="eager"), ((0, 3), (3, 8), (8, 11), (11, 13)), way, {2: (3, 7)}):
        other, _ = by_text(nn.Module(), *company, None, **more)
    assert torch.equal(one, other[:, 3:11])
    up = torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([torch.full_like(up[:, :3], math.nan), up, up[:, :2]], 1)
    theirs = torch.autograd.grad(one, alone, up)
    for mine, wanted in zip(torch.autograd.grad(other, company, wide), theirs, strict=True):
        assert torch.equal(mine[:, :, 3:11], wanted)


@pytest.mark.parametrize("way", ["plain", "fused"])
def test_large_products_stay_finite(way):
    inputs = [t.detach() * 100 for t in drawn(9, dtype=torch.float32)]
    out = asked(inputs, ((0, 4), (4, 9)), way)
    assert bool(out.isfinite().all())
    biggest = torch.stack([inputs[2][0, 0, 4], inputs[2][0, 0, 5]])
    assert bool((out[0, 5, 0] <= biggest.max(0).values + 1e-4).all())


@pytest.mark.parametrize("way", ["plain", "fused"])
def test_formats_are_kept(way):
    inputs = drawn(6, dtype=torch.bfloat16)
    out = asked(inputs, ((0, 2), (2, 6)), way)
    assert out.dtype == torch.bfloat16
    wanted = formula(*(t.detach().double() for t in inputs), ((0, 2), (2, 6)), 6**-0.5)
    assert torch.allclose(out.double(), wanted, atol=0.05)


def test_what_cannot_be_done_is_said():
    query, key, value = drawn(6)
    spans = ((0, 6),)
    with pytest.raises(Unsuited), texts(SimpleNamespace(_attn_implementation="sdpa"), spans, "plain"):
        by_text(nn.Module(), query.expand(2, -1, -1, -1), key, value, None)
    with pytest.raises(Unsuited), texts(SimpleNamespace(_attn_implementation="sdpa"), spans, "plain"):
        by_text(nn.Module(), query, key, value, torch.zeros(1, 1, 6, 6))
    encoder = nn.Module()
    encoder.is_causal = False
    with pytest.raises(Unsuited), texts(SimpleNamespace(_attn_implementation="sdpa"), spans, "plain"):
        by_text(encoder, query, key, value, None, sliding_window=3)
    with pytest.raises(Unsuited), texts(SimpleNamespace(_attn_implementation="sdpa"), ((0, 5),), "plain"):
        by_text(nn.Module(), query, key, value, None)
    with (
        pytest.raises(Unsuited),
        texts(SimpleNamespace(_attn_implementation="sdpa"), ((0, 4), (4, 6)), "plain", {1: (0, 2)}),
    ):
        by_text(encoder, query, key, value, None)
    with pytest.raises(Unsuited):  # outside of a stream
        by_text(nn.Module(), query, key, value, None)


@pytest.mark.parametrize("way", ["plain", "fused"])
@pytest.mark.parametrize("told", [False, True])
def test_an_encoder_looks_at_all_of_its_own_text(way, told):
    """As torch's attention over each text alone, gradients too; said by the layer or by the call."""
    spans = ((0, 5), (5, 6), (6, 13))
    query, key, value = (t.clone().requires_grad_() for t in drawn(13))
    layer = nn.Module()
    layer.is_causal = told
    with texts(SimpleNamespace(_attn_implementation="sdpa"), spans, way):
        found, _ = by_text(layer, query, key, value, None, **({"is_causal": False} if told else {}))
    wanted = torch.cat(
        [
            F.scaled_dot_product_attention(*(t[:, :, a:b] for t in (query, key, value)), enable_gqa=True).transpose(
                1, 2
            )
            for a, b in spans
        ],
        dim=1,
    )
    assert torch.allclose(found, wanted, atol=1e-6)
    source = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    mine = torch.autograd.grad((found * source).sum(), (query, key, value))
    theirs = torch.autograd.grad((wanted * source).sum(), (query, key, value))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(mine, theirs, strict=True))


def test_the_name_is_put_back_whatever_happens():
    config = SimpleNamespace(_attn_implementation="sdpa")
    with pytest.raises(ZeroDivisionError), texts(config, ((0, 1),), "plain"):
        assert config._attn_implementation != "sdpa"
        raise ZeroDivisionError
    assert config._attn_implementation == "sdpa"
    inner = SimpleNamespace(_attn_implementation="sdpa")
    query, key, value = drawn(6)
    with texts(config, ((0, 6),), "plain"):
        with texts(inner, ((0, 2), (2, 6)), "plain"):
            by_text(nn.Module(), query, key, value, None)
        out, _ = by_text(nn.Module(), query, key, value, None)  # the outer texts again
    assert torch.allclose(out, formula(query, key, value, ((0, 6),), 6**-0.5), atol=1e-13)
