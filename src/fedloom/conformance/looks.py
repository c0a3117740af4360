"""What a wrong answer looks like: the defects that are common in aggregation code, recognised by their numbers.

An answer is explained, not guessed at: a suspicion is voiced when the answer equals what the defect would give. Names
are the same in all cells, so that the one that fits every failing cell can be told from coincidences.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from fedloom.conformance.answers import RESIDUAL_TURNED, Array
from fedloom.conformance.cells import Case

MATCH = 3e-5
"""Relative distance at which two updates are the same for this purpose; beyond fp32's errors, below low drift's."""

TURNED = "the transpose of the right answer"
APART = "the factors averaged apart (FedIT), without the residual"
COARSE = "arithmetic in a coarser number format than the input's"
CUT = "the best answer of its rank (right for FlexLoRA: --truncated)"


def suspects(case: Case, answer: Array, target: Array) -> tuple[str, ...]:
    """Names of the defects that would give this answer, likeliest first; empty when none is known.

    Args:
        case: the cell.
        answer: [out, in], finite.
        target: [out, in], what should have come out.
    """
    if not answer.any():
        return ("zero: nothing is added to the layer",)
    distance = _norm(answer - target) / _norm(target)
    if distance < MATCH:
        return (COARSE,)
    upright = case.base.weight.T if case.base.transposed else case.base.weight
    names = [*_mixtures(case, answer), *_means(case, answer), *_spectrum(target, answer)]
    if answer.T.shape == target.shape:
        if same(answer.T, target):
            names.insert(0, TURNED)
        names += [f"transposed, and {name}" for name in (*_mixtures(case, answer.T), *_spectrum(target, answer.T))]
    if same(answer - upright, target, MATCH * (1 + _norm(upright) / _norm(target))):
        names.append("the base weight itself is in the update (answer the difference)")
    if not names and distance < 0.03:
        names.append(COARSE)
    return tuple(names)


def turned_suspects(case: Case, turned: Array, right: Array) -> tuple[str, ...]:
    """The same for an answer [in, out] whose shape alone says that it is transposed."""
    if same(turned.T, right):
        return (TURNED,)
    return tuple(f"transposed, and {name}" for name in suspects(case, turned.T, right)) or ("transposed",)


def same(left: Array, right: Array, tolerance: float = MATCH) -> bool:
    """Whether two matrices agree but for rounding."""
    return left.shape == right.shape and _norm(left - right) <= tolerance * max(_norm(right), 1e-300)


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))


def _mixtures(case: Case, answer: Array) -> Iterator[str]:
    """The answer is some other weighted sum of the clients' own products."""
    basis = case.products.reshape(len(case.clients), -1).T
    found, *_ = np.linalg.lstsq(basis, answer.reshape(-1), rcond=None)
    if not same(basis @ found, answer.reshape(-1)):
        return
    p, count = case.p, len(case.clients)
    scale = np.array([client.scale for client in case.clients])
    alpha = np.array([client.alpha for client in case.clients])
    rank = np.array([client.rank for client in case.clients])
    weights = np.array([client.weight for client in case.clients])
    uniform, ones = np.full(count, 1 / count), np.ones(count)
    known = {
        "the scale left out": p / scale,
        "the scale counted twice": p * scale,
        "alpha / r for rank-stabilised scaling": p * (alpha / rank) / scale,
        "alpha / sqrt(r) for plain scaling": p * (alpha / np.sqrt(rank)) / scale,
        "the first client's scale for everybody": p * scale[0] / scale,
        "uniform weights, not those given": uniform,
        "uniform weights, and the scale left out": uniform / scale,
        "weights that count twice": p * p,
        "weights that count twice, renormalised": p * p / (p @ p),
        "weights that count twice, and the scale left out": p * p / scale,
        "weights that are not normalised": weights,
        "weights not normalised, and the scale left out": weights / scale,
        "a sum over clients, not a mean": ones,
        "a sum over clients, and the scale left out": ones / scale,
        "a mean that is divided by the number of clients again": p / count,
        "the opposite sign": -p,
    }
    for name, shares in known.items():
        if same(found, shares, 30 * MATCH) and not same(shares, p, 30 * MATCH):
            yield name
    if count > 1:
        large = np.abs(found) > 30 * MATCH * np.abs(found).max()
        for name, i in (("first", 0), ("last", count - 1)):
            if large[i] and large.sum() == 1:
                yield f"only the {name} client counted"
        if large.sum() < count:
            yield f"only {large.sum()} of {count} clients counted"
    factor = float(found @ p / (p @ p))
    if same(found, factor * p, 30 * MATCH):
        if not same(found, p, 30 * MATCH):
            yield f"{factor:.3g} times the right answer"
    else:
        yield f"client shares {_list(found)}, not {_list(p)}"


