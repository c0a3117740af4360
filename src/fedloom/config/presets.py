"""Papers whose method is a combination of our sections: naming one as `algorithm` fills them.

What a preset fixes is what makes the method that method; contradicting it where the preset is named is an error. The
rest are starting values anybody may override. `fedloom show` prints the sections a preset became.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Preset:
    """A method's name in the literature, as settings by dotted key."""

    summary: str
    fixed: Mapping[str, Any]
    start: Mapping[str, Any] = field(default_factory=dict)


PLAIN: Final = {
    "aggregate__server_optimizer__name": "sgd",
    "aggregate__server_optimizer__lr": 1.0,
    "aggregate__server_optimizer__momentum": 0.0,
}
"""The mean as it is, whatever server optimiser a recipe had before."""


def _adaptive(name: str, title: str) -> Preset:
    return Preset(
        f"{title} on the server (Reddi et al. 2021, arXiv 2003.00295)",
        fixed={"algorithm.name": "fedavg", "aggregate.server_optimizer.name": name},
        start={"aggregate.weighting": "uniform"},
    )


def _lora(summary: str, space: str, /, **start: Any) -> Preset:
    fixed = {"algorithm.name": "fedavg", "adapter.kind": "lora", "aggregate.space.name": space}
    return Preset(summary, fixed=fixed, start={key.replace("__", "."): value for key, value in start.items()})


PRESETS: Final[Mapping[str, Preset]] = {
    "fedavgm": Preset(
        "Federated averaging with server momentum (Hsu et al. 2019, arXiv 1909.06335)",
        fixed={"algorithm.name": "fedavg", "aggregate.server_optimizer.name": "sgd"},
        start={"aggregate.server_optimizer.momentum": 0.9},
    ),
    "fedadagrad": _adaptive("adagrad", "Adagrad"),
    "fedyogi": _adaptive("yogi", "Yogi"),
    "fedadam": _adaptive("adam", "Adam"),
    "diloco": Preset(
        "Outer Nesterov momentum over clients that train long (DiLoCo, Douillard et al. 2023, arXiv 2311.08105)",
        fixed={
            "algorithm.name": "fedavg",
            "aggregate.server_optimizer.name": "sgd",
            "aggregate.server_optimizer.nesterov": True,
        },
        start={
            "aggregate.server_optimizer.lr": 0.7,
            "aggregate.server_optimizer.momentum": 0.9,
            "aggregate.weighting": "uniform",
            "algorithm.keep_inner": True,
        },
    ),
    "fedit": Preset(
        "Federated averaging of the two LoRA factors (Zhang et al. 2023, arXiv 2305.05644)",
        fixed={
            "algorithm.name": "fedavg",
            "adapter.kind": "lora",
            "aggregate.rule.name": "mean",
            "aggregate.space.name": "factors",
        },
    ),
    "ffa": Preset(
        "FFA-LoRA: A stays frozen at a shared random start, B is averaged (Sun et al. 2024, arXiv 2403.12313)",
        fixed={
            "algorithm.name": "fedavg",
            "adapter.kind": "lora",
            "adapter.freeze": "A",
            "aggregate.space.name": "factors",
        },
    ),
    "rolora": _lora("RoLoRA: B and A in turns (Chen et al. 2025)", "turns"),
    "flexlora": _lora(
        "FlexLoRA: products averaged, SVD to each client's rank (Bai et al. 2024, arXiv 2402.11505)", "products"
    ),
    "raflora": _lora("raFLoRA: products averaged rank by rank (2026)", "slices", adapter__scale="shared", **PLAIN),
    "flora": _lora("FLoRA: stacked factors carried on top of the base (Wang et al. 2024, arXiv 2409.05976)", "stacked"),
    "fedex": _lora(
        "FedEx-LoRA: averaged factors, the residual carried on top (Singhal et al. 2025, arXiv 2410.09432)",
        "residual",
        aggregate__weighting="uniform",
    ),
    "fedsvd": _lora(
        "FedSVD: B averaged, the product split anew by SVD (Lee et al. 2025, arXiv 2505.12805)",
        "refactored",
        **PLAIN,
    ),
    "slora": _lora(
        "SLoRA: sparse updates first, LoRA from their SVD (Babakniya et al. 2023, arXiv 2308.06522)",
        "sparse",
        adapter__sparse=0.01,
    ),
    "fedsa": Preset(
        "FedSA-LoRA: A is shared, every client keeps its B (Guo et al. 2024, arXiv 2410.01463)",
        fixed={"algorithm.name": "fedper", "adapter.kind": "lora"},
        start={"algorithm.private": ["*.B"]},
    ),
}
"""`algorithm: NAME` in a recipe."""
