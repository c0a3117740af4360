"""Little federations of LoRA clients: layouts of any rank and scale, products written out, one round of a space."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from fedloom.params import Layout, Leaf

ORACLES = json.loads((Path(__file__).parents[1] / "oracles_lora.json").read_text())
LAW = settings(deadline=None, derandomize=True, max_examples=40)
SHAPES = {"first": (5, 4), "second": (3, 6)}
"""(out, in) of the adapted modules."""
ROOM = {"first": 4, "second": 3}
"""The largest rank each may have."""


def scaling(alpha, rank, rslora=False):
    return alpha / (rank**0.5 if rslora else rank)


def lora(ranks, scales, shapes=SHAPES, transposed=False, plain=True):
    """Pairs of these ranks and scales by module, with a plain leaf between them."""
    leaves = []
    for module, (out, inside) in shapes.items():
        common = {"module": module, "scale": float(scales[module]), "transposed": transposed}
        leaves.append(Leaf(f"{module}.A", (ranks[module], inside), factor="A", **common))
        leaves.append(Leaf(f"{module}.B", (out, ranks[module]), factor="B", **common))
        if plain and len(leaves) == 2:
            leaves.append(Leaf("bias", (2,)))
    return Layout.of(leaves)


def single(rank, scale, side=2):
    """One pair of a square matrix, and nothing else."""
    return lora({"w": rank}, {"w": scale}, {"w": (side, side)}, plain=False)


def drawn(layout, seed, dtype=torch.float64):
    return torch.randn(layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Group:
    """Clients with their layouts, results and weights, and the shared layout over them."""

    shared: Layout
    layouts: list
    ys: list
    weights: list

    @property
    def start(self):
        return drawn(self.shared, 99, self.ys[0].dtype)


@st.composite
def groups(draw, mixed=True, one_scale=False, dtypes=(torch.float64, torch.float32)):
    """A federation: ranks, alpha / r or alpha / sqrt(r), weights, orientation, and format at random."""
    count, transposed, rslora = draw(st.integers(1, 4)), draw(st.booleans()), draw(st.booleans())
    alpha, dtype, seed = (
        draw(st.sampled_from([1.0, 3.0, 16.0])),
        draw(st.sampled_from(dtypes)),
        draw(st.integers(0, 10**6)),
    )

    def scales(ranks):
        return {m: 2.0 if one_scale else scaling(alpha, ranks[m], rslora) for m in SHAPES}

    def made(ranks):
        return lora(ranks, scales(ranks), transposed=transposed)

    shared = {m: ROOM[m] for m in SHAPES}
    rank = st.fixed_dictionaries({m: st.integers(1, ROOM[m]) for m in SHAPES})
    layouts = [made(draw(rank) if mixed else shared) for _ in range(count)]
    weights = [float(draw(st.integers(1, 50))) for _ in range(count)]
    return Group(made(shared), layouts, [drawn(lay, seed + i, dtype) for i, lay in enumerate(layouts)], weights)


def tolerance(group):
    return 1e-10 if group.ys[0].dtype == torch.float64 else 2e-4


def collected(rule, values, weights):
    acc = rule.start()
    for value, weight in zip(values, weights, strict=True):
        acc = rule.add(acc, value, weight)
    return rule.finish(acc)


def mean(space, group, phase=0):
    """The combined term."""
    lifted = [space.lift(y, lay, phase) for y, lay in zip(group.ys, group.layouts, strict=True)]
    return collected(space.rule, lifted, group.weights)


def closed(space, group, shared=None, carry=(), round=0):
    """(shared vector, carry) after one round of these clients."""
    start = group.start if shared is None else shared
    return space.close(start, carry, mean(space, group, space.phase(round)), round)


def dense(x, layout):
    """scale B A by module, written out with numpy."""
    views = {name: view.double().numpy() for name, view in layout.views(x).items()}
    modules = dict.fromkeys(leaf.module for leaf in layout.leaves if leaf.factor != "plain")
    scales = {leaf.module: leaf.scale for leaf in layout.leaves}
    return {m: scales[m] * views[f"{m}.B"] @ views[f"{m}.A"] for m in modules}


def written(term_or_carry, modules=SHAPES):
    """L R by module of a term or a carry."""
    factors = term_or_carry[len(term_or_carry) % 2 :]
    pairs = zip(factors[::2], factors[1::2], strict=True)
    return {m: left.double().numpy() @ right.double().numpy() for m, (left, right) in zip(modules, pairs, strict=True)}


def exact(group):
    """Σ p_i s_i B_i A_i by module."""
    total = sum(group.weights)
    every = [dense(y, lay) for y, lay in zip(group.ys, group.layouts, strict=True)]
    return {m: sum(w / total * one[m] for w, one in zip(group.weights, every, strict=True)) for m in every[0]}


def best(matrix, rank):
    """The best approximation of a rank, by numpy."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def plain_mean(group):
    total = sum(group.weights)
    rows = [lay.views(y)["bias"].double().numpy() for y, lay in zip(group.ys, group.layouts, strict=True)]
    return sum(w / total * row for w, row in zip(group.weights, rows, strict=True))


def close_to(left, right, atol):
    for module in right:
        np.testing.assert_allclose(left[module], right[module], rtol=0, atol=atol)


def oracle(name, scales=None):
    """(inputs, outputs, group) of a named entry with clients A, B of one matrix; scales alpha / r unless given."""
    entry = ORACLES[name]
    inputs, outputs = entry["inputs"], entry["outputs"]
    ranks = [len(a) for a in inputs["A"]]
    if scales is None:
        scales = [inputs["alpha"] / rank for rank in ranks]
    layouts = [single(rank, scale) for rank, scale in zip(ranks, scales, strict=True)]
    ys = [
        layout.gather({"w.A": tensor(a), "w.B": tensor(b)}, torch.float64)
        for layout, a, b in zip(layouts, inputs["A"], inputs["B"], strict=True)
    ]
    top = ranks.index(max(ranks))
    return (
        inputs,
        outputs,
        Group(layouts[top], layouts, ys, [40 * p for p in inputs.get("p", [1 / len(ranks)] * len(ranks))]),
    )


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def trained(x, layout, active, inputs, client):
    """Full-gradient steps of one client on 1/2 |s B A x - y|², on the active leaves."""
    x = x.clone()
    row, target = tensor(inputs["x"][client]), tensor(inputs["y"][client])
    for _ in range(inputs["local_steps"]):
        now = x.clone().requires_grad_()
        views = layout.views(now)
        loss = (inputs["s"] * views["w.B"] @ views["w.A"] @ row - target).square().sum() / 2
        (slope,) = torch.autograd.grad(loss, now)
        for name in active:
            layout.views(x)[name].sub_(inputs["lr"] * layout.views(slope)[name])
    return x
