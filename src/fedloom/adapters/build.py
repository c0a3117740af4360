"""From the recipe's `adapter` section to an adapted model, and back to files."""

from pathlib import Path

from fedloom.adapters import full, lora
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.config import AdapterConfig, FullConfig, LoraConfig
from fedloom.models.load import Base
from fedloom.params import Params


def adapt(base: Base, config: AdapterConfig, seed: int) -> Adapted:
    """Give the base trainable numbers; they start at a point drawn from `seed`."""
    match config:
        case LoraConfig():
            return lora.adapt(base, config, seed)
        case FullConfig():
            return full.adapt(base)


def save(adapted: Adapted, config: AdapterConfig, x: Params, base_name: str, folder: Path) -> None:
    """Write what a vector [P] means, as peft or transformers would."""
    match config:
        case LoraConfig():
            lora.save(adapted, x, base_name, folder)
        case FullConfig():
            full.save(adapted, x, folder)
