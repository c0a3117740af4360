"""Linear combinations of terms, without ever building a product.

A term is a vector or (plain, L_1, R_1, L_2, R_2, ...). Numbers are combined one by one. Products are put side by side:
a L R + b L' R' = [a L, b L'] [R; R'], then written with as few columns as they need where that saves memory.
"""

import torch
from torch import Tensor

from fedloom.aggregate.rules import add_scaled
from fedloom.contracts import Term
from fedloom.lowrank import compress


def combine(*parts: tuple[float, Term]) -> Term:
    """The sum of coefficients times terms, in the format of the first term; sums are taken in float64.

    Parts with coefficient 0 drop out whatever they hold; one part with coefficient 1 comes back as it is, bit for bit.

    Args:
        parts: (coefficient, term); terms of one kind, products may differ in their inner sizes k.

    Raises:
        ValueError: no part was given, or the terms are not of one kind and shape.
    """
    if not parts:
        raise ValueError("a combination of no terms has no size; give at least one")
    _alike([term for _, term in parts])
    kept = [(factor, term) for factor, term in parts if factor != 0]
    if not kept:
        return zeros(parts[0][1])
    if len(kept) == 1 and kept[0][0] == 1:
        return kept[0][1]
    whole = [(factor, _parts(term)) for factor, term in kept]
    first = _added([(factor, term[0]) for factor, term in whole])
    if isinstance(kept[0][1], Tensor):
        return first
    products: list[Tensor] = []
    for m in range(1, len(whole[0][1]), 2):
        products += _product([(factor, term[m], term[m + 1]) for factor, term in whole])
    return (first, *products)


def zeros(term: Term) -> Term:
    """Zero, in the shape of a term; its products have inner size 0."""
    if isinstance(term, Tensor):
        return torch.zeros_like(term)
    none = [f.new_zeros(f.shape[0], 0) if m % 2 == 0 else f.new_zeros(0, f.shape[1]) for m, f in enumerate(term[1:])]
    return (torch.zeros_like(term[0]), *none)


def _parts(term: Term) -> tuple[Tensor, ...]:
    return (term,) if isinstance(term, Tensor) else tuple(term)


def _added(parts: list[tuple[float, Tensor]]) -> Tensor:
    total = torch.zeros(parts[0][1].shape, dtype=torch.float64)
    for factor, value in parts:
        add_scaled(total, value, factor)
    return total.to(parts[0][1].dtype)


def _product(parts: list[tuple[float, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One module's products as one."""
    dtype = parts[0][1].dtype
    there = [(factor, left, right) for factor, left, right in parts if left.shape[1] > 0] or parts[:1]
    scaled = [(factor * left.to(torch.float64)).to(dtype) for factor, left, _ in there]
    if len(there) == 1:
        return scaled[0], there[0][2].to(dtype)
    return compress(torch.cat(scaled, dim=1), torch.cat([right.to(dtype) for _, _, right in there], dim=0))


def _alike(terms: list[Term]) -> None:
    if len({isinstance(term, Tensor) for term in terms}) > 1:
        raise ValueError("a vector and products of factors cannot be added; both must come from the same space")
    first = _parts(terms[0])
    for other in map(_parts, terms[1:]):
        if _shapes(other) != _shapes(first):
            raise ValueError(
                f"terms of shapes {_shapes(first)} and {_shapes(other)} cannot be added; "
                "they belong to different layouts"
            )


def _shapes(parts: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    """What must agree: the plain part, and what each product is as a matrix."""
    products = [(parts[m].shape[0], parts[m + 1].shape[1]) for m in range(1, len(parts), 2)]
    return [tuple(parts[0].shape), *products]
