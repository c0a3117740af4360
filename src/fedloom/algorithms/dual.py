"""Dual adapters: a shared one and a private one, both at work in every forward pass. Yang et al. 2024,
Dual-Personalizing Adapter for Federated Foundation Models, https://arxiv.org/abs/2403.19211.

Notation: x the shared adapter, v a client's private one, both [P] of the client's layout; their products are added. In
a round v is trained on top of the product of the x that was received, and stays; then x is trained on top of the new
v's product and sent as in FedAvg. Each of them is frozen meanwhile. The paper also weighs the two products for every
single text; here both count fully. Leaves that are no LoRA factors belong to x.
"""

from dataclasses import dataclass, replace

import torch

from fedloom import lowrank
from fedloom.algorithms.fedavg import FedAvg, Result, Start
from fedloom.contracts import Carry, Client, Model, Needs
from fedloom.params import Layout


def joined(carry: Carry, more: Carry) -> Carry:
    """Both at once: factors side by side, module by module, [out, k] and [out, k'] as [out, k + k'].

    Raises:
        ValueError: they are of different numbers of modules.
    """
    if not carry or not more:
        return carry or more
    if len(carry) != len(more):
        raise ValueError(
            f"{len(carry) // 2} and {len(more) // 2} products cannot be added; both must be of the same adapted modules"
        )
    return tuple(torch.cat((one, other), dim=1 - i % 2) for i, (one, other) in enumerate(zip(carry, more, strict=True)))


@dataclass(frozen=True)
class Dual(FedAvg):
    """FedAvg of one adapter, and beside it a private one that learns what is left."""

    @property
    def needs(self) -> Needs:
        """As FedAvg; clients have models of their own."""
        return replace(super().needs, personal=True)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: v over the x it received, which is kept; then x over the new v, which is sent.

        The other way round both would learn the same lesson, and their sum would overshoot.
        """
        factors, plain = _names(client.layout)
        v = client.state.get("v")
        if v is None:  # B is zero, so nothing changes before v has learnt something
            v = lowrank.start(client.layout, client.key("private start"), down.x.dtype)
        own = await client.descend(
            client.layout.put(v, plain, client.layout.take(down.x, plain)),
            carry=joined(down.carry, lowrank.products(down.x, client.layout)),
            train=factors,
        )
        client.state["v"] = own.y
        return await super().local(
            replace(down, carry=joined(down.carry, lowrank.products(own.y, client.layout))), client
        )

    async def personal(self, down: Model, client: Client) -> Model:
        """Both adapters; the shared one alone for a client that never trained."""
        shared, v = await super().personal(down, client), client.state.get("v")
        return shared if v is None else replace(shared, carry=joined(shared.carry, lowrank.products(v, client.layout)))


def _names(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the leaves that are LoRA factors, and of those that are not."""
    plain = tuple(leaf.name for leaf in lowrank.plain(layout))
    factors = tuple(name for name in layout.names if name not in plain)
    if not factors:
        raise ValueError(
            "dual adapters are added as LoRA products, and no module has both factors trained; choose the adapter "
            "lora, or ditto, which takes any"
        )
    return factors, plain
