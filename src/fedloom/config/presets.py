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


PRESETS: Final[Mapping[str, Preset]] = {
    "fedavgm": Preset(
        "Federated averaging with server momentum (Hsu et al. 2019, arXiv 1909.06335)",
        fixed={"algorithm.name": "fedavg", "aggregate.server_optimizer.name": "sgd"},
        start={"aggregate.server_optimizer.momentum": 0.9},
    ),
    "fedit": Preset(
        "Federated averaging of the two LoRA factors (Zhang et al. 2023, arXiv 2305.05644)",
        fixed={
            "algorithm.name": "fedavg",
            "adapter.kind": "lora",
            "aggregate.rule": "mean",
            "aggregate.space": "factors",
        },
    ),
}
