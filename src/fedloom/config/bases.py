"""What goes with a base whose weights are held in few bits."""

from collections.abc import Iterator
from typing import Final, TypeAlias

from fedloom.adapters.config import FullConfig
from fedloom.config.schema import Config

Said: TypeAlias = Iterator[tuple[str, ...]]
"""(what is wrong, the key it is said of, further keys it depends on)."""


def whole_weights(config: Config) -> Said:
    """A weight that is held in few bits cannot take small steps."""
    if config.model.quantize is not None and isinstance(config.adapter, FullConfig):
        text = f"is {config.model.quantize}, but adapter.kind is full, which trains the weights themselves. Use "
        yield f"{text}adapter.kind=lora, or leave model.quantize out.", "model.quantize", "adapter"


def emulators_of_whole_weights(config: Config) -> Said:
    """An emulator is cut out of the owner's weights, and its ends go back into them."""
    if config.model.quantize is not None and config.offsite is not None:
        text = f"is {config.model.quantize}, but offsite tuning takes blocks out of the model and puts them back. "
        yield f"{text}Leave one of both out.", "model.quantize", "offsite"


BASES: Final = (whole_weights, emulators_of_whole_weights)
