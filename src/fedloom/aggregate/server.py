"""The server's optimiser: how the shared term follows the mean of what came back.

Notation: x where the server stands, Δ = mean - x (a direction of ascent), t steps behind us, η the server's rate.
Sgd: Hsu et al. 2019, https://arxiv.org/abs/1909.06335 (FedAvgM); Douillard et al. 2023,
https://arxiv.org/abs/2311.08105 (DiLoCo's outer Nesterov step). Adaptive: Reddi et al. 2021,
https://arxiv.org/abs/2003.00295, algorithm 2.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedloom.aggregate.combine import combine, zeros
from fedloom.contracts import Term


@dataclass(frozen=True)
class Momenta:
    """What a server optimiser remembers; what it does not use is a vector of no numbers."""

    m: Term
    """Velocity or first moment, like x."""
    v: Term
    """Second moment, like x."""
    t: int = 0
    """Steps behind us."""


class ServerOptimizer(Protocol):
    """How x follows the mean. Terms and memories are never changed in place."""

    @property
    def plain(self) -> bool:
        """Whether a step takes the mean as it is."""

    def start(self, point: Term) -> Momenta:
        """The memory before the first step, for terms like `point`."""

    def step(self, point: Term, mean: Term, memory: Momenta) -> tuple[Term, Momenta]:
        """The next x and memory."""


@dataclass(frozen=True)
class ServerSgd:
    """v = momentum v + Δ; x = x + η v, or x + η (Δ + momentum v) with `nesterov`; torch's SGD with gradient -Δ.

    Momentum goes on where nothing changes: Δ = 0 still moves x. η = 1 without momentum takes the mean itself, bit for
    bit, and remembers nothing. Products of factors stay factored; their inner size grows with the velocity's rank.
    """

    lr: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    @property
    def plain(self) -> bool:
        """Whether a step takes the mean as it is."""
        return self.lr == 1 and self.momentum == 0

    def start(self, point: Term) -> Momenta:
        """A velocity of zero; nothing without momentum."""
        none = _none(point)
        return Momenta(none if self.momentum == 0 else zeros(point), none)

    def step(self, point: Term, mean: Term, memory: Momenta) -> tuple[Term, Momenta]:
        """The next x and velocity."""
        follow = (1.0 - self.lr, point), (self.lr, mean)
        if self.momentum == 0:
            return combine(*follow), replace(memory, t=memory.t + 1)
        velocity = combine((1.0, mean), (-1.0, point), (self.momentum, memory.m))
        # Nesterov looks one step ahead: the velocity of this step, where plain momentum adds that of the last
        onward = velocity if self.nesterov else memory.m
        moved = combine(*follow, (self.lr * self.momentum, onward))
        return moved, Momenta(velocity, memory.v, memory.t + 1)


@dataclass(frozen=True)
class Adaptive:
    """FedAdagrad, FedYogi, FedAdam: a rate of its own for every number. x = x + η m / (√v + τ).

    m = β1 m + (1 - β1) Δ from m = 0. Then, with s = Δ² squared number by number: adagrad v = v + s; adam
    v = β2 v + (1 - β2) s; yogi v = v - (1 - β2) s sign(v - s). No bias correction. The paper averages Δ uniformly and
    uses β1 = 0 with adagrad.

    Forms: `final` as above. `early`: s = m², as in the first version of the paper. `openfedllm`: early, with m the
    first Δ in the first step, and adagrad without m. `flower`: final, v begins at 0, adagrad without m, adam at the
    rate η √(1 - β2^(t+2)) / (1 - β1^(t+2)).
    """

    kind: Literal["adagrad", "yogi", "adam"]
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    v0: Literal["tau2"] | float = "tau2"
    """Where v begins: τ², the paper's smallest, or a number; the form `flower` takes `tau2` for 0."""
    form: Literal["final", "early", "openfedllm", "flower"] = "final"

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau is {self.tau}, but must be above 0: a number that never moved is divided by it")
        if self.v0 != "tau2" and self.v0 < 0:
            raise ValueError(f"v0 is {self.v0}, but a mean of squares cannot begin below 0")

    @property
    def plain(self) -> bool:
        """Never: the mean is only followed."""
        return False

    def start(self, point: Term) -> Momenta:
        """No momentum, and v0 everywhere.

        Raises:
            ValueError: products of factors are averaged.
        """
        x = _numbers(point)
        return Momenta(torch.zeros_like(x), torch.full_like(x, self._first()))

    def step(self, point: Term, mean: Term, memory: Momenta) -> tuple[Term, Momenta]:
        """The next x and moments.

        Raises:
            ValueError: products of factors are averaged.
        """
        x = _numbers(point)
        m, v = _wide(memory.m), _wide(memory.v)
        delta = _wide(mean) - _wide(x)
        beta = self._share(memory.t)
        m = beta * m + (1 - beta) * delta
        square = (m if self.form in ("early", "openfedllm") else delta).square()
        match self.kind:
            case "adagrad":
                v = v + square
            case "adam":
                v = self.beta2 * v + (1 - self.beta2) * square
            case "yogi":
                v = v - (1 - self.beta2) * square * torch.sign(v - square)
        moved = _wide(x) + self._rate(memory.t) * m / (v.sqrt() + self.tau)
        return moved.to(x.dtype), Momenta(m.to(x.dtype), v.to(x.dtype), memory.t + 1)

    def _first(self) -> float:
        if self.v0 != "tau2":
            return self.v0
        return 0.0 if self.form == "flower" else self.tau**2

    def _share(self, t: int) -> float:
        """How much of m is kept in step t."""
        if self.form in ("openfedllm", "flower") and self.kind == "adagrad":
            return 0.0
        return 0.0 if self.form == "openfedllm" and t == 0 else self.beta1

    def _rate(self, t: int) -> float:
        if self.form != "flower" or self.kind != "adam":
            return self.lr
        # Flower counts rounds from 1 and corrects with the count plus one
        return self.lr * (1 - self.beta2 ** (t + 2)) ** 0.5 / (1 - self.beta1 ** (t + 2))


def _none(point: Term) -> Tensor:
    return (point if isinstance(point, Tensor) else point[0]).new_zeros(0)


def _numbers(term: Term) -> Tensor:
    if not isinstance(term, Tensor):
        raise ValueError(
            "adaptive server optimisers work number by number; where products of factors are averaged the numbers have "
            "no meaning of their own: use sgd"
        )
    return term


def _wide(term: Term) -> Tensor:
    return _numbers(term).to(torch.float64)
