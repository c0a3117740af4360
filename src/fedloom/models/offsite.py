"""Which blocks of a model are the clients' adapter, and which stand for the others in the emulator.

Xiao et al. 2023, Offsite-Tuning: Transfer Learning without Full Model, https://arxiv.org/abs/2302.04870.
"""

from dataclasses import dataclass

from fedloom.errors import UserError
from fedloom.models.offsite_config import OffsiteConfig


@dataclass(frozen=True)
class Plan:
    """Blocks of the owner's model and of its emulator, both counted from 0."""

    blocks: int
    """Of the owner's model."""
    head: int
    """The first so many are the adapter."""
    tail: int
    """So are the last so many."""
    kept: tuple[int, ...]
    """Blocks of the owner's model that stand, in this order, for all between head and tail."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The emulator's blocks in their order, as blocks of the owner's model."""
        return (*range(self.head), *self.kept, *range(self.blocks - self.tail, self.blocks))

    @property
    def middle(self) -> tuple[int, ...]:
        """Blocks that stay with the owner."""
        return tuple(range(self.head, self.blocks - self.tail))

    @property
    def adapter(self) -> tuple[int, ...]:
        """Blocks of the emulator that clients train."""
        count = len(self.layers)
        return (*range(self.head), *range(count - self.tail, count))

    @property
    def emulated(self) -> tuple[int, ...]:
        """Blocks of the emulator that clients do not train."""
        return tuple(range(self.head, self.head + len(self.kept)))

    def home(self, block: int) -> int:
        """The owner's block that a block of the emulator goes back to, or was taken from."""
        return self.layers[block]


def plan(config: OffsiteConfig, blocks: int) -> Plan:
    """The blocks a recipe means, of a model with so many.

    Raises:
        UserError: the bounds leave no adapter or nothing between, or the emulator would be empty or whole.
    """
    head, tail, ratio = config.head_layers, config.tail_layers, config.drop_ratio
    if head + tail == 0 and not config.embeddings:
        raise UserError(
            "offsite.head_layers=0 and offsite.tail_layers=0: no block is left for clients to train; set one of them"
        )
    middle = blocks - head - tail
    if middle < 2:
        raise UserError(
            f"offsite.head_layers={head} and offsite.tail_layers={tail}: the model has {blocks} blocks, so "
            f"{max(middle, 0)} would stay with its owner, and an emulator stands for two or more; lower them"
        )
    if not 0 < ratio < 1:
        raise UserError(
            f"offsite.drop_ratio={ratio:g}: 0 gives the owner's model away whole, and 1 leaves no emulator; choose a "
            "share between them, such as 0.5"
        )
    count = round(middle * (1 - ratio))  # half a block goes to the even number, as in both projects
    if not 0 < count < middle:
        what = "none of them" if count == 0 else "all of them"
        raise UserError(
            f"offsite.drop_ratio={ratio:g}: of {middle} middle blocks it keeps {what}; choose a share between "
            f"{1 / (2 * middle):.2g} and {1 - 1 / (2 * middle):.2g}"
        )
    return Plan(blocks, head, tail, tuple(head + i for i in spaced(middle, count, config.rule)))


def spaced(blocks: int, count: int, rule: str = "official") -> list[int]:
    """`count` of so many blocks, evenly spaced, the first and the last among them; a single one is the first.

    Args:
        blocks: how many there are.
        count: how many stay, at least 1.
        rule: `official` rounds a place (0.5 to the even number), `fs_llm` cuts it down to a whole number.
    """
    if count == 1:
        return [0]
    stride = (blocks - 1) / (count - 1)
    return [round(i * stride) if rule == "official" else int(i * stride) for i in range(count)]
