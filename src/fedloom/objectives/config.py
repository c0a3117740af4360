"""Which loss is minimised."""

from typing import Literal

from fedloom.settings import Strict


class SftConfig(Strict):
    """Supervised fine-tuning: cross-entropy of the answer's tokens given the prompt."""

    name: Literal["sft"] = "sft"


ObjectiveConfig = SftConfig
