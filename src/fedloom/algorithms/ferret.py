"""Ferret. Shu et al. 2024, Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models,
https://arxiv.org/abs/2409.06277, algorithm 1.

Notation: x shared weights, y a client's after local training with gradients, D = x - y; l a block (a tensor) of d_l
numbers, v_l,k its random bases of this round, k = 1 .. K_l, the same for all clients; sum_l K_l = K; rho the variance
of a base's numbers. A client sends the K coordinates gamma_l,k = <D_l, v_l,k> / (rho K_l); x_l moves by - eta sum_k
mean gamma_l,k v_l,k, eta the server's rate. Without a sum over more bases than numbers this is no copy of D: its mean
over bases is D, its length about sqrt(d_l / K_l) times that of D_l.
The paper's bases are normal numbers cut at +-1 / sqrt(d_l). Between cuts so near zero they are uniform (a share of
2 / 15 d_l of their variance is missing), and so are ours, from -1 to 1: rho = 1/3. The published code divides by 1 in
its place. There every client chooses K_l by the norm of its own D_l, and all rounds share their bases; here K_l is by
sqrt(d_l), so that replies are sums, and bases are new in every round, as in the paper, whose clients do not share them.
Who was away is sent what it missed and replays it (`fedloom.algorithms.seeded`); nobody sends or keeps a model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedloom import noise
from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import misfit
from fedloom.algorithms.seeded import Agreed, History, Log, Replay, origin, stranger
from fedloom.contracts import Client, ClientId, Drift, Federation, Fits, Model, Needs, Rule, Weighted
from fedloom.drift import pool
from fedloom.noise import PIECE, Kind
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Result(Weighted):
    """Uplink."""

    gamma: Tensor
    """[K] float32, block by block."""
    origin: str
    """What the client's bases are made of (`seeded.origin`)."""


@dataclass(frozen=True)
class Ferret:
    """Training with gradients whose updates travel as coordinates along random bases."""

    layout: Layout
    root: int
    """Of the bases."""
    bases: int = 4096
    """K."""
    server_lr: float = 1.0
    unbiased: bool = True
    """Divide by rho; False: do not, as the published code."""
    noise: Kind = "uniform"
    log: int | None = 64
    """Rounds after which bases come again."""
    needs: Needs = Needs()

    def init(self, start: Params) -> History:
        """Everybody is at the start."""
        return self.past.empty()

    @property
    def past(self) -> Log:
        """How rounds are kept."""
        return Log(sum(self.counts), self.log)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """K_l of each block."""
        return shares([leaf.size for leaf in self.layout.leaves], self.bases)

    @cached_property
    def blocks(self) -> Tensor:
        """[K] int32, the block of each base."""
        return torch.arange(len(self.counts), dtype=torch.int32).repeat_interleave(torch.tensor(self.counts))

    def round(self, s: History, fed: Federation) -> History:
        """One round of the server."""
        rules: dict[str, Rule] = {"gamma": Mean(), "origin": Agreed()}
        got = fed.collect(self.local, self.past.down(s), fed.cohort(), rules, self.fits(fed))
        return self.past.after(s, got, -self.server_lr * got.value.gamma)

    def fits(self, fed: Federation) -> Fits:
        """Whether a reply's numbers are of our bases."""
        wanted = origin(self.layout, (self.noise,))

        def fits(client: ClientId, up: Result) -> str | None:
            why = stranger(up.origin, client, fed, self.layout, wanted)
            return why or misfit("gamma", up.gamma, (self.past.width,), torch.float32)

        return fits

    def model(self, s: History) -> Model:
        """The start, moved."""
        return Model(torch.zeros(0), drift=self.drift(s.table))

    def drift(self, table: Tensor) -> Drift:
        """The shared model of a table."""
        return Drift(self.root, table.reshape(-1), self.noise, self.blocks)

    async def local(self, down: Replay, client: Client) -> Result:
        """One client: catch up, train, tell the update's coordinates."""
        table = self.past.caught_up(down, client)
        x = await client.stand(self.drift(table))
        run = await client.descend(x)
        self.past.remember(down, table, client)
        gamma = self.coordinates(x - run.y, self.past.row(down.rounds))
        return Result(gamma=gamma, origin=origin(client.layout, (self.noise,)), weight=client.weight(run))

    def coordinates(self, delta: Params, row: int) -> Tensor:
        """Gamma [K] float32 of an update x - y [P], along the bases of a round."""
        first = row * self.past.width
        rho = noise.variance(self.noise) if self.unbiased else 1.0
        found, room = list[Tensor](), torch.empty(min(PIECE, self.layout.size), dtype=delta.dtype)
        for leaf, count in zip(self.layout.leaves, self.counts, strict=True):
            seeds = [pool(self.root, first + k) for k in range(count)]
            part = delta[leaf.offset : leaf.offset + leaf.size]
            found.append(products(part, seeds, leaf.name, self.noise, room) / (rho * count))
            first += count
        return torch.cat(found).float()

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down


def products(part: Tensor, seeds: Sequence[int], leaf: str, kind: Kind, room: Tensor) -> Tensor:
    """Inner products [K_l] float64 of a block with its bases; piece by piece, as the update fits a core's cache."""
    total = torch.zeros(len(seeds), dtype=torch.float64)
    for begin in range(0, len(part), len(room)):
        piece = part[begin : begin + len(room)]
        v = room[: len(piece)]
        found = [float(noise.fill(v, seed, leaf, begin, kind) @ piece) for seed in seeds]
        total += torch.tensor(found, dtype=torch.float64)
    return total


def shares(sizes: Sequence[int], total: int) -> tuple[int, ...]:
    """How many bases each block has: at least one, by the root of its size, `total` together if blocks are no more.

    A block errs by d_l |D_l|^2 / K_l: least together for K_l by sqrt(d_l) |D_l|, and |D_l| is taken to be all alike.
    """
    roots = [math.sqrt(size) for size in sizes]
    counts = [max(1, math.floor(total * root / sum(roots))) for root in roots]
    while sum(counts) < total:
        counts[min(range(len(sizes)), key=lambda i: counts[i] / roots[i])] += 1
    while sum(counts) > max(total, len(sizes)):
        counts[max(range(len(sizes)), key=lambda i: counts[i])] -= 1
    return tuple(counts)
