"""Every algorithm: its settings' class, and how its page is made from the recipe's sections."""

from dataclasses import dataclass
from typing import Any, Literal

from fedloom.aggregate.config import (
    AggregateConfig,
    BulyanConfig,
    FactorsConfig,
    GeometricMedianConfig,
    KrumConfig,
    MeanConfig,
    MedianConfig,
    MultiKrumConfig,
    NormBoundConfig,
    ProductsConfig,
    RefactoredConfig,
    ResidualConfig,
    RuleConfig,
    ServerOptimizerConfig,
    ServerSgdConfig,
    SlicesConfig,
    SpaceConfig,
    SparseConfig,
    StackedConfig,
    TrimmedMeanConfig,
    TurnsConfig,
)
from fedloom.aggregate.robust import (
    Bulyan,
    GeometricMedian,
    Guard,
    Krum,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
)
from fedloom.aggregate.server import Adaptive, ServerOptimizer, ServerSgd
from fedloom.algorithms.centralized import Centralized
from fedloom.algorithms.config import (
    AlgorithmConfig,
    CentralizedConfig,
    DeComFlConfig,
    DittoConfig,
    DualConfig,
    FedAvgConfig,
    FedBiotConfig,
    FedBuffConfig,
    FedKdConfig,
    FedKSeedConfig,
    FedMezoConfig,
    FedNovaConfig,
    FedPerConfig,
    FedProxConfig,
    FedRepConfig,
    FedSwaConfig,
    FerretConfig,
    HetLoraConfig,
    LocalOnlyConfig,
    LookaheadConfig,
    LoraA2Config,
    PFedMeConfig,
    ScaffoldConfig,
)
from fedloom.algorithms.decomfl import DeComFl
from fedloom.algorithms.ditto import Ditto
from fedloom.algorithms.dual import Dual
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedbiot import FedBiot
from fedloom.algorithms.fedbuff import FedBuff
from fedloom.algorithms.fedkd import FedKd
from fedloom.algorithms.fedkseed import FedKSeed
from fedloom.algorithms.fedmezo import FedMezo
from fedloom.algorithms.fednova import FedNova
from fedloom.algorithms.fedper import FedPer
from fedloom.algorithms.fedprox import FedProx
from fedloom.algorithms.fedrep import FedRep
from fedloom.algorithms.fedswa import FedSwa
from fedloom.algorithms.ferret import Ferret
from fedloom.algorithms.hetlora import HetLora
from fedloom.algorithms.local import LocalOnly
from fedloom.algorithms.lookahead import Lookahead
from fedloom.algorithms.lora_a2 import LoraA2
from fedloom.algorithms.pfedme import PFedMe
from fedloom.algorithms.scaffold import Scaffold
from fedloom.contracts import Algorithm, Fitting, Lessons, Space
from fedloom.params import Layout
from fedloom.spaces.factors import Factors
from fedloom.spaces.products import Products
from fedloom.spaces.refactored import Refactored
from fedloom.spaces.residual import Residual
from fedloom.spaces.slices import Slices
from fedloom.spaces.sparse import Sparse
from fedloom.spaces.stacked import Stacked
from fedloom.spaces.turns import Turns


@dataclass(frozen=True)
class Setting:
    """What pages and spaces take from outside their own section."""

    layout: Layout
    """Of the shared vector."""
    seed: int = 0
    rounds: int = 1
    cohort: int = 1
    lr: float = 0.0
    """Clients' base learning rate."""
    momentum: float = 0.0
    """Of the clients' optimiser."""
    density: float | None = None
    """Of the adapter's sparse update."""
    levels: tuple[int, ...] = ()
    """Ranks that occur among the clients, ascending."""
    steps: int = 1
    """Most optimiser steps any client takes in a round, as far as the recipe says."""
    ends: tuple[str, ...] = ()
    """Under `offsite`, leaves in the blocks that clients train."""


