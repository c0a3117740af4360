"""The server's optimiser: how the shared vector follows the mean of what came back."""

from dataclasses import dataclass

import torch

from fedloom.params import Params


@dataclass(frozen=True)
class ServerSgd:
    """v = momentum v + (mean - x); x = x + lr v.

    FedAvgM without dampening (Hsu et al. 2019, https://arxiv.org/abs/1909.06335). lr = 1 without momentum takes the
    mean itself, bit for bit.
    """

    lr: float = 1.0
    momentum: float = 0.0

    def start(self, x: Params) -> Params:
        """The velocity before the first round, [P]."""
        return torch.zeros_like(x)

    def step(self, x: Params, mean: Params, v: Params) -> tuple[Params, Params]:
        """The next shared vector and velocity, both [P]."""
        follow = torch.lerp(x, mean, self.lr)  # exactly the mean at lr = 1; x + lr (mean - x) would round
        if self.momentum == 0:
            return follow, v
        return follow + self.lr * self.momentum * v, self.momentum * v + (mean - x)
