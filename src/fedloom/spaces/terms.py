"""Terms as spaces make and read them: a vector, or (plain, L_1, R_1, L_2, R_2, ...) with the scale in L.

Their algebra (combinations, inner products) lies with the rules in `aggregate` and is only passed on here.
"""

from torch import Tensor

from fedloom import lowrank
from fedloom.aggregate.combine import combine, zeros
from fedloom.aggregate.terms import gram, inner, norm
from fedloom.contracts import Carry, Term
from fedloom.params import Layout, Params

__all__ = ["carried", "combine", "gram", "inner", "norm", "of", "products", "split", "zeros"]


def of(x: Params, layout: Layout) -> tuple[Tensor, ...]:
    """A vector [P] as a term of products: its plain leaves [Q], then scale B [out, r] and A [r, in] of each pair."""
    return (lowrank.plain_vector(x, layout), *lowrank.products(x, layout))


def products(term: Term) -> tuple[tuple[Tensor, Tensor], ...]:
    """(L [out, k], R [k, in]) of each module; none for a vector."""
    return split(term)[1]


def split(term: Term) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
    """The plain numbers of a term (all of a vector), and its products."""
    if isinstance(term, Tensor):
        return term, ()
    return term[0], tuple(zip(term[1::2], term[2::2], strict=True))


def carried(carry: Carry, *parts: tuple[float, Term]) -> Carry:
    """The carry with products added, coefficient times term, in as few components as the sum has."""
    factors = [(factor, tuple(f for product in products(term) for f in product)) for factor, term in parts]
    every = [(factor, some) for factor, some in [(1.0, carry), *factors] if some]
    if not every:
        return carry
    nothing = every[0][1][0].new_zeros(0)
    whole = combine(*((factor, (nothing, *some)) for factor, some in every))
    return tuple(whole[1:])
