"""From the recipe's `adapter` section to an adapted model, and back to files."""

from pathlib import Path
from typing import Any

from fedloom.adapters import full, lora, others, others_saved, saved
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.blocks import Called, own
from fedloom.adapters.config import AdapterConfig, FullConfig, LoraConfig
from fedloom.contracts import Model
from fedloom.models.load import Base
from fedloom.params import Layout


def adapt(
    base: Base,
    config: AdapterConfig,
    seed: int,
    ranks: lora.Ranks | None = None,
    called: Called = own,
    tokenizer: Any = None,
) -> Adapted:
    """Give the base trainable numbers; they start at a point drawn from `seed`.

    No start looks at the base's weights, so a skeleton gives the same layout and the same start to the bit.

    Args:
        base: the model, or its skeleton.
        config: what is trained.
        seed: where it starts.
        ranks: the largest rank any client holds, by adapted module; None: the same for all.
        called: what the layout calls a module or parameter; by that name its start is drawn, too.
        tokenizer: the model's, for a prompt that starts from a text; else it may be None.

    Raises:
        UserError: the model has not what the configuration names.
    """
    match config:
        case LoraConfig():
            return lora.adapt(base, config, seed, ranks, called)
        case FullConfig():
            return full.adapt(base, config, called)
    return others.adapt(base, config, seed, tokenizer)


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
        case _:
            others_saved.save(adapted, model, layout, base_name, folder)
