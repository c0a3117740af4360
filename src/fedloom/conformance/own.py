"""A space of fedloom as an aggregation function: lift each client, fold with the rule, close, read what came out."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from fedloom.conformance.answers import Aggregate, Array, Base, Client, Factors
from fedloom.contracts import Space
from fedloom.params import Layout, Leaf, Params

MODULE = "layer"


def through(
    make: Callable[[Layout], Space], *, rank: Literal["largest", "full"] = "largest", phase: int = 0
) -> Aggregate:
    """An aggregation function that is one round of a space, for one layer.

    Args:
        make: the space of a shared layout.
        rank: of the shared adapter: the largest client's, or as large as the layer allows.
        phase: which one the round is in.
    """

    def aggregate(clients: Sequence[Client], base: Base) -> Factors:
        outputs, inputs = base.weight.shape[::-1] if base.transposed else base.weight.shape
        first, widest = clients[0], max(clients, key=lambda client: client.rank)
        # as a server of full rank would have it: any scale does, since clients carry their own
        shared_rank = min(outputs, inputs) if rank == "full" else widest.rank
        layout = _layout(outputs, inputs, shared_rank, widest.scale, base.transposed)
        space = make(layout)
        shared = _vector(layout, first.a, first.b)
        # one product has left the adapter before this round: it must stay where it is
        left = (torch.from_numpy(first.b[:, :1].copy()), torch.from_numpy(first.a[:1].copy()))
        rule, turn = space.rule, next(i for i in range(space.phases) if space.phase(i) == phase)
        acc = rule.start()
        for client in clients:
            own = _layout(outputs, inputs, client.rank, client.scale, base.transposed)
            acc = rule.add(acc, space.lift(_vector(own, client.a, client.b), own, phase), client.weight)
        new, carry = space.close(shared, left, rule.finish(acc), turn)
        views = layout.views(new)
        moved = _product(carry) - _product(left)
        residual = moved.T if base.transposed else moved
        return Factors(views[f"{MODULE}.A"].numpy(), views[f"{MODULE}.B"].numpy(), widest.scale, residual)

    return aggregate


def _layout(outputs: int, inputs: int, rank: int, scale: float, transposed: bool) -> Layout:
    a = Leaf(f"{MODULE}.A", (rank, inputs), factor="A", module=MODULE, scale=scale, transposed=transposed)
    b = Leaf(f"{MODULE}.B", (outputs, rank), factor="B", module=MODULE, scale=scale, transposed=transposed)
    return Layout.of([a, b])


def _vector(layout: Layout, a: Array, b: Array) -> Params:
    """[P], the factors with zeros up to the layout's rank."""
    more = layout.leaves[0].shape[0] - len(a)
    tensors = {
        f"{MODULE}.A": torch.from_numpy(np.pad(a, ((0, more), (0, 0)))),
        f"{MODULE}.B": torch.from_numpy(np.pad(b, ((0, 0), (0, more)))),
    }
    return layout.gather(tensors, dtype=tensors[f"{MODULE}.A"].dtype)


def _product(carry: tuple[torch.Tensor, ...]) -> Array:
    left, right = (part.to(torch.float64).numpy() for part in carry)
    return left @ right
