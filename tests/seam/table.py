"""Every toy page and every algorithm of the package, as rows the contract tests run over.

Rows are built by name from plain values, so that a second process can build the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms.centralized import Centralized
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.local import LocalOnly
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.wire import Marshal
from fedloom.spaces.factors import Factors
from seam import pages
from seam.quadratic import World, lora


@dataclass(frozen=True)
class Row:
    """One algorithm in its toy world."""

    algorithm: Any
    world: World = World()
    stages: Sequence[Any] = field(default=())
    learns: bool = True
    """Its shared model gets better on the toy problem."""


def rows() -> dict[str, Row]:
    mixed = World(ranks=(1, 2, 2, 1, 2))
    return {
        "fedavg": Row(FedAvg(Factors())),
        "fedavgm": Row(FedAvg(Factors(), ServerSgd(1.0, 0.5))),
        "local": Row(LocalOnly(), learns=False),
        "centralized": Row(Centralized()),
        "toy-scaffold": Row(pages.Scaffold()),
        "toy-ditto": Row(pages.Ditto()),
        "toy-krum": Row(pages.KrumAverage()),
        "toy-model-diff-rate": Row(pages.ModelDiffRate()),
        "toy-seeds-and-scalars": Row(pages.SeedsAndScalars(World().start())),
        "toy-logits-only": Row(pages.LogitsOnly(), learns=False),
        "toy-fedbuff": Row(pages.FedBuff()),
        "toy-mixed-ranks": Row(FedAvg(pages.Products(lora(2))), mixed),
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
