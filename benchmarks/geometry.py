"""FlexLoRA's split of averaged products through their factors, against the matrix written out and a full SVD.

One module of 4096 x 4096; clients of ranks 4, 8, 16 in turn, shared rank 16; one thread, CPU seconds. Dense: W = L R in
float32 (one product), `torch.linalg.svd`. Ours: `Products.close`, from the same stacked factors to the shared vector.
Spectra: `alike`, clients that go mostly the same way, falling singular values; `flat`, factors drawn apart, the hardest
case, since neighbouring singular values nearly agree.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import median, say, table, write
from torch import Tensor

from fedloom import rng
from fedloom.params import Layout, Leaf
from fedloom.spaces.products import Products

SIDE, SHARED, RANKS = 4096, 16, (4, 8, 16)
CASES = ((100, "alike"), (10, "alike"), (100, "flat"), (10, "flat"), (150, "alike"), (150, "flat"))
"""Clients and spectrum; 150 clients stack to more than a quarter of the matrix, where the split is randomised."""
REPEATS = 5


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for clients, spectrum in CASES:
        rows.append(measure(clients, spectrum))
        say(str(rows[-1]))
    say(table(rows))
    write("geometry", "python benchmarks/run.py geometry", {"side": SIDE, "shared rank": SHARED, "rows": rows})
    return 0


def measure(clients: int, spectrum: str) -> dict[str, Any]:
    shared = layout(SHARED)
    space = Products(shared)
    acc = space.rule.start()
    for i in range(clients):
        mine = layout(RANKS[i % len(RANKS)])
        acc = space.rule.add(acc, space.lift(client(i, mine, spectrum), mine, 0), 1.0 + i % 3)
    term = space.rule.finish(acc)
    left, right = term[1], term[2]
    zero = torch.zeros(shared.size)
    ours = median([seconds(lambda: space.close(zero, (), term, 0))[0] for _ in range(REPEATS)])
    x, _ = space.close(zero, (), term, 0)
    dense, exact = seconds(lambda: torch.linalg.svd(left @ right, full_matrices=False)[1][:SHARED])
    b = shared.views(x)["w.B"] * shared.leaves[1].scale
    off = ((b.double().norm(dim=0) - exact.double()).abs() / exact.double()).max()
    return {
        "clients": clients, "stack": left.shape[1], "spectrum": spectrum, "dense s": round(dense, 2),
        "ours s": round(ours, 4), "times faster": round(dense / ours, 1), "singular values differ by": f"{off:.1e}",
        "largest / 16th": round(float(exact[0] / exact[-1]), 2),
    }  # fmt: skip


def client(i: int, mine: Layout, spectrum: str) -> Tensor:
    """One client's factors after training, [P] of its layout."""
    rank = mine.leaves[0].shape[0]
    a, b = drawn("A", i, rank, SIDE) / SIDE**0.5, drawn("B", i, SIDE, rank)
    if spectrum == "alike":  # a common start of A and a common way of B, weaker from component to component
        fall = 0.8 ** torch.arange(rank)
        a = drawn("A", -1, SHARED, SIDE)[:rank] / SIDE**0.5 + 0.2 * a
        b = (drawn("B", -1, SIDE, SHARED)[:, :rank] + 0.5 * b) * fall
    return mine.gather({"w.A": a, "w.B": 0.01 * b})


def drawn(factor: str, i: int, *shape: int) -> Tensor:
    return rng.normal(rng.key(0, "geometry", factor, i), *shape).float()


def layout(rank: int) -> Layout:
    scale = 32.0 / rank
    return Layout.of(
        [
            Leaf("w.A", (rank, SIDE), factor="A", module="w", scale=scale),
            Leaf("w.B", (SIDE, rank), factor="B", module="w", scale=scale),
        ]
    )


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


if __name__ == "__main__":
    sys.exit(main())
