"""SCAFFOLD. Karimireddy et al. 2020, Stochastic Controlled Averaging for Federated Learning,
https://arxiv.org/abs/1910.06378, algorithm 1.

Notation: x shared weights, y a client's weights, c_i its control variate and c the server's, both 0 at first, N all
clients, S those that replied, eta the server's rate; vectors are [P]. Steps follow g - c_i + c. The server takes plain
means: x + eta mean_S (y - x), and c + (|S| / N) mean_S (c_i+ - c_i).

What c_i+ is:
- `I`: the gradient of the client's loss at x, by one more pass over its rows: the mean over the batches of that pass,
  with dropout as in training.
- `II`: c_i - c + (x - y) / (sum of learning rates), nearly free, right for plain SGD only.
- `gradient`: the mean of the steps' own gradients, before correction and clipping. For plain SGD at a constant rate
  this is option II, which takes the correction off again. It stays a gradient with any optimiser, but the paper's
  proof of convergence is for SGD; for AdamW there is none.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import vectors
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, ClientFailed, Federation, Message, Model, Needs, Rule, Trained
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params
    c: Tensor


@dataclass(frozen=True)
class Result(Message):
    """Uplink: weights, and how the client's control variate changed."""

    y: Params
    dc: Tensor


@dataclass(frozen=True)
class State:
    """Shared weights and the server's control variate."""

    x: Params
    c: Tensor


@dataclass(frozen=True)
class Scaffold:
    """Averaging with the clients' drift taken out of their gradients."""

    server_lr: float = 1.0
    option: Literal["gradient", "I", "II"] = "gradient"
    layout: Layout | None = None
    """For the figures of LoRA rounds."""

    @property
    def needs(self) -> Needs:
        """Option II reads gradients from how far plain SGD went."""
        return Needs(sgd_only=self.option == "II")

    def init(self, start: Params) -> State:
        """No correction in the first round."""
        return State(start, torch.zeros_like(start))

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        fits = vectors(y=s.x, dc=s.c)
        watch, mean = Watch(self.layout), Mean(uniform=True)
        rules: dict[str, Rule] = {"y": watch.rule(mean), "dc": mean}
        got = fed.collect(self.local, lambda _: Start(s.x, s.c), fed.cohort(), rules, fits)
        watch.note(fed, s.x, got.value.y)
        share = len(got.clients) / len(fed.clients)
        return State(torch.lerp(s.x, got.value.y, self.server_lr), s.c + share * got.value.dc)

    def model(self, s: State) -> Model:
        """The shared weights."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train along corrected gradients, look at its own gradient anew."""
        c_i = client.state.get("c", like=down.x)
        run = await client.descend(
            down.x,
            correct=lambda g, y, c_i, c: g - c_i + c,
            with_=(c_i, down.c),
            gradient=self.option == "gradient",
        )
        match self.option:
            case "gradient":
                new = mean_gradient(run)
            case "I":
                new = mean_gradient(await client.descend(down.x, lr=0.0, steps=client.passes(1), gradient=True))
            case "II":
                new = c_i - down.c + travelled(down.x, run)
        client.state["c"] = new
        return Result(run.y, new - c_i)

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down


def travelled(x: Params, run: Trained) -> Tensor:
    """The mean direction plain SGD went from x, weighted by its rates: (x - y) / (sum of rates), [P]."""
    if run.steps == 0 or run.lr_sum == 0:
        raise ClientFailed(
            f"{run.steps} steps with rates that sum to {run.lr_sum} went nowhere, which says nothing about its gradient"
        )
    return (x - run.y) / run.lr_sum


def mean_gradient(run: Trained) -> Tensor:
    """The mean raw gradient of a training, [P]."""
    if run.gradient is None or run.steps == 0:
        raise ClientFailed("it took no step and saw no gradient to make its control variate of")
    return run.gradient
