"""LoRA-A². Koo et al. 2025, Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients,
https://arxiv.org/abs/2410.22815, algorithm 1.

Notation: x shared weights [P]; A [r, in] and B [out, r] of N modules. Rounds take turns as in RoLoRA: B is trained with
A frozen, then A with B frozen; B first, since it is zero at the start and A has no gradient then. Slot i of a module is
the row A[i] with the column B[:, i]. A client first trains the factor for a pass over its rows, and so finds Δ; it
scores slots by ||ΔB[:, i]|| ||A[i]||, or ||B[:, i]|| ||ΔA[i]||, and chooses the best rank · N of them over all modules
together. Then it starts again from x, trains the chosen slots only, and sends how they moved; other slots count as not
moved. The server adds Σ p_k Δ_k. B learns `lr_ratio` times as fast as A.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import vectors
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, ClientFailed, ClientId, Federation, Message, Model, Needs, Weighted
from fedloom.lowrank import pairs
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params
    turn: int
    """0: B is trained; 1: A."""
    slots: int
    """How many slots the client may choose."""


@dataclass(frozen=True)
class Update(Weighted):
    """Uplink."""

    delta: Tensor
    """How the leaves of this turn moved, in the order of the layout; 0 in slots that were not chosen."""


@dataclass(frozen=True)
class State:
    """Shared weights."""

    x: Params


@dataclass(frozen=True)
class LoraA2:
    """Each client trains and sends only the slots that matter to it. All clients have one layout."""

    layout: Layout
    rank: int
    """Slots a client may choose for each module, on average."""
    selection_steps: int | None = None
    """Steps before the choice; None: one pass over the client's rows."""
    lr_ratio: float = 5.0
    """B's learning rate over A's, which is the round's."""
    budget: Callable[[ClientId], int] | None = None
    """Ranks of single clients in place of `rank`."""
    needs: Needs = Needs()

    def __post_init__(self) -> None:
        if not pairs(self.layout):
            raise ValueError("slots are those of LoRA, and no module has both factors trained; choose the adapter lora")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}, but a client that chooses no slot trains nothing; use 1 or more")
        if self.selection_steps is not None and self.selection_steps < 1:
            raise ValueError(
                f"selection_steps is {self.selection_steps}, but slots are chosen by how they move; use 1 or more"
            )
        if self.lr_ratio <= 0:
            raise ValueError(f"lr_ratio is {self.lr_ratio}, but B learns only with a rate above 0")

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        turn = fed.round % 2

        def down(client: ClientId) -> Start:
            self._check(fed.profile(client).layout, client)
            rank = self.rank if self.budget is None else self.budget(client)
            return Start(s.x, turn, rank * len(pairs(self.layout)))

        names = trained(self.layout, turn)
        before = self.layout.take(s.x, names)
        watch = Watch()
        rules = {"delta": watch.rule(Mean())}
        got = fed.collect(self.local, down, fed.cohort(), rules, vectors(delta=before))
        watch.note(fed, torch.zeros_like(before))
        return State(self.layout.put(s.x, names, before + got.value.delta))

    def model(self, s: State) -> Model:
        """The shared weights."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Update:
        """One client: look which slots move, then train those from the start again."""
        layout, x = client.layout, down.x
        names, lr = trained(layout, down.turn), self._rate(down.turn, client)
        chosen = torch.ones_like(x)
        if down.slots < sum(pair.rank for pair in pairs(layout)):  # else all are chosen without a look: RoLoRA
            steps = self.selection_steps or client.passes()
            look = await client.descend(x, steps=steps, lr=lr, train=names)
            if not look.steps:
                raise ClientFailed("no step could be taken to choose slots by: nothing to learn in its batches")
            chosen = choose(scores(x, look.y - x, layout, down.turn), layout, down.slots, down.turn).to(x.dtype)
        run = await client.descend(x, lr=lr, train=names, correct=lambda g, y, chosen: g * chosen, with_=(chosen,))
        # The numbers outside had gradient 0 in every step. An optimiser that begins anew and works number by number
        # leaves them where they were, momentum and all; only weight decay moves them, and is undone here. Without
        # decay this is the same as restoring them after every step; with it they shrink by lr x decay a step meanwhile,
        # which the chosen ones see in the forward pass.
        delta = torch.where(chosen > 0, run.y - x, 0.0)
        return Update(delta=layout.take(delta, names), weight=client.weight(run))

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down

    def _rate(self, turn: int, client: Client) -> float | None:
        return None if turn == 1 or self.lr_ratio == 1 else self.lr_ratio * client.lr

    def _check(self, layout: Layout, client: ClientId) -> None:
        if layout is not self.layout and [leaf.shape for leaf in layout.leaves] != [
            a.shape for a in self.layout.leaves
        ]:
            raise ValueError(
                f"client {client} has an adapter of other shapes than the shared one; here all hold the same ranks and "
                "choose slots of them: leave `clients` ranks out and set how many slots each may choose"
            )


def trained(layout: Layout, turn: int) -> tuple[str, ...]:
    """Names of the leaves that move: B (turn 0) or A (turn 1), and in both turns what is no factor of a pair."""
    frozen = {(pair.a if turn == 0 else pair.b).name for pair in pairs(layout)}
    return tuple(name for name in layout.names if name not in frozen)


def scores(x: Params, delta: Params, layout: Layout, turn: int) -> Tensor:
    """How much each slot matters, module by module [sum of ranks]: the norm of what it would change in the product."""
    still, moved = layout.views(x.double()), layout.views(delta.double())
    found = []
    for pair in pairs(layout):
        a, b = (still, moved) if turn == 0 else (moved, still)
        found.append(b[pair.b.name].norm(dim=0) * a[pair.a.name].norm(dim=1))
    return torch.cat(found)


def choose(score: Tensor, layout: Layout, slots: int, turn: int) -> Tensor:
    """[P] bool: the leaves of this turn without the slots that are not among the best; of equal ones the first."""
    best = torch.zeros_like(score, dtype=torch.bool)
    best[score.sort(descending=True, stable=True).indices[:slots]] = True
    chosen = torch.ones(layout.size, dtype=torch.bool)
    views, begin = layout.views(chosen), 0
    for pair in pairs(layout):
        mine = best[begin : begin + pair.rank]
        if turn == 0:
            views[pair.b.name][:, ~mine] = False
        else:
            views[pair.a.name][~mine] = False
        begin += pair.rank
    return chosen
