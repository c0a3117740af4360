"""FedRep. Collins et al. 2021, Exploiting Shared Representations for Personalized Federated Learning,
https://arxiv.org/abs/2102.07078, algorithm 1.

A model in two parts as in FedPer: a head that stays with its client, a body that is averaged. A client first trains its
head on the body it received, then the body under the new head, and sends the body.
"""

from dataclasses import dataclass

from fedloom.algorithms.fedper import FedPer, Result, Start
from fedloom.contracts import Client


@dataclass(frozen=True)
class FedRep(FedPer):
    """The parts are trained one after the other, the private one first. All clients have one layout."""

    head_steps: int | None = None
    """Steps of the head; None: the recipe's."""
    body_steps: int | None = None
    """Steps of the body; None: the recipe's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, steps in (("head_steps", self.head_steps), ("body_steps", self.body_steps)):
            if steps is not None and steps < 1:
                raise ValueError(f"{name} is {steps}, but both parts are trained; choose at least 1")

    async def local(self, down: Start, client: Client) -> Result:
        """One client: the head on a frozen body, the body under the new head."""
        x, private = self.own(down.x, client), client.layout.named(self.private)
        head = await client.descend(x, steps=self.head_steps, train=private)
        body = await client.descend(head.y, steps=self.body_steps, train=self.shared(client.layout))
        return Result(shared=self.keep(body.y, client), weight=client.weight(body))
