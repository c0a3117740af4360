"""pFedMe. Dinh et al. 2020, Personalized Federated Learning with Moreau Envelopes, https://arxiv.org/abs/2006.08848,
algorithm 1.

Notation: x shared weights, w a client's copy of them, θ its own model, all [P]; λ how much θ is held to w, η the rate
of w, β that of the server, R local rounds of K steps. θ and w begin at x. In a local round θ takes K steps on one batch
along ∇f(θ) + λ (θ - w), then w follows: w - η λ (w - θ); λ (w - θ) is the gradient of f's Moreau envelope at w. θ goes
on from local round to local round. The server takes (1 - β) x + β times the plain mean of all w.
"""

from dataclasses import dataclass

import torch

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import vectors
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, ClientFailed, Federation, Message, Model, Needs
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params


@dataclass(frozen=True)
class Result(Message):
    """Uplink: counts the same whatever the client trained on."""

    w: Params


@dataclass(frozen=True)
class State:
    """Shared weights."""

    x: Params


@dataclass(frozen=True)
class PFedMe:
    """The shared model is where all clients' own models are near at once. All clients have one layout."""

    lam: float = 15.0
    """λ. At 0 nothing shared moves, and clients train alone."""
    rounds: int = 20
    """R."""
    steps: int = 5
    """K."""
    lr: float = 0.005
    """η; w moves the share η λ of its way to θ in a local round."""
    personal_lr: float | None = None
    """Rate of θ; None: the round's."""
    beta: float = 1.0
    """β."""
    layout: Layout | None = None
    """For the figures of LoRA rounds."""
    needs: Needs = Needs(personal=True)

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(
                f"lam is {self.lam}, but below 0 a client's model is pushed off the shared one; use 0 or more"
            )
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"{self.rounds} local rounds of {self.steps} steps train nothing; both must be at least 1")
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}, but must be above 0, or the server never follows its clients")

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        watch = Watch(self.layout)
        rules = {"w": watch.rule(Mean(uniform=True))}
        got = fed.collect(self.local, lambda _: Start(s.x), fed.cohort(), rules, vectors(w=s.x))
        watch.note(fed, s.x, got.value.w)
        return State(torch.lerp(s.x, got.value.w, self.beta))  # exactly the mean at beta = 1

    def model(self, s: State) -> Model:
        """The shared weights."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: θ near w, then w towards θ, again and again."""
        lam, w, theta, taken = self.lam, down.x, down.x, 0
        for r in range(self.rounds):
            run = await client.descend(
                theta,
                steps=self.steps,
                lr=self.personal_lr,
                correct=lambda g, theta, w: g + lam * (theta - w),
                with_=(w,),
                batches=f"local round {r}",
                one_batch=True,
            )
            theta, taken = run.y, taken + run.steps
            w = w - self.lr * lam * (w - theta)
        if not taken:  # no weight of 0 says so here
            raise ClientFailed(
                f"none of {self.rounds * self.steps} steps could be taken: nothing to learn in its batches"
            )
        client.state["theta"] = theta
        return Result(w)

    async def personal(self, down: Model, client: Client) -> Model:
        """θ; the shared model for a client that never trained."""
        theta = client.state.get("theta")
        return Model(down.x if theta is None else theta, down.carry)
