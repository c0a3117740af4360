"""FedBiOT. Wu et al. 2024, FedBiOT: LLM Local Fine-tuning in Federated Learning without Full Model,
https://arxiv.org/abs/2406.17706: offsite-tuning whose emulator follows what the clients tune.

Notation: x the emulator's vector [P]: LoRA factors in all of its blocks. Leaves in the clients' blocks are the adapter
φ, those in the blocks that stand for the owner's the emulator ψ. n examples of a client, s what a product is scaled by.
Each round the clients get both, train φ alone on their loss + λ Σ over modules ‖s B A − s B0 A0‖² (0 where they began),
and send it: φ = Σ n_i φ_i / Σ n_i. Then the server's own worker trains ψ alone, on public rows, to act like the owner's
model that carries the new φ (`fedloom.engine.fitting`). That is done before the first round, too. φ is what goes back
into the owner's model; ψ stays out of it.

With λ = 0 and no alignment φ is that of FedAvg on an emulator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.aggregate.server import Momenta, ServerOptimizer, ServerSgd
from fedloom.algorithms.fitting import vectors
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, ClientFailed, Federation, Fitting, Message, Model, Needs, Weighted
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Start(Message):
    """To clients."""

    x: Params
    """Adapter and emulator."""


@dataclass(frozen=True)
class Result(Weighted):
    """From clients."""

    adapter: Tensor
    """Numbers of the adapter's leaves, in the order of the layout."""


@dataclass(frozen=True)
class Lesson(Message):
    """To the server's own worker."""

    x: Params
    steps: int


@dataclass(frozen=True)
class Followed(Message):
    """From the worker."""

    emulator: Tensor
    """Numbers of the emulator's leaves, in the order of the layout."""
    distance: float
    """Of what the two models' blocks put out, while it was aligned."""
    divergence: float
    """Of their words, per token."""
    steps: int
    skipped: int


@dataclass(frozen=True)
class State:
    """Adapter and emulator, the server optimiser's memory, and whether the emulator was aligned before the clients."""

    x: Params
    memory: Momenta
    begun: int


@dataclass(frozen=True)
class FedBiot:
    """Both levels in turns. All clients have one layout."""

    layout: Layout
    adapter: tuple[str, ...]
    """Leaves in the clients' blocks."""
    fitting: Fitting
    server: ServerOptimizer = ServerSgd()
    lam: float = 0.0
    """How strongly clients are held to where they began."""
    before: int = 0
    """Steps of the emulator before the first round."""
    steps: int = 0
    """And after each."""

    def __post_init__(self) -> None:
        if not self.adapter:
            raise ValueError("no block is the clients'; set offsite")
        if not self.emulator:
            raise ValueError(
                "no trained tensor is in the blocks that stand for the owner's, so nothing could be aligned; let "
                "adapter.targets name layers of all blocks"
            )

    @property
    def needs(self) -> Needs:
        """The worker and its rows, if there is anything to align."""
        aligns = bool(self.before or self.steps)
        return Needs(home=aligns, public_rows=aligns)

    @property
    def emulator(self) -> tuple[str, ...]:
        """Leaves in the blocks that stand for the owner's."""
        adapter = set(self.adapter)
        return tuple(name for name in self.layout.names if name not in adapter)

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start, self.server.start(self.layout.take(start, self.adapter)), 0)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server: the adapter follows its clients, then the emulator follows the owner's model."""
        x = s.x if s.begun else self.followed(s.x, self.before, fed)
        before, watch = self.layout.take(x, self.adapter), Watch()
        rules = {"adapter": watch.rule(Mean())}
        got = fed.collect(self.local, lambda _: Start(x), fed.cohort(), rules, vectors(adapter=before))
        watch.note(fed, before)
        term, memory = self.server.step(before, got.value.adapter, s.memory)
        assert isinstance(term, Tensor)  # a vector goes in
        return State(self.followed(self.layout.put(x, self.adapter, term), self.steps, fed), memory, 1)

    def followed(self, x: Params, steps: int, fed: Federation) -> Params:
        """[P]: x with the emulator aligned to the owner's model that carries x's adapter."""
        if not steps:
            return x
        assert fed.home is not None  # declared in `needs`
        like = vectors(emulator=self.layout.take(x, self.emulator))
        got = fed.collect(self.align, lambda _: Lesson(x, steps), [fed.home], Mean(uniform=True), like)
        fed.note(emulator_distance=got.value.distance, emulator_divergence=got.value.divergence)
        return self.layout.put(x, self.emulator, got.value.emulator)

    def model(self, s: State) -> Model:
        """Adapter and emulator."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train the adapter beside the emulator as it is, send it."""
        penalty = self.penalty if self.lam else None
        run = await client.descend(down.x, train=self.adapter, penalty=penalty, with_=(down.x,))
        return Result(adapter=self.layout.take(run.y, self.adapter), weight=client.weight(run))

    async def align(self, down: Lesson, client: Client) -> Followed:
        """The server's own worker: train the emulator beside the adapter as it is."""
        run = await client.align(down.x, self.fitting, steps=down.steps, train=self.emulator)
        if run.distance is None or run.divergence is None:
            raise ClientFailed("nothing was aligned: no step was taken")
        emulator = self.layout.take(run.y, self.emulator)
        return Followed(emulator, run.distance, run.divergence, run.steps, run.skipped)

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down

    def penalty(self, leaves: Mapping[str, Tensor], start: Params) -> Tensor:
        """λ Σ over the adapter's modules of ‖s B A − s B0 A0‖², at these trainable tensors and the start [P].

        The published code takes the present weights out of `state_dict()`, where they are cut off from the graph: its
        penalty is logged and has no gradient. This one has.
        """
        first, adapter, total = self.layout.views(start), set(self.adapter), start.new_zeros(())
        for leaf in self.layout.leaves:
            if leaf.factor == "B" and leaf.name in adapter:
                a, b = f"{leaf.module}.A", leaf.name
                total = total + leaf.scale**2 * moved(leaves[a], leaves[b], first[a], first[b])
        return self.lam * total


def moved(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """‖B A − B0 A0‖² of A [r, in] and B [out, r], never written out.

    B A − B0 A0 = (B − B0) A + B0 (A − A0) = L R with L = [B − B0, B0] and R = [A; A − A0], so its square is the sum of
    (LᵀL) ∘ (R Rᵀ), two matrices [2r, 2r]. All terms are small where little has moved, so nothing cancels.
    """
    left, right = torch.cat([b - b0, b0], 1), torch.cat([a, a - a0])
    return ((left.T @ left) * (right @ right.T)).sum()
