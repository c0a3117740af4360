"""FedKSeed, FedKSeed-Pro. Qin et al. 2024, Federated Full-Parameter Tuning of Billion-Sized Language Models with
Communication Cost under 18 Kilobytes, https://arxiv.org/abs/2312.06353, algorithm 1.

Notation: z_k the direction of seed k of a pool of K that everybody knows; g a slope, (L(w + epsilon z_k) -
L(w - epsilon z_k)) / 2 epsilon; eta the learning rate; A_k the amount the shared model went along z_k; p_k how likely a
step takes seed k. In each of its tau steps a client draws k from p and goes w <- w - eta g z_k. It sends -eta g and k
of each step, or their sums by seed, whichever is less; the server adds A_k += sum_i n_i a_ik / sum_i n_i. The shared
model is start + sum_k A_k z_k: a function of K numbers, so nobody sends or keeps a model, and who was away rebuilds
it. (The paper adds up g and multiplies by one eta at the end; with eta inside, rates may fall over the rounds.)
Pro: p = softmax of the mean |g| of each seed so far, scaled to 0..1; no seed is more than e times as likely as another.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedloom import rng
from fedloom.algorithms.fitting import misfit
from fedloom.algorithms.seeded import Agreed, origin, stranger
from fedloom.contracts import (
    Client,
    ClientFailed,
    ClientId,
    Drift,
    Federation,
    Fits,
    Message,
    Model,
    Needs,
    Rule,
    Wandered,
    Weighted,
)
from fedloom.drift import pool
from fedloom.noise import Kind
from fedloom.params import Layout, Params

Draws: TypeAlias = Literal["client", "server"]
NARROW = 1 << 15
"""Seeds are numbered in two bytes below this, in four from it on."""


@dataclass(frozen=True)
class Start(Message):
    """Downlink; empty tensors where nothing is said."""

    amounts: Tensor
    """[K] float32: where the shared model is."""
    p: Tensor
    """[K] float32: Pro, where clients draw."""
    draws: Tensor
    """[steps] whole numbers: seeds of the client's steps, where the server draws."""
    scales: Tensor
    """[steps] float32: 1 / K p of these, where the rate is corrected."""


@dataclass(frozen=True)
class Moves(Message):
    """Where a client went."""

    index: Tensor
    """[n] whole numbers: the seed of each step taken; empty: `amounts` is by seed."""
    amounts: Tensor
    """[n] float32: -eta g of each step; or [K], their sums."""
    rate: float
    """The eta of this round, before any correction."""


@dataclass(frozen=True)
class Result(Weighted):
    """Uplink."""

    moves: Moves
    origin: str
    """What the client's directions are made of (`seeded.origin`)."""


@dataclass(frozen=True)
class State:
    """All there is of the shared model."""

    amounts: Tensor
    """[K] float32"""
    amplitude: Tensor
    """[K] float64, sum of the |g| that were met along each direction; empty without Pro."""
    met: Tensor
    """[K] float64, how many those were."""


