"""Inner products and distances of terms, in float64, without ever building a product.

A term is a vector or (plain, L_1, R_1, L_2, R_2, ...). With the Frobenius inner product,
<L R, L' R'> = tr((L R)^T L' R') = the sum over all entries of (L^T L') * (R R'^T), two [k, k'] matrices. So none of it
depends on how a product is split into its factors (its gauge).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedloom.aggregate.rules import CHUNK
from fedloom.contracts import Term

BEYOND = 1e290
"""Squared distances are cut here, so that their sums stay finite; what is not finite counts as this far away."""


def inner(s: Term, t: Term) -> float:
    """<s, t>: the sum of products of all numbers, as if every product of factors were written out.

    Raises:
        ValueError: one is a vector and the other is not, or their shapes differ.
    """
    return float(gram([s, t])[0, 1])


def norm(t: Term) -> float:
    """The length of a term."""
    return math.sqrt(max(0.0, float(gram([t])[0, 0])))


def gram(terms: Sequence[Term], origin: Term | None = None) -> Tensor:
    """All inner products [n, n] float64 of n terms, symmetric to the bit.

    Args:
        terms: of one kind; products may differ in their inner sizes k.
        origin: taken off every term first. For vectors, and the plain part, this happens number by number, so that
            little is lost where all lie close to it.

    Raises:
        ValueError: there are vectors and products among them, or their shapes differ.
    """
    every = [*terms] if origin is None else [*terms, origin]
    parts = [_parts(term) for term in every]
    _alike(parts)
    n, count = len(terms), len(every)
    total = torch.zeros(count, count, dtype=torch.float64)
    for m in range(1, len(parts[0]), 2):
        _add_products(total, [p[m] for p in parts], [p[m + 1] for p in parts])
    if origin is not None:
        aside = total[:n, n]
        total = total[:n, :n] - aside[:, None] - aside[None, :] + total[n, n]
    _add_vectors(total, [p[0] for p in parts[:n]], None if origin is None else parts[n][0])
    return (total + total.T) / 2


def squares(terms: Sequence[Term], near: Term | None = None) -> Tensor:
    """Squared distances [n, n] float64 between n terms: none below 0, the diagonal exactly 0.

    Args:
        terms: of one kind.
        near: a term the honest ones lie close to; distances do not depend on it, but lose fewer digits. It must not
            come from a client, since one far away would take all digits.
    """
    products = gram(terms, near)
    own = products.diagonal()
    apart = (own[:, None] + own[None, :] - 2 * products).nan_to_num(nan=BEYOND, posinf=BEYOND)
    # the difference of nearly equal sums may fall below 0 by rounding
    return apart.clamp(0.0, BEYOND).fill_diagonal_(0.0)


def alike(term: Term, like: Term) -> None:
    """Refuse what has no inner product with `like`, by shapes and formats alone.

    Raises:
        ValueError: it is of another kind or size, or holds factors that make no product.
        TypeError: it holds whole numbers.
    """
    parts = _parts(term)
    if isinstance(term, Tensor) != isinstance(like, Tensor):
        raise ValueError("a vector and products of factors cannot be compared; both must come from the same space")
    for part in parts:
        if not part.is_floating_point():
            raise TypeError(f"a tensor of {part.dtype} cannot hold a mean; send it as float")
    for left, right in zip(parts[1::2], parts[2::2], strict=False):
        if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
            raise ValueError(f"factors of {tuple(left.shape)} and {tuple(right.shape)} make no product")
    _alike([_parts(like), parts])


def _parts(term: Term) -> tuple[Tensor, ...]:
    return (term,) if isinstance(term, Tensor) else tuple(term)


def _alike(parts: Sequence[tuple[Tensor, ...]]) -> None:
    first = parts[0]
    for other in parts[1:]:
        if len(first) != len(other) or first[0].shape != other[0].shape:
            raise ValueError(
                f"{_words(first)} and {_words(other)} have no inner product; replies must be of one kind and size, "
                "so clients of different layouts need a space that sends products"
            )
        for m in range(1, len(first), 2):
            ours, theirs = (first[m].shape[0], first[m + 1].shape[1]), (other[m].shape[0], other[m + 1].shape[1])
            if ours != theirs:
                raise ValueError(
                    f"module {m // 2 + 1} is {list(ours)} in one reply and {list(theirs)} in another; clients must "
                    "adapt the same modules in the same order"
                )


def _words(parts: tuple[Tensor, ...]) -> str:
    vector = f"a vector {list(parts[0].shape)}"
    return vector if len(parts) == 1 else f"{vector} with {len(parts) // 2} products"


def _add_vectors(total: Tensor, vectors: Sequence[Tensor], origin: Tensor | None) -> None:
    flat = [vector.detach().reshape(-1) for vector in vectors]
    size, width = flat[0].numel(), max(256, 4 * CHUNK // len(flat))
    base = None if origin is None else origin.detach().reshape(-1)
    for i in range(0, size, width):
        block = torch.stack([vector[i : i + width].to(torch.float64) for vector in flat])
        if base is not None:
            block -= base[i : i + width].to(torch.float64)
        total.addmm_(block, block.T)


def _add_products(total: Tensor, left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    """Total [n, n] += <L_i R_i, L_j R_j> of one module; only pairs i <= j are computed."""
    widths = [factor.shape[1] for factor in left]
    owner = torch.arange(len(left)).repeat_interleave(torch.tensor(widths))
    stacked = torch.cat([factor.detach().to(torch.float64) for factor in left], dim=1)  # [out, all k]
    across = torch.cat([factor.detach().to(torch.float64) for factor in right], dim=0)  # [all k, in]
    begin = 0
    for i, width in enumerate(widths):
        mine = slice(begin, begin + width)
        both = (stacked[:, mine].T @ stacked[:, begin:]) * (across[mine] @ across[begin:].T)
        row = torch.zeros(len(left), dtype=torch.float64).index_add_(0, owner[begin:], both.sum(dim=0))
        total[i] += row
        total[i + 1 :, i] += row[i + 1 :]
        begin += width
