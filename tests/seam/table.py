"""Every toy page and every algorithm of the package, as rows the contract tests run over.

Rows are built by name from plain values, so that a second process can build the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from fedloom.aggregate.config import AggregateConfig
from fedloom.algorithms.config import AlgorithmConfig
from fedloom.algorithms.table import Setting, build
from fedloom.channel.encoding import Encoding
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.wire import Marshal
from seam import pages
from seam.quadratic import World


@dataclass(frozen=True)
class Row:
    """One algorithm in its toy world."""

    algorithm: Any
    world: World = World()
    stages: Sequence[Any] = field(default=())
    learns: bool | None = True
    """Its shared model gets better on the toy problem; None: it cannot get everywhere."""
    least: int = 1
    """Replies a round needs."""

    @property
    def hides(self) -> bool:
        """The server sees sums only, and these toy masks cannot lose a client after the exchange."""
        return any(stage.hides for stage in self.stages)


PAIR = World(ranks=(2,))
MIXED = World(ranks=(1, 2, 2, 1, 2))
CONV1D = World(ranks=(1, 2, 2, 1, 2), transposed=True)
SHARED_SCALE = World(ranks=(1, 2, 2, 1, 2), scale=1.0)
ALL = World(clients=6, cohort=6)
INT8 = Encoding("int8", feedback=True)

SLOW = World(lr=0.02)
NEAR = World(far=0.1, lr=0.02)
NEAR_PAIR = World(ranks=(2,), far=0.1, lr=0.01)
MEZO: dict[str, Any] = {"name": "fedmezo", "spread": 0.005}
FEDBIOT: dict[str, Any] = {"name": "fedbiot", "lr": 0.02, "prealign_steps": 3, "align_steps": 2}
FEDKD: dict[str, Any] = {"name": "fedkd", "teacher": {"name": "toy"}, "lr": 0.02, "batch_size": 16}


def made(
    world: World, algorithm: dict[str, Any] | str, learns: bool | None = True, least: int = 1, **aggregate: Any
) -> Row:
    """A row from recipe sections, as `fedloom.algorithms.table` builds it."""
    section = {"name": algorithm} if isinstance(algorithm, str) else algorithm
    chosen: Any = TypeAdapter(AlgorithmConfig).validate_python(section)
    setting = Setting(
        layout=world.layout(-1), seed=world.seed, rounds=10, cohort=2, lr=0.05, levels=tuple(sorted(set(world.ranks))),
        density=world.density, steps=4, ends=("w.A", "w.B") if world.ranks else (),
    )  # fmt: skip
    page = build(chosen, AggregateConfig.model_validate(aggregate), setting)
    return Row(page, world, learns=learns, least=least)


def staged(algorithm: str, stage: Encoding, **settings: Any) -> Row:
    """A row whose replies are encoded."""
    return replace(made(World(), {"name": algorithm, **settings}), stages=(stage,))


def rows() -> dict[str, Row]:
    outer = {"name": "sgd", "lr": 0.7, "momentum": 0.5, "nesterov": True}
    adam = {"name": "adam", "lr": 0.1}
    private = {"private": ["w.B"]}
    return {
        "fedavg": made(World(), "fedavg"),
        "fedavgm": made(World(), "fedavg", server_optimizer={"name": "sgd", "momentum": 0.5}),
        "fedadam": made(World(), "fedavg", server_optimizer=adam),
        "fedyogi": made(World(), "fedavg", server_optimizer={"name": "yogi", "lr": 0.1}),
        "fedadagrad": made(World(), "fedavg", server_optimizer={"name": "adagrad", "lr": 0.1}),
        "diloco": made(World(), {"name": "fedavg", "keep_inner": True}, server_optimizer=outer),
        "fedprox": made(World(), {"name": "fedprox", "mu": 0.5}),
        "scaffold": made(World(), "scaffold"),
        "scaffold-I": made(World(), {"name": "scaffold", "option": "I"}),
        "scaffold-II": made(World(), {"name": "scaffold", "option": "II"}),
        "fednova": made(World(), {"name": "fednova", "server_momentum": 0.3}),
        "fedswa": made(World(), {"name": "fedswa", "start": 0.2, "every": 2, "cycle": 0.01}),
        "lookahead": made(World(), "lookahead"),
        "fedbuff": made(World(), {"name": "fedbuff", "buffer": 2}),
        "ditto": made(World(), {"name": "ditto", "lam": 0.5}),
        "pfedme": made(World(), {"name": "pfedme", "rounds": 3, "steps": 2, "lr": 0.05, "personal_lr": 0.05}),
        "fedper": made(PAIR, {"name": "fedper", **private}, learns=False),
        "fedrep": made(PAIR, {"name": "fedrep", "head_steps": 2, "body_steps": 2, **private}, learns=False),
        "dual": made(PAIR, "dual"),
        "fedit": made(PAIR, "fedavg"),
        "rolora": made(PAIR, "fedavg", space={"name": "turns"}, server_optimizer={"name": "sgd", "momentum": 0.5}),
        "flexlora": made(MIXED, "fedavg", space={"name": "products"}),
        "flexlora-outer": made(MIXED, "fedavg", space={"name": "products"}, server_optimizer=outer),
        "flexlora-conv1d": made(CONV1D, "fedavg", space={"name": "products"}),
        "flexlora-krum": made(
            replace(MIXED, clients=6, cohort=6), "fedavg", least=5, space={"name": "products"}, rule={"name": "krum"}
        ),
        "raflora": made(SHARED_SCALE, "fedavg", space={"name": "slices"}),
        "flora": made(MIXED, "fedavg", space={"name": "stacked"}),
        "flora-conv1d": made(CONV1D, "fedavg", space={"name": "stacked"}),
        "fedex": made(PAIR, "fedavg", space={"name": "residual"}, server_optimizer={"name": "sgd", "momentum": 0.3}),
        "fedex-conv1d": made(replace(PAIR, transposed=True), "fedavg", space={"name": "residual"}),
        "fedsvd": made(PAIR, "fedavg", space={"name": "refactored"}),
        "slora": made(
            replace(PAIR, density=5 / 9), "fedavg", space={"name": "sparse", "rounds": 3, "residual": "carry"}
        ),
        "hetlora": made(SHARED_SCALE, {"name": "hetlora", "gamma": 0.6}),
        "lora_a2": made(PAIR, {"name": "lora_a2", "rank": 1, "ratio": 1.0}),
        "fedkd": made(World(), FEDKD),
        "fedkd-lora-turns": made(PAIR, FEDKD, space={"name": "turns"}),
        "fedbiot": made(PAIR, {**FEDBIOT, "lam": 0.05}, server_optimizer={"name": "sgd", "momentum": 0.3}),
        "fedmezo": made(SLOW, {"name": "fedmezo", "directions": 2, "weight_decay": 1e-3}),
        "fedmezo-random": made(SLOW, {**MEZO, "rate": "random"}),
        "fedmezo-round-wise": made(SLOW, {**MEZO, "rate": "round_wise"}),
        "fedmezo-five-round": made(SLOW, {**MEZO, "rate": "five_round"}),
        "fedmezo-model-diff": made(SLOW, {**MEZO, "rate": "model_diff"}, server_optimizer=outer),
        "fedmezo-flexlora": made(replace(MIXED, lr=0.01), {**MEZO, "rate": "round_wise"}, space={"name": "products"}),
        "fedmezo-flora": made(replace(MIXED, lr=0.01), "fedmezo", space={"name": "stacked"}),
        "fedmezo-median": made(SLOW, "fedmezo", rule={"name": "median"}),
        "fedkseed": made(NEAR, {"name": "fedkseed", "pool": 64}),
        "fedkseed-sums": made(NEAR_PAIR, {"name": "fedkseed", "pool": 2, "noise": "rademacher"}, learns=None),
        "fedkseed-pro": made(NEAR, {"name": "fedkseed", "pool": 64, "pro": True}),
        "fedkseed-pro-server": made(
            NEAR, {"name": "fedkseed", "pool": 64, "pro": True, "corrected": True, "draws": "server"}
        ),
        "ferret": made(NEAR, {"name": "ferret", "bases": 30, "server_lr": 0.6, "log": 4}),
        "ferret-pairs": made(
            NEAR_PAIR,
            {"name": "ferret", "bases": 24, "server_lr": 0.3, "unbiased": False, "noise": "gaussian", "log": None},
            learns=None,
        ),
        "decomfl": made(NEAR, {"name": "decomfl", "steps": 3, "log": None}),
        "decomfl-log": made(NEAR_PAIR, {"name": "decomfl", "steps": 2, "directions": 2, "log": 3, "forward": True}),
        "median": made(World(), "fedavg", rule={"name": "median"}),
        "trimmed_mean": made(World(), "fedavg", rule={"name": "trimmed_mean", "share": 0.25}),
        "krum": made(ALL, "fedavg", least=5, rule={"name": "krum"}),
        "multi_krum": made(ALL, "fedavg", least=5, rule={"name": "multi_krum"}),
        "bulyan": made(World(clients=9, cohort=9), "fedavg", least=7, rule={"name": "bulyan"}),
        "norm_bound": made(World(), "fedavg", rule={"name": "norm_bound"}),
        "geometric_median": made(World(), "fedavg", rule={"name": "geometric_median"}),
        "local": made(World(), "local", learns=False),
        "local-inner": made(World(), {"name": "local", "keep_inner": True}, learns=False),
        "centralized": made(World(), "centralized"),
        "fedavg-int8": staged("fedavg", INT8),
        "scaffold-int8": staged("scaffold", INT8),
        "fedkseed-int8": replace(made(NEAR, {"name": "fedkseed", "pool": 64}), stages=(Encoding("int8"),)),
        "fedbuff-int8": staged("fedbuff", INT8, buffer=2),
        "ditto-fp16": staged("ditto", Encoding("fp16")),
        "flexlora-int8": replace(made(MIXED, "fedavg", space={"name": "products"}), stages=(Encoding("int8"),)),
        "toy-model-diff-rate": Row(pages.ModelDiffRate()),
        "toy-seeds-and-scalars": Row(pages.SeedsAndScalars(World().start())),
        "toy-logits-only": Row(pages.LogitsOnly(), learns=False),
        "toy-poisson-noise": Row(pages.PoissonNoise()),
        "toy-pairwise-masks": Row(pages.DeltaAverage(), stages=(pages.PairwiseMasks(),)),
    }


NAMES = tuple(rows())


def site(row: str, world: dict[str, Any]) -> tuple[Site, Marshal]:
    """What the second process builds."""
    made = rows()[row]
    setting = replace(made.world, **{k: tuple(v) if isinstance(v, list) else v for k, v in world.items()})
    tasks = Tasks(made.algorithm)
    return setting.site(tasks, made.stages), marshal(tasks, setting)


def marshal(tasks: Tasks, world: World) -> Marshal:
    return Marshal(tasks, world.layout(-1).fingerprint, "toy")
