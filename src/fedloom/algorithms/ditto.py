"""Ditto. Li et al. 2021, Ditto: Fair and Robust Federated Learning Through Personalization,
https://arxiv.org/abs/2012.04221, algorithm 1.

Notation: x shared weights as a client received them, y what it makes of them, v its own model, λ how much v is held to
x; all [P] of the client's layout. y is trained and sent as in FedAvg. Then v follows ∇f(v) + λ (v - x), with the x of
the round's start, and stays with the client. λ = 0 is training alone; the larger λ, the closer v stays to x.

v - x is taken number by number and v is kept from round to round, so both must mean the same in every round: a space
that carries products to the base or starts factors anew (stacking, SVD) does not go with it.
"""

from dataclasses import dataclass, replace

from fedloom.algorithms.fedavg import FedAvg, Result, Start
from fedloom.contracts import Client, Model, Needs


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and beside it a model for each client that is pulled towards the shared one."""

    lam: float = 0.1
    """λ."""

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(
                f"lam is {self.lam}, but below 0 a client's model is pushed off the shared one; use 0 or more"
            )

    @property
    def needs(self) -> Needs:
        """As FedAvg; clients have models of their own."""
        return replace(super().needs, personal=True)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: y from x, which is sent; then v, which is kept. All leaves of v move, whatever the phase."""
        up = await super().local(down, client)
        v, lam = client.state.get("v"), self.lam
        own = await client.descend(
            down.x if v is None else v,
            carry=down.carry,
            correct=lambda g, v, x: g + lam * (v - x),
            with_=(down.x,),
        )
        client.state["v"] = own.y
        return up

    async def personal(self, down: Model, client: Client) -> Model:
        """Its own model; the shared one for a client that never trained."""
        v = client.state.get("v")
        return await super().personal(down, client) if v is None else Model(v, down.carry)
