"""HetLoRA. Cho et al. 2024, Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models,
https://arxiv.org/abs/2401.06432, section 3.

Notation: A_k [r, in] and B_k [out, r] client k's factors of a module, r its rank there now, γ the share it prunes to,
t = floor(γ r); the tail of a module is ||B[:, t:r]||_F ||A[t:r]||_F. A client receives the first r rows of the shared A
and columns of B, and trains with λ times the sum of all tails added to the loss. If that sum is then smaller than it
was in what it received, every module keeps its first t slots only, from now on (but never fewer than `least_rank`). The
server pads with zeros to the shared rank and weighs by the square root of the sum over modules of ||B_k A_k||_F².

Padding means that a slot nobody of a round holds becomes zero in both factors, and two zeros that face each other never
train again: every cohort should have clients of the largest rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Literal

import torch
from torch import Tensor

from fedloom import lowrank
from fedloom.aggregate.rules import Mean
from fedloom.aggregate.terms import norm
from fedloom.algorithms.fitting import misfit
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, ClientFailed, Federation, Fits, Message, Model, Needs, Rule
from fedloom.lowrank import leading, matched, pairs, vector
from fedloom.lowrank import plain_vector as plain
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink: the first slots, as many as the client's layout has; what it has pruned it cuts off itself."""

    x: Params


@dataclass(frozen=True)
class Result(Message):
    """Uplink."""

    y: tuple[Tensor, ...]
    """(plain [Q], B_1 [out, r_1], A_1 [r_1, in], B_2, A_2, ...) with the new ranks."""
    rank: float
    """Their mean."""


@dataclass(frozen=True)
class State:
    """Shared weights."""

    x: Params


@dataclass
class Padded:
    """A running sum of padded replies [P] in float64."""

    total: Tensor | None = None
    weight: float = 0.0
    """Sum of the norms so far."""
    count: float = 0.0
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class ByNorm:
    """The mean of zero-padded factors weighted by the norm of their products; uniform if all norms are 0."""

    layout: Layout
    linear: bool = False
    reveals: Literal["sum", "each"] = "each"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Padded:
        """Nothing yet."""
        return Padded()

    def add(self, acc: Padded, value: tuple[Tensor, ...], weight: float | None) -> Padded:
        """One more reply: (plain, B_1, A_1, ...), of any ranks up to the shared ones."""
        times = 1.0 if weight is None else weight
        nothing = value[0].new_zeros(0)
        strength = norm((nothing, *value[1:])) * times  # r x r matrices; the product is never formed
        padded = self._padded(value)
        mine = Padded(padded * (strength or times), strength, times, value[0].dtype)
        return self.merge(acc, mine)

    def merge(self, left: Padded, right: Padded) -> Padded:
        """Both sums as one. Replies of norm 0 count only as long as there is no other."""
        if left.total is None or right.total is None:
            return right if left.total is None else left
        if (left.weight == 0) != (right.weight == 0):
            return left if left.weight else right
        return Padded(left.total + right.total, left.weight + right.weight, left.count + right.count, left.dtype)

    def finish(self, acc: Padded) -> Params:
        """The mean, [P]."""
        assert acc.total is not None and acc.dtype is not None  # something was added
        return (acc.total / (acc.weight or acc.count)).to(acc.dtype)

    def _padded(self, value: tuple[Tensor, ...]) -> Params:
        ours, factors, pad = pairs(self.layout), {}, torch.nn.functional.pad
        if len(value) != 1 + 2 * len(ours):
            raise ValueError(f"a reply of {len(value)} tensors does not fit {len(ours)} adapted modules")
        for i, pair in enumerate(ours):
            b, a = value[1 + 2 * i].double(), value[2 + 2 * i].double()
            if b.shape[1] > pair.rank or (b.shape[0], *a.shape) != (pair.outputs, b.shape[1], pair.inputs):
                raise ValueError(
                    f"factors {list(b.shape)} and {list(a.shape)} of {pair.module} cannot be padded to "
                    f"{list(pair.b.shape)} and {list(pair.a.shape)}"
                )
            missing = pair.rank - b.shape[1]
            factors[pair.module] = (pad(a, (0, 0, 0, missing)), pad(b, (0, missing)))
        return vector(self.layout, value[0].double(), factors)