def build(algorithm: AlgorithmConfig, aggregate: AggregateConfig, setting: Setting) -> Algorithm[Any]:
    """The page the recipe names."""
    space, server, guard = parts(aggregate, setting)
    layout = setting.layout
    match algorithm:
        case FedAvgConfig():
            return FedAvg(space, server, guard, algorithm.keep_inner)
        case FedProxConfig():
            return FedProx(space, server, guard, mu=algorithm.mu)
        case ScaffoldConfig():
            return Scaffold(server_lr=algorithm.server_lr, option=algorithm.option, layout=layout)
        case FedNovaConfig():
            return FedNova(algorithm.mu, setting.momentum, algorithm.server_momentum)
        case FedSwaConfig():
            start = min(int(algorithm.start * setting.rounds), setting.rounds - 1)
            lr = setting.lr if algorithm.cycle is not None else None
            return FedSwa(space, server, guard, start=start, every=algorithm.every, cycle=algorithm.cycle, lr=lr)
        case LookaheadConfig():
            return Lookahead(algorithm.alpha, algorithm.rho, layout)
        case FedBuffConfig():
            return FedBuff(
                buffer=algorithm.buffer, concurrency=setting.cohort, exponent=algorithm.exponent,
                server_lr=algorithm.server_lr, max_staleness=algorithm.max_staleness,
                weighted=algorithm.weighted_updates,
            )  # fmt: skip
        case DittoConfig():
            return Ditto(space, server, guard, lam=algorithm.lam)
        case PFedMeConfig():
            return PFedMe(
                lam=algorithm.lam, rounds=algorithm.rounds, steps=algorithm.steps, lr=algorithm.lr,
                personal_lr=algorithm.personal_lr, beta=algorithm.beta, layout=layout,
            )  # fmt: skip
        case FedPerConfig():
            return FedPer(layout, tuple(algorithm.private), server)
        case FedRepConfig():
            return FedRep(
                layout, tuple(algorithm.private), server=server,
                head_steps=algorithm.head_steps, body_steps=algorithm.body_steps,
            )  # fmt: skip
        case DualConfig():
            return Dual(space, server, guard)
        case HetLoraConfig():
            return HetLora(layout, algorithm.gamma, algorithm.lam, algorithm.least_rank)
        case LoraA2Config():
            return LoraA2(layout, rank=algorithm.rank, lr_ratio=algorithm.ratio)
        case FedKdConfig():
            lessons = Lessons(
                first=algorithm.pretrain_epochs, alone=algorithm.teacher_epochs, together=algorithm.epochs,
                lr=algorithm.lr, batch_size=algorithm.batch_size, max_grad_norm=algorithm.max_grad_norm,
            )  # fmt: skip
            return FedKd(space, server, guard, lessons=lessons)
        case FedBiotConfig():
            fitting = Fitting(algorithm.lr, algorithm.batch_size, algorithm.kd_weight, algorithm.max_grad_norm)
            return FedBiot(
                layout, setting.ends, fitting, server, lam=algorithm.lam, before=algorithm.prealign_steps,
                steps=algorithm.align_steps,
            )  # fmt: skip
        case FedMezoConfig():
            return FedMezo(
                space, server, guard, epsilon=algorithm.epsilon, directions=algorithm.directions,
                weight_decay=algorithm.weight_decay, limit=algorithm.limit, noise=algorithm.noise,
                rate=algorithm.rate, spread=algorithm.spread,
            )  # fmt: skip
        case FedKSeedConfig():
            return FedKSeed(
                layout, setting.seed, pool=algorithm.pool, epsilon=algorithm.epsilon, limit=algorithm.limit,
                noise=algorithm.noise, pro=algorithm.pro, corrected=algorithm.corrected, draws=algorithm.draws,
                steps=setting.steps, amplitude_limit=algorithm.amplitude_limit,
            )  # fmt: skip
        case DeComFlConfig():
            return DeComFl(
                layout, setting.seed, steps=algorithm.steps, directions=algorithm.directions,
                epsilon=algorithm.epsilon, forward=algorithm.forward, limit=algorithm.limit, noise=algorithm.noise,
                log=algorithm.log,
            )  # fmt: skip
        case FerretConfig():
            return Ferret(
                layout, setting.seed, bases=algorithm.bases, server_lr=algorithm.server_lr,
                unbiased=algorithm.unbiased, noise=algorithm.noise, log=algorithm.log,
            )  # fmt: skip
        case LocalOnlyConfig():
            return LocalOnly(keep_inner=algorithm.keep_inner)
        case CentralizedConfig():
            return Centralized()


def parts(aggregate: AggregateConfig, setting: Setting) -> tuple[Space, ServerOptimizer, Guard | None]:
    """Space, server optimiser and guard of an `aggregate` section."""
    return space(aggregate.space, setting), server(aggregate.server_optimizer), guard(aggregate.rule)


def space(config: SpaceConfig, setting: Setting) -> Space:
    """What is averaged."""
    layout = setting.layout
    match config:
        case FactorsConfig():
            return Factors(layout)
        case TurnsConfig():
            return Turns(layout, config.first, config.alternate)
        case ProductsConfig():
            return Products(layout)
        case SlicesConfig():
            return Slices(layout, setting.levels, config.empty)
        case StackedConfig():
            return Stacked(layout, setting.seed)
        case ResidualConfig():
            return Residual(layout, uniform=False)
        case RefactoredConfig():
            return Refactored(layout)
        case SparseConfig():
            assert setting.density is not None  # checked with the configuration
            return Sparse(layout, setting.seed, setting.density, config.rounds, config.residual)


def server(config: ServerOptimizerConfig) -> ServerOptimizer:
    """How the shared vector follows the mean."""
    if isinstance(config, ServerSgdConfig):
        return ServerSgd(config.lr, config.momentum, config.nesterov)
    v0: Literal["tau2"] | float = "tau2" if config.v0 is None else config.v0
    return Adaptive(config.name, config.lr, config.beta1, config.beta2, config.tau, v0, config.form)


def guard(config: RuleConfig) -> Guard | None:
    """Which replies are trusted; None: all."""
    match config:
        case MeanConfig():
            return None
        case MedianConfig():
            return Median()
        case TrimmedMeanConfig():
            return TrimmedMean(config.share)
        case KrumConfig():
            return Krum(config.f)
        case MultiKrumConfig():
            return MultiKrum(config.f, config.m)
        case BulyanConfig():
            return Bulyan(config.f)
        case NormBoundConfig():
            return NormBound(config.limit)
        case GeometricMedianConfig():
            return GeometricMedian(config.nu, config.iterations)