@dataclass(frozen=True)
class FedKSeed:
    """Rounds of seeds and scalars: kilobytes at any size of the model."""

    layout: Layout
    root: int
    """Of the pool."""
    pool: int = 4096
    epsilon: float = 5e-4
    limit: float | None = None
    """A step whose two losses differ by more is left out."""
    noise: Kind = "gaussian"
    pro: bool = False
    """Draw directions by how steep they were."""
    corrected: bool = False
    """Divide each step by K p, so that steep directions are taken more often, not further; not in the paper."""
    draws: Draws = "client"
    """Pro: whether clients are told p, or the server draws for them and sends what it drew."""
    steps: int = 0
    """Draws the server sends, at least as many as any client takes steps."""
    amplitude_limit: float = 1000.0
    """A larger |g| counts as this much in p."""
    needs: Needs = Needs()

    def init(self, start: Params) -> State:
        """Everybody is at the start."""
        count = self.pool if self.pro else 0
        none = torch.zeros(count, dtype=torch.float64)
        return State(torch.zeros(self.pool), none, none)

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        p = self.probabilities(s)
        scale = 1 / (self.pool * p) if self.corrected else torch.ones_like(p)
        sent = p.float() if self.pro and self.draws == "client" else EMPTY

        def down(client: ClientId) -> Start:
            if self.draws == "client":
                return Start(s.amounts, sent, NO_INDEX, EMPTY)
            drawn = draw(p, self.steps, rng.key(self.root, "draws", fed.round, client))
            return Start(s.amounts, EMPTY, drawn, scale[drawn.long()].float() if self.corrected else EMPTY)

        rules: dict[str, Rule] = {"moves": Pooled(self, scale), "origin": Agreed()}
        got = fed.collect(self.local, down, fed.cohort(), rules, self.fits(fed))
        moved: Sums = got.value.moves
        amounts = (s.amounts.double() + moved.amounts).float()
        return State(amounts, s.amplitude + moved.amplitude, s.met + moved.met)

    def probabilities(self, s: State) -> Tensor:
        """P [K] float64, how likely each seed is drawn."""
        if not self.pro:
            return torch.full((self.pool,), 1 / self.pool, dtype=torch.float64)
        return likely(s.amplitude / (1 + s.met))  # one |g| of 0 stands at the beginning of each seed's history

    def fits(self, fed: Federation) -> Fits:
        """Whether a reply's numbers are of our directions, and of seeds there are."""

        def fits(client: ClientId, up: Result) -> str | None:
            moves, dense = up.moves, not len(up.moves.index)
            why = stranger(up.origin, client, fed, self.layout)
            if why is not None:
                return why
            if dense and self.pro and len(moves.amounts):
                return "it sends sums by seed, but which slopes they are made of is to be known here"
            if moves.index.dtype not in (torch.int16, torch.int32):
                return f"its seeds are {moves.index.dtype}, expected are whole numbers of 2 or 4 bytes"
            if not dense and not 0 <= int(moves.index.min()) <= int(moves.index.max()) < self.pool:
                return f"it names seeds that are not 0 to {self.pool - 1}"
            if not moves.rate > 0:
                return f"its learning rate is {moves.rate:g}, expected is one above 0"
            shape = (self.pool,) if dense else tuple(moves.index.shape)
            return misfit("amounts", moves.amounts, shape, torch.float32)

        return fits

    def model(self, s: State) -> Model:
        """The start, moved."""
        return Model(EMPTY, drift=self.drift(s.amounts))

    def drift(self, amounts: Tensor) -> Drift:
        """The shared model at these amounts [K]."""
        return Drift(self.root, amounts, self.noise)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: draw seeds, step along them, tell how far it went along each."""
        index, scales = self.drawn(down, client)
        run = await client.wander(
            self.drift(down.amounts), epsilon=self.epsilon, seeds=[[pool(self.root, k)] for k in index.tolist()],
            scales=scales, limit=self.limit, kind=self.noise, keep=False,
        )  # fmt: skip
        moves = Moves(*self.gone(run, index), rate=client.lr)
        return Result(moves=moves, origin=origin(client.layout), weight=client.weight(run))

    def drawn(self, down: Start, client: Client) -> tuple[Tensor, list[float] | None]:
        """Seeds of the steps [steps], and what their rates are multiplied with.

        Raises:
            ClientFailed: the server drew fewer than it takes steps.
        """
        steps = client.steps
        if self.draws == "server":
            if len(down.draws) < steps:
                raise ClientFailed(f"it takes {steps} steps, but {len(down.draws)} seeds were drawn for it")
            return down.draws[:steps], down.scales[:steps].tolist() if self.corrected else None
        p = down.p.double() if self.pro else torch.full((self.pool,), 1 / self.pool, dtype=torch.float64)
        index = draw(p, steps, client.key("draws"))
        return index, (1 / (self.pool * p[index.long()])).tolist() if self.corrected else None

    def gone(self, run: Wandered, index: Tensor) -> tuple[Tensor, Tensor]:
        """(index, amounts) of the steps taken, or nothing and sums by seed [K], whichever is less."""
        taken = run.slopes[:, 0].isfinite()
        index, amounts = index[taken], (-run.rates * run.slopes[:, 0])[taken].float()
        fewer = len(index) * (index.element_size() + amounts.element_size()) < self.pool * amounts.element_size()
        if fewer or self.pro:
            return index, amounts
        sums = torch.zeros(self.pool, dtype=torch.float64).index_add_(0, index.long(), amounts.double())
        return NO_INDEX, sums.float()

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down


EMPTY, NO_INDEX = torch.zeros(0), torch.zeros(0, dtype=torch.int16)


def likely(amplitude: Tensor) -> Tensor:
    """Softmax of amplitudes [K] scaled to 0..1; all alike where they are."""
    low, high = amplitude.min(), amplitude.max()
    return torch.softmax((amplitude - low) / (high - low + 1e-10), 0)


def draw(p: Tensor, count: int, seed: int) -> Tensor:
    """Seed numbers [count], each drawn from p [K], in as few bytes as will do."""
    ends = (p / p.sum()).cumsum(0)
    found = torch.searchsorted(ends, rng.uniform(seed, count), right=True).clamp_(max=len(p) - 1)
    return found.to(torch.int16 if len(p) <= NARROW else torch.int32)


@dataclass
class Sums:
    """What the replies of a round add up to, by seed [K] float64; after `finish` the first is a weighted mean."""

    amounts: Tensor
    amplitude: Tensor
    met: Tensor
    weight: float = 0.0


@dataclass(frozen=True)
class Pooled:
    """The weighted mean of moves, by seed; and how steep each direction was, every step counting alike."""

    page: FedKSeed
    scale: Tensor
    """[K] float64: what the rate was multiplied with, by seed."""
    linear: bool = True
    reveals: Literal["sum", "each"] = "sum"
    holds: Literal["one", "all"] = "one"

    def start(self) -> Sums:
        """Nothing yet."""
        count = self.page.pool if self.page.pro else 0
        amounts, amplitude, met = (torch.zeros(n, dtype=torch.float64) for n in (self.page.pool, count, count))
        return Sums(amounts, amplitude, met)

    def add(self, acc: Sums, value: Moves, weight: float | None) -> Sums:
        """One more client's; in place."""
        assert weight is not None
        index, amounts = value.index.long(), value.amounts.double()
        if not len(index):
            acc.amounts.add_(amounts, alpha=weight)
        else:
            acc.amounts.index_add_(0, index, amounts, alpha=weight)
            if self.page.pro:
                slopes = (amounts.abs() / (value.rate * self.scale[index])).clamp_(max=self.page.amplitude_limit)
                acc.amplitude.index_add_(0, index, slopes)
                acc.met.index_add_(0, index, torch.ones_like(slopes))
        acc.weight += weight
        return acc

    def merge(self, left: Sums, right: Sums) -> Sums:
        """Both as one."""
        return Sums(
            left.amounts + right.amounts, left.amplitude + right.amplitude, left.met + right.met,
            left.weight + right.weight,
        )  # fmt: skip

    def finish(self, acc: Sums) -> Sums:
        """The mean."""
        return Sums(acc.amounts / acc.weight, acc.amplitude, acc.met, acc.weight)