@dataclass(frozen=True)
class HetLora:
    """Clients of different ranks, which they lower by themselves; factors are averaged slot by slot."""

    layout: Layout
    """Of the shared vector: the largest ranks."""
    gamma: float = 0.99
    """γ. 1 never prunes."""
    lam: float = 0.01
    """λ."""
    least_rank: int = 1
    needs: Needs = field(default=Needs(single_replies=True), kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}, but is the share of a rank that is kept: above 0, at most 1")
        if self.lam < 0:
            raise ValueError(f"lam is {self.lam}, but below 0 it would reward what is to be pruned; use 0 or more")
        if self.least_rank < 1:
            raise ValueError(
                f"least_rank is {self.least_rank}, but a module without slots learns nothing; use 1 or more"
            )
        if not pairs(self.layout):
            raise ValueError("ranks are those of LoRA, and no module has both factors trained; choose the adapter lora")

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""

        def down(client: int) -> Start:
            return Start(self.lower(s.x, fed.profile(client).layout))

        watch = Watch()
        rules: dict[str, Rule] = {"y": watch.rule(ByNorm(self.layout)), "rank": Mean(uniform=True)}
        got = fed.collect(self.local, down, fed.cohort(), rules, self.fits(s.x.dtype))
        fed.note(rank=got.value.rank, drift=watch.sketch.drift(bare(s.x, self.layout)))
        return State(got.value.y)

    def fits(self, format: torch.dtype) -> Fits:
        """Whether a reply's factors can be padded and averaged."""
        return lambda _, up: self.misfit(up, format)

    def misfit(self, up: Result, format: torch.dtype) -> str | None:
        """Why a reply's factors cannot be padded, or None."""
        if len(up.y) != 1 + 2 * len(pairs(self.layout)):
            return f"it holds {len(up.y)} tensors, {1 + 2 * len(pairs(self.layout))} are called for"
        for pair, b, a in zip(pairs(self.layout), up.y[1::2], up.y[2::2], strict=True):
            if b.dim() != 2 or b.shape[1] > pair.rank:
                return f"B of {pair.module} is of shape {tuple(b.shape)}, at most {pair.b.shape} fits"
            sides = ("B", b, (pair.outputs, b.shape[1])), ("A", a, (b.shape[1], pair.inputs))
            for name, value, wanted in sides:
                why = misfit(f"{name} of {pair.module}", value, wanted, format)
                if why is not None:
                    return why
        others = sum(leaf.size for leaf in lowrank.plain(self.layout))
        return misfit("the plain part", up.y[0], (others,), format)

    def model(self, s: State) -> Model:
        """The shared weights, at the largest rank."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train what it holds, perhaps prune, send what it still holds."""
        layout, ranks = client.layout, self.ranks(client)
        kept = [floor(self.gamma * r + 1e-9) for r in ranks]  # 1e-9: 0.29 x 100 is 28.999... in floats
        # A pruned slot is a zero row of A against a zero column of B. Each is the other's gradient's factor, so both
        # gradients are 0, and neither an optimiser's step nor weight decay moves a 0: the layout need not change.
        x = _first(down.x, layout, ranks)

        def penalty(leaves: Mapping[str, Tensor], *_: Tensor) -> Tensor:
            return self.lam * tail(leaves, layout, kept, ranks)

        run = await client.descend(x, penalty=penalty if self.lam else None)
        if not run.steps:  # no weight of 0 says so here
            raise ClientFailed("no step could be taken: nothing to learn in its batches")
        before, after = (float(tail(layout.views(v.double()), layout, kept, ranks)) for v in (x, run.y))
        if after < before:
            ranks = [min(r, max(self.least_rank, t)) for r, t in zip(ranks, kept, strict=True)]
        client.state["ranks"] = torch.tensor(ranks, dtype=torch.float64)
        views = layout.views(run.y)
        sent = [plain(run.y, layout)]
        for pair, r in zip(pairs(layout), ranks, strict=True):
            sent += [views[pair.b.name][:, :r].contiguous(), views[pair.a.name][:r].contiguous()]
        return Result(tuple(sent), sum(ranks) / len(ranks))

    async def personal(self, down: Model, client: Client) -> Model:
        """The slots of the shared model this client holds."""
        return Model(_first(self.lower(down.x, client.layout), client.layout, self.ranks(client)), down.carry)

    def lower(self, x: Params, layout: Layout) -> Params:
        """The first slots of the shared vector, as many as a client's layout has.

        Raises:
            ValueError: the client's layout holds something else, a larger rank, or another scale.
        """
        for ours, theirs in matched(self.layout, layout):
            if ours.scale != theirs.scale:
                raise ValueError(
                    f"a client multiplies B A of {ours.module} by {theirs.scale:g}, the shared adapter by "
                    f"{ours.scale:g}: factors of different scales have no mean; give alpha in proportion to the rank"
                )
        return leading(x, self.layout, layout)

    def ranks(self, client: Client) -> list[int]:
        """The client's ranks now, by module."""
        ranks = client.state.get("ranks")
        if ranks is None:
            return [pair.rank for pair in pairs(client.layout)]
        return [int(r) for r in ranks.tolist()]


def tail(leaves: Mapping[str, Tensor], layout: Layout, begin: Sequence[int], end: Sequence[int]) -> Tensor:
    """The sum over modules of ||B[:, begin:end]||_F ||A[begin:end]||_F.

    Differentiable also where B is still zero: torch gives a norm the gradient 0 at 0.
    """
    parts = [
        leaves[pair.b.name][:, t:r].norm() * leaves[pair.a.name][t:r].norm()
        for pair, t, r in zip(pairs(layout), begin, end, strict=True)
    ]
    return torch.stack(parts).sum()


def bare(x: Params, layout: Layout) -> tuple[Tensor, ...]:
    """(plain [Q], B_1, A_1, B_2, A_2, ...) of a vector [P], as clients send it."""
    views = layout.views(x)
    return (plain(x, layout), *(views[leaf.name] for pair in pairs(layout) for leaf in (pair.b, pair.a)))


def _first(x: Params, layout: Layout, ranks: Sequence[int]) -> Params:
    """The vector [P] with zeros in all slots beyond these ranks."""
    x = x.clone()
    views = layout.views(x)
    for pair, r in zip(pairs(layout), ranks, strict=True):
        views[pair.a.name][r:] = 0
        views[pair.b.name][:, r:] = 0
    return x
