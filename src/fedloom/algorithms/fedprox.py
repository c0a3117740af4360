"""FedProx. Li et al. 2020, Federated Optimization in Heterogeneous Networks, https://arxiv.org/abs/1812.06127,
algorithm 2.

Notation: x shared weights at the start of the round, y a client's weights on their way, f its loss; x, y are [P].
Clients minimise f(y) + mu/2 |y - x|^2, so each step's gradient gains mu (y - x), which is 0 in the first. The server is
FedAvg's; so is everything at mu = 0.
"""

from dataclasses import dataclass

from fedloom.algorithms.fedavg import FedAvg, Result, Start
from fedloom.contracts import Client


@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg whose clients are held back to where they started.

    The pull is added to the gradient, not to the loss: the logged loss stays the model's own. It acts on the trained
    numbers only, once a step.
    """

    mu: float
    """Strength of the pull; the paper tries 0.001 to 1."""

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu is {self.mu}, which would push clients away from the shared weights; use 0 or more")

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train from x without leaving it too far behind, send what came out."""
        run = await self.train(down, client, correct=lambda g, y, x: g + self.mu * (y - x), with_=(down.x,))
        return self.result(run, down, client)
