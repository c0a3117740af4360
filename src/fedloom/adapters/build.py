"""From the recipe's `adapter` section to an adapted model, and back to files."""

from pathlib import Path

from fedloom.adapters import full, lora, saved
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.config import AdapterConfig, FullConfig, LoraConfig
from fedloom.contracts import Model
from fedloom.models.load import Base
from fedloom.params import Layout


def adapt(base: Base, config: AdapterConfig, seed: int, ranks: lora.Ranks | None = None) -> Adapted:
    """Give the base trainable numbers; they start at a point drawn from `seed`.

    No start looks at the base's weights, so a skeleton gives the same layout and the same start to the bit.

    Args:
        base: the model, or its skeleton.
        config: what is trained.
        seed: where it starts.
        ranks: the largest rank any client holds, by adapted module; None: the same for all.
    """
    match config:
        case LoraConfig():
            return lora.adapt(base, config, seed, ranks)
        case FullConfig():
            return full.adapt(base)


def save(adapted: Adapted, config: AdapterConfig, model: Model, layout: Layout, base_name: str, folder: Path) -> None:
    """Write what a model means, as peft or transformers would; x is [P] of the layout.

    Raises:
        UserError: a whole model is to be written, and its base is a skeleton.
    """
    match config:
        case LoraConfig():
            saved.save(adapted, model, layout, base_name, folder)
        case FullConfig():
            full.save(adapted, model, folder)