def _list(numbers: Array) -> str:
    return " ".join(f"{number:.3g}" for number in numbers)


def _means(case: Case, answer: Array) -> Iterator[str]:
    """The answer is a product of averaged factors, alone or with a wrong residual (FedEx)."""
    count, p = len(case.clients), case.p
    if count == 1:
        return
    widest = max(client.rank for client in case.clients)
    outputs, inputs = case.target.shape
    a, b = np.zeros((count, widest, inputs)), np.zeros((count, outputs, widest))
    for i, client in enumerate(case.clients):
        a[i, : client.rank], b[i, :, : client.rank] = client.a, client.b
    plain = np.stack([left @ right for left, right in zip(b, a, strict=True)])
    shares = {"": p, "uniform": np.full(count, 1 / count)}
    means = {name: np.tensordot(q, b, 1) @ np.tensordot(q, a, 1) for name, q in shares.items()}
    products = {name: np.tensordot(q, plain, 1) for name, q in shares.items()}
    scales = sorted({client.scale for client in case.clients})
    folded = np.tensordot(p, b * np.array([c.scale for c in case.clients])[:, None, None], 1) @ np.tensordot(p, a, 1)
    if same(answer, folded) and not same(folded, case.target):
        yield APART
    for scale in scales:
        for name, mean in means.items():
            if same(answer, scale * mean) and not same(scale * mean, case.target):
                yield APART + (", and uniform weights" if name else "")
        for name, mean in means.items():
            if same(answer, mean) and not same(mean, case.target):
                yield APART + ", and the scale left out" + (", uniform weights" if name else "")
        for kept, summed, taken, inner, turned in product(shares, shares, shares, (scale, 1.0), (False, True)):
            residual = inner * (products[summed] - means[taken])
            if turned and outputs != inputs:
                continue
            guess = scale * means[kept] + (residual.T if turned else residual)
            if same(answer, guess) and not same(guess, case.target):
                words = [RESIDUAL_TURNED] if turned else []
                words += ["the residual without the scale"] if inner == 1.0 != scale else []
                if not kept == summed == taken:
                    words.append("uniform and weighted means mixed in the residual")
                elif kept:
                    words.append("uniform weights, not those given")
                yield ", ".join(words) if words else "a residual that does not fit"


def _spectrum(target: Array, answer: Array) -> Iterator[str]:
    """The answer has the target's singular vectors, but not its singular values."""
    u, s, vt = np.linalg.svd(target, full_matrices=False)
    inside = u.T @ answer @ vt.T
    found = np.diag(inside)
    if not same(u @ np.diag(found) @ vt, answer):
        return
    count = int((s > 1e-6 * s[0]).sum())
    kept = int((np.abs(found) > 1e-5 * np.abs(found).max()).sum())
    if kept < 2 or np.any(np.abs(found[:kept]) <= 1e-5 * np.abs(found).max()):
        return
    head, values = found[:kept], s[:kept]
    cut = kept < count
    if cut and same(head, values):
        yield CUT
    elif not same(head * values[0], head[0] * values):
        for power, name in ((0.5, "a square root of the singular values lost"), (2.0, "singular values counted twice")):
            if same(head * values[0] ** power, head[0] * values**power, 30 * MATCH):
                yield name
        if same(head, np.full(kept, head[0]), 30 * MATCH):
            yield "the singular values left out"
    elif cut:
        yield "a multiple of the best answer of its rank"
