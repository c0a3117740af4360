"""Products of LoRA factors without the matrix they stand for: pairs in a layout, SVD of L R, truncation, compression.

Notation: a pair of rank r adds scale B A to a module, A [r, in], B [out, r] (Hu et al. 2021,
https://arxiv.org/abs/2106.09685). A product is kept as left L [out, k] and right R [k, in], with the scale in L. The
exact SVD takes the QR of both sides and the SVD of the small middle; wide stacks use randomized subspace iteration
(Halko et al. 2011, https://arxiv.org/abs/0909.4061, algorithm 4.4). Everything is computed in float64 and returned in
the format of the input. `transposed` plays no part here: products are [out, in] for every kind of layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom import rng
from fedloom.params import Layout, Leaf, Params

EXTRA = 8
"""Directions the randomized SVD follows beyond twice as many as were asked for."""
ITERATIONS = 4
"""Its passes over both sides; each makes the first directions stand out more."""
SMALL = 256
"""Up to this many rows or columns the exact SVD is always fast enough."""
SEARCHED = 512
"""Stacks wider than this are not searched for a smaller rank: the SVD would cost more than it could save."""


@dataclass(frozen=True)
class Pair:
    """Both factors of one adapted module."""

    module: str
    a: Leaf
    """[rank, in]"""
    b: Leaf
    """[out, rank]"""

    @property
    def rank(self) -> int:
        """How many components the product has."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """What the product B A is multiplied with."""
        return self.b.scale

    @property
    def inputs(self) -> int:
        """Columns of the product."""
        return self.a.shape[1]

    @property
    def outputs(self) -> int:
        """Rows of the product."""
        return self.b.shape[0]


# -- pairs in a layout ----------------------------------------------------------------------------------------------


def pairs(layout: Layout) -> tuple[Pair, ...]:
    """The modules that hold both factors, in the order of the layout. A lone factor is no pair.

    Raises:
        ValueError: the two factors of a module disagree about their rank.
    """
    factors: dict[str, dict[str, Leaf]] = {}
    for leaf in layout.leaves:
        if leaf.factor != "plain":
            factors.setdefault(leaf.module, {})[leaf.factor] = leaf
    found = []
    for module, both in factors.items():
        if len(both) < 2:
            continue
        a, b = both["A"], both["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(f"factors of {module} do not fit: A is {a.shape}, B is {b.shape}; they need one rank")
        found.append(Pair(module, a, b))
    return tuple(found)


def plain(layout: Layout) -> tuple[Leaf, ...]:
    """The leaves that are no factor of a pair: ordinary tensors, and factors whose partner is not trained."""
    paired = {leaf.name for pair in pairs(layout) for leaf in (pair.a, pair.b)}
    return tuple(leaf for leaf in layout.leaves if leaf.name not in paired)


def plain_vector(x: Params, layout: Layout) -> Tensor:
    """[Q]: the plain leaves of x [P], one behind the other."""
    return layout.take(x, [leaf.name for leaf in plain(layout)])


def products(x: Params, layout: Layout) -> tuple[Tensor, ...]:
    """(scale B_1, A_1, scale B_2, A_2, ...) of x [P], for each pair B [out, rank] and A [rank, in]."""
    views, found = layout.views(x), []
    for pair in pairs(layout):
        found += [views[pair.b.name] * pair.scale, views[pair.a.name].clone()]
    return tuple(found)


def vector(layout: Layout, plain_part: Tensor, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Params:
    """A vector [P] from its plain leaves [Q] and (A [rank, in], B [out, rank]) by module; the reverse of taking apart.

    Raises:
        ValueError: sizes do not fit the layout.
    """
    whole = layout.put(plain_part.new_zeros(layout.size), [leaf.name for leaf in plain(layout)], plain_part)
    views = layout.views(whole)
    for pair in pairs(layout):
        a, b = factors[pair.module]
        views[pair.a.name].copy_(a)
        views[pair.b.name].copy_(b)
    return whole


def matched(shared: Layout, layout: Layout) -> tuple[tuple[Pair, Pair], ...]:
    """Each pair of the shared layout beside the client's pair of the same module.

    Raises:
        ValueError: the layouts adapt different modules, differ in plain leaves, or the client's rank is the larger.
    """
    ours, theirs = pairs(shared), pairs(layout)
    if [(p.module, p.inputs, p.outputs) for p in ours] != [(p.module, p.inputs, p.outputs) for p in theirs]:
        raise ValueError(
            f"a client adapts other modules ({len(theirs)} pairs) than the shared layout ({len(ours)} pairs); "
            "give everybody the same base and adapter targets, only ranks may differ"
        )
    if [(leaf.name, leaf.shape) for leaf in plain(shared)] != [(leaf.name, leaf.shape) for leaf in plain(layout)]:
        raise ValueError("a client trains other plain tensors than the shared layout holds; only ranks may differ")
    for mine, its in zip(ours, theirs, strict=True):
        if its.rank > mine.rank:
            raise ValueError(
                f"a client has rank {its.rank} in {mine.module}, the shared layout only {mine.rank}; "
                "build the shared layout with the largest rank of the federation"
            )
    return tuple(zip(ours, theirs, strict=True))


def leading(x: Params, shared: Layout, layout: Layout) -> Params:
    """The first components of every pair that a smaller layout has room for, as its vector.

    B is rescaled where the client's scale is another, so that every component it gets adds the same to the module.
    """
    views, found = shared.views(x), {}
    for mine, its in matched(shared, layout):
        a, b = views[mine.a.name], views[mine.b.name]
        found[mine.module] = (a[: its.rank], rescaled(b[:, : its.rank], mine.scale, its.scale))
    return vector(layout, plain_vector(x, shared), found)


def rescaled(b: Tensor, scale: float, new: float) -> Tensor:
    """B for another scale, so that scale B stays what it is; the same tensor when the scales agree."""
    return b if scale == new else (b.double() * (scale / new)).to(b.dtype)


def start(layout: Layout, seed: int, dtype: torch.dtype = torch.float32) -> Params:
    """[P]: A uniform in ±1/sqrt(in) (peft's own rule), everything else zero; the same on every machine."""
    begun = torch.zeros(layout.size, dtype=dtype)
    for leaf in layout.leaves:
        if leaf.factor == "A":
            values = rng.uniform(rng.key(seed, "lora start", leaf.name), *leaf.shape) * 2 - 1
            begun[leaf.offset : leaf.offset + leaf.size] = (values / leaf.shape[1] ** 0.5).reshape(-1)
    return begun


# -- algebra of one product -----------------------------------------------------------------------------------------


def singular(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of left [out, k] times right [k, in]: U [out, q], S [q] falling, Vt [q, in], with q = min(k, out, in).

    The largest entry of each row of Vt is positive, so that equal products give equal factors.
    """
    u, s, vt = _exact(left.double(), right.double())
    return u.to(left.dtype), s.to(left.dtype), vt.to(left.dtype)


def truncated(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best product of this rank: U [out, rank], S [rank] falling, Vt [rank, in]; zeros fill what is missing."""
    u, s, vt = _best(left.double(), right.double(), rank)
    return u.to(left.dtype), s.to(left.dtype), vt.to(left.dtype)


def compress(left: Tensor, right: Tensor, tolerance: float = 1e-12) -> tuple[Tensor, Tensor]:
    """The same product with as few components as it has; as it is, bit for bit, where nothing can be saved.

    Args:
        left: [out, k].
        right: [k, in].
        tolerance: singular values below this share of the largest count as zero; never less than what the format of
            the numbers can tell apart.
    """
    width, smaller = left.shape[1], min(left.shape[0], right.shape[1])
    if width == 0:
        return left, right
    if min(width, smaller) > SEARCHED:
        return folded(left, right) if width > smaller else (left, right)
    u, s, vt = _exact(left.double(), right.double())
    # where pieces cancel, what is left of them is rounding in proportion to the pieces, not to the product
    pieces = float((left.double().norm(dim=0) * right.double().norm(dim=1)).sum())
    least = max(max(tolerance, torch.finfo(left.dtype).eps) * float(s[0]), 4 * torch.finfo(s.dtype).eps * pieces)
    rank = int((s > least).sum())
    if rank >= width:
        return left, right
    return (u[:, :rank] * s[:rank]).to(left.dtype), vt[:rank].to(right.dtype)


def folded(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The product multiplied out beside an identity on its smaller side: at most as wide as the matrix."""
    return beside_identity(left.double() @ right.double(), left.dtype)


def beside_identity(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] as a product: (matrix, I) or (I, matrix), whichever is smaller."""
    rows, columns = matrix.shape
    if columns <= rows:
        return matrix.to(dtype), torch.eye(columns, dtype=dtype)
    return torch.eye(rows, dtype=dtype), matrix.to(dtype)


def refactor(left: Tensor, right: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] whose scale B A is the best approximation of the product at this rank.

    B = U S / scale and A = Vt. Where the product has fewer components, A goes on with orthonormal rows beside zero
    columns of B, as a full SVD would leave them: two zeros that face each other would never train again.
    """
    u, s, vt = _best(left.double(), right.double(), rank)
    held = min(rank, *left.shape, *right.shape)
    possible = min(rank, right.shape[1])
    if held < possible:
        vt[held:possible] = _others(vt[:held], possible - held)
    return vt.to(left.dtype), (u * s / scale).to(left.dtype)


def in_order(a: Tensor, b: Tensor) -> bool:
    """Whether B A is written as `refactor` writes it: A's rows orthonormal, B's columns at right angles and falling.

    Then the first rows and columns are the best factors of every smaller rank, as exactly as the format allows.
    """
    near = 100 * torch.finfo(a.dtype).eps
    rows, columns = a.double() @ a.double().T, b.double().T @ b.double()
    sizes = columns.diagonal()
    straight = bool((rows - torch.eye(len(rows), dtype=rows.dtype)).abs().max() <= near)
    apart = bool((columns - torch.diag(sizes)).abs().max() <= near * float(sizes.max()))
    return straight and apart and bool((sizes[1:] <= sizes[:-1] + near * float(sizes.max())).all())


def _exact(left: Tensor, right: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of a product of float64 factors through the QR of both; all of it, or the first `rank` triples.

    Q is never built: applying its reflectors to a few columns costs a fraction of writing them all down.
    """
    ql, rl = _reflected(left)
    qr, rr = _reflected(right.T)
    u, s, vt = torch.linalg.svd(rl @ rr.T, full_matrices=False)
    return _signed(_turned(ql, u[:, :rank]), s[:rank], _turned(qr, vt[:rank].T).T)


def _reflected(matrix: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """QR of [n, k]: Q as Householder reflectors, and R [min(n, k), k]."""
    packed, tau = torch.geqrf(matrix)
    return (packed, tau), packed[: len(tau)].triu()


def _turned(q: tuple[Tensor, Tensor], columns: Tensor) -> Tensor:
    """Q times columns [min(n, k), c]: [n, c]."""
    packed, tau = q
    below = columns.new_zeros(packed.shape[0] - columns.shape[0], columns.shape[1])
    return torch.ormqr(packed[:, : len(tau)], tau, torch.cat([columns, below]))


def _best(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `rank` singular triples of a product of float64 factors, filled up with zeros."""
    width, smaller = left.shape[1], min(left.shape[0], right.shape[1])
    followed = 2 * rank + EXTRA
    if smaller <= SMALL or width <= smaller // 2 or followed >= smaller // 2:
        u, s, vt = _exact(left, right, rank)
    else:
        u, s, vt = _randomized(left, right, followed)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    missing = rank - len(s)
    if missing:
        u = torch.cat([u, u.new_zeros(u.shape[0], missing)], dim=1)
        s = torch.cat([s, s.new_zeros(missing)])
        vt = torch.cat([vt, vt.new_zeros(missing, vt.shape[1])])
    return u, s, vt


def _randomized(left: Tensor, right: Tensor, followed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `followed` singular triples by subspace iteration; the product is only ever applied, never formed."""
    inputs = right.shape[1]
    y = left @ (right @ rng.normal(rng.key(0, "subspace", left.shape[0], inputs), inputs, followed))
    q, _ = torch.linalg.qr(y)
    for _ in range(ITERATIONS):
        z, _ = torch.linalg.qr(right.T @ (left.T @ q))
        q, _ = torch.linalg.qr(left @ (right @ z))
    u, s, vt = torch.linalg.svd((q.T @ left) @ right, full_matrices=False)
    return _signed(q @ u, s, vt)


def _signed(u: Tensor, s: Tensor, vt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same SVD with the free signs settled, row by row in memory as a file would give it back: products of numbers
    that lie otherwise may differ in the last bit.
    """
    if vt.numel() == 0:
        return u, s, vt
    top = vt.gather(1, vt.abs().argmax(dim=1, keepdim=True))
    sign = torch.where(top < 0, -1.0, 1.0).to(vt.dtype)
    return (u * sign.T).contiguous(), s, (vt * sign).contiguous()


def _others(rows: Tensor, count: int) -> Tensor:
    """Further orthonormal rows [count, in], at right angles to these orthonormal ones."""
    inputs = rows.shape[1]
    drawn = rng.normal(rng.key(0, "further rows", inputs), inputs, count)
    q, _ = torch.linalg.qr(torch.cat([rows.T, drawn], dim=1))
    return _signed(q.new_zeros(0, count), q.new_zeros(count), q[:, rows.shape[0] :].T)[2]
