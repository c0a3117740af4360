"""What goes with a model that stays with its owner, and what means nothing beside it."""

from collections.abc import Iterator
from typing import Final, TypeAlias

from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.algorithms.config import FedBiotConfig
from fedloom.config.schema import Config
from fedloom.errors import UserError
from fedloom.models.offsite_config import AlignConfig

Said: TypeAlias = Iterator[tuple[str, ...]]
"""(what is wrong, the key it is said of, further keys it depends on)."""


def bounds(config: Config) -> Said:
    """Something is kept, something is left out, and clients have something to train."""
    offsite = config.offsite
    if offsite is None:
        return
    if not 0 < offsite.drop_ratio < 1:
        text = (
            f"is {offsite.drop_ratio:g}: 0 gives the owner's model away whole, and 1 leaves no emulator. Choose a "
            "share between them, such as 0.5."
        )
        yield text, "offsite.drop_ratio"
    if offsite.head_layers + offsite.tail_layers == 0 and not offsite.embeddings:
        text = "is 0, and so is offsite.tail_layers: no block is left for clients to train. Set one of them."
        yield text, "offsite.head_layers", "offsite.tail_layers", "offsite.embeddings"
    if offsite.method == "distill" and offsite.align.kd_weight == 0 == offsite.align.lm_weight:
        text = "is 0, and so is offsite.align.lm_weight: nothing would be learned. Set one of them."
        yield text, "offsite.align.kd_weight", "offsite.align.lm_weight", "offsite.method"


def whole_models(config: Config) -> Said:
    """The owner's model is counted from its first block to its last, and speaks."""
    if config.offsite is None:
        return
    if config.model.layers is not None:
        text = "is given, but offsite chooses the blocks itself, out of all of them. Leave it out."
        yield text, "model.layers", "offsite"
    if config.objective.rows == "labels":
        text = "is classify, but a distilled emulator is aligned by its language head, and so is what leaks measured. "
        yield f"{text}Use objective=sft (with the class as the answer), or leave offsite out.", "objective", "offsite"


def what_clients_train(config: Config) -> Said:
    """Blocks that stay the clients' own kind of thing: their parameters, or LoRA inside them."""
    adapter = config.adapter
    if config.offsite is None:
        return
    if not isinstance(adapter, LoraConfig | FullConfig):
        text = f"is {adapter.kind}, but under offsite clients train whole blocks (full) or LoRA inside them (lora)."
        yield text, "adapter.kind", "offsite"
    elif adapter.layers is not None:
        text = "is given, but offsite says which blocks clients train (head_layers, tail_layers). Leave it out."
        yield text, "adapter.layers", "offsite"
    if config.offsite.embeddings and isinstance(adapter, LoraConfig):
        text = "is true, but adapter.kind=lora has no factors for embeddings. Use adapter.kind=full, or leave it out."
        yield text, "offsite.embeddings", "adapter.kind"
    if config.algorithm.name == "fedkd":
        text = (
            "is fedkd, whose teacher speaks to the model the server holds, and under offsite that is the emulator. Use "
            "another algorithm, or leave offsite out."
        )
        yield text, "algorithm", "offsite"


def two_levels(config: Config) -> Said:
    """What FedBiOT works on: an emulator with factors in all of its blocks, and rows of nobody."""
    algorithm, adapter = config.algorithm, config.adapter
    if not isinstance(algorithm, FedBiotConfig):
        return
    if config.offsite is None:
        text = "is fedbiot, which tunes a model through an emulator, and there is none. Set offsite, or use fedavg."
        yield text, "algorithm", "offsite"
    if isinstance(adapter, FullConfig):
        text = (
            "is full, but fedbiot holds clients by LoRA's products and lets the emulator follow by LoRA. Use "
            "adapter.kind=lora, or algorithm=fedavg."
        )
        yield text, "adapter.kind", "algorithm"
    if algorithm.aligns and not config.data.public and config.data.public_source is None:
        text = (
            "is fedbiot, whose server aligns the emulator on rows that belong to no client. Set data.public (a share "
            "of the training rows, such as 0.2) or data.public_source (a file of the server's own)."
        )
        yield text, "algorithm", "data.public"


def idle(config: Config) -> list[str]:
    """Settings of alignments that never take place, in words."""
    return _aligned_never(config) + _never_made(config)


def _aligned_never(config: Config) -> list[str]:
    algorithm, plain = config.algorithm, FedBiotConfig()
    if not isinstance(algorithm, FedBiotConfig) or algorithm.aligns:
        return []
    keys = ("kd_weight", "lr", "batch_size", "max_grad_norm")
    given = [key for key in keys if getattr(algorithm, key) != getattr(plain, key)]
    return [f"algorithm.{key} has no effect: prealign_steps and align_steps are 0" for key in given]


def _never_made(config: Config) -> list[str]:
    offsite = config.offsite
    if offsite is None or offsite.method == "distill":
        return []
    plain = AlignConfig()
    given = [key for key in AlignConfig.model_fields if getattr(offsite.align, key) != getattr(plain, key)]
    why = "offsite.method=drop leaves the blocks as they are"
    return [f"offsite.align.{key} has no effect on the run: {why}" for key in given]


def check_made(config: Config, deployed: bool = False) -> None:
    """Whether the emulator a run needs was named; a simulation that only drops blocks makes its own.

    Raises:
        UserError: it was not.
    """
    offsite = config.offsite
    if offsite is None or offsite.emulator is not None:
        return
    if deployed:
        raise UserError(
            "offsite.emulator is not set, and in a deployment clients get the emulator as a folder; make it with "
            "`fedloom emulator build`, hand it over, and set offsite.emulator=FOLDER"
        )
    if offsite.method == "distill":
        raise UserError(
            "offsite.method=distill: a distilled emulator is made before the run, once; make it with `fedloom emulator "
            "build`, then set offsite.emulator=FOLDER"
        )


OFFSITE: Final = (bounds, whole_models, what_clients_train, two_levels)
