"""What the study compares: methods, the settings tried for each, and where they are run.

A method is overrides of a shipped recipe. Its `tries` are run once, scored on the validation rows of `SEARCH_SEED`; no
measured run shares its rows, partition or start. The try with the lowest loss is measured. Where the best of the first
tries lay at the edge towards larger steps, all three were moved up once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

SEEDS = (0, 1, 2)
SEARCH_SEED = 100
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """One row of a table."""

    name: str
    overrides: Overrides
    """What makes it the method."""
    tries: tuple[str, ...] = ()
    """One override each; none: nothing of its own to choose."""
    follows: str = ""
    """The method whose choice it takes over, beside its own."""
    extra: bool = False
    """Beside what was asked: measured last."""


@dataclass(frozen=True)
class Part:
    """One recipe, its methods, and the settings each is run in."""

    name: str
    recipe: str
    settings: dict[str, Overrides]
    """Columns of the table; the search uses `search`."""
    search: str
    methods: tuple[Method, ...]
    reference: str
    """The method all others are compared with."""
    metrics: tuple[str, ...]
    needs_data: bool = False


def _lr(*rates: float) -> tuple[str, ...]:
    return tuple(f"local.lr={rate:g}" for rate in rates)


def _server(*rates: float) -> tuple[str, ...]:
    return tuple(f"aggregate.server_optimizer.lr={rate:g}" for rate in rates)


_SGD = ("local.optimizer.name=sgd",)
PLAYGROUND = Part(
    "playground",
    "study-playground",
    {"iid": ("partition=iid",), "dirichlet 0.1": ()},
    "dirichlet 0.1",
    (
        Method("fedavg", ("algorithm=fedavg",), _lr(3e-3, 6e-3, 1.2e-2)),
        Method(
            "fedprox", ("algorithm=fedprox",), ("algorithm.mu=0.01", "algorithm.mu=0.1", "algorithm.mu=1"), "fedavg"
        ),
        Method("scaffold", ("algorithm=scaffold",), _lr(3e-3, 6e-3, 1.2e-2)),
        Method(
            "fedavgm",
            ("algorithm=fedavgm",),
            tuple(f"aggregate.server_optimizer.momentum={m}" for m in (0.5, 0.7, 0.9)),
            "fedavg",
        ),
        Method("fedadagrad", ("algorithm=fedadagrad",), _server(1e-2, 3e-2, 1e-1), "fedavg"),
        Method("fedyogi", ("algorithm=fedyogi",), _server(3e-3, 1e-2, 3e-2), "fedavg"),
        Method("fedadam", ("algorithm=fedadam",), _server(3e-3, 1e-2, 3e-2), "fedavg"),
        Method("ditto", ("algorithm=ditto",), ("algorithm.lam=0.1", "algorithm.lam=1"), "fedavg"),
        Method("local", ("algorithm=local",), (), "fedavg", extra=True),
        Method("fedavg, SGD", ("algorithm=fedavg", *_SGD), _lr(1, 2, 4), extra=True),
        Method("scaffold, SGD", ("algorithm=scaffold", *_SGD), _lr(1, 2, 4), extra=True),
    ),
    "fedavg",
    ("exact_match", "loss"),
)

_NO_MIXTURE = ("algorithm=fedit", "adapter.ranks.name=homogeneous")
_RATES = _lr(1e-2, 2e-2, 4e-2)
_MIXTURES = ("uniform", "heavy_tail", "heavy_tail_strong", "normal")


def _mixed(name: str, *overrides: str) -> Iterator[Method]:
    """A method under each mixture; the rate is chosen under the first and taken over by the others."""
    for mixture in _MIXTURES:
        own = (f"algorithm={name}", *overrides, f"adapter.ranks.name={mixture}")
        first = mixture == _MIXTURES[0]
        yield Method(f"{name}, {mixture}", own, _RATES if first else (), "" if first else f"{name}, {_MIXTURES[0]}")


NATURAL = Part(
    "natural instructions",
    "study-natural-instructions",
    {"40 clients": ()},
    "40 clients",
    (
        Method("homogeneous, rank 2", (*_NO_MIXTURE, "adapter.rank=2", "adapter.alpha=4"), _RATES),
        *_mixed("flexlora"),
        *_mixed("hetlora", "aggregate.space=factors"),
        Method("homogeneous, rank 32", (*_NO_MIXTURE, "adapter.rank=32", "adapter.alpha=64"), _RATES, extra=True),
    ),
    "homogeneous, rank 2",
    ("loss", "rouge_l"),
    needs_data=True,
)
PARTS = (PLAYGROUND, NATURAL)
