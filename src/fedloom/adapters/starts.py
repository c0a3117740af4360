"""Where other adapters than LoRA begin: peft's own distributions, drawn from keys, so that every machine has the same.

Tensors are told by the last part of their leaf's name.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedloom import lowrank, rng
from fedloom.adapters.config import AdaLoraConfig, DoraConfig, Ia3Config, OtherConfig, PrefixConfig, VeraConfig
from fedloom.params import Layout, Leaf

SMALL = 0.02
"""Standard deviation of AdaLoRA's singular vectors."""


def start(layout: Layout, config: OtherConfig, seed: int) -> dict[str, Tensor]:
    """First numbers of every leaf, float32, by name; leaves that are differences begin at 0.

    Args:
        layout: the leaves, without a head's.
        config: which kind they belong to.
        seed: the run's.
    """
    shapes = {leaf.name: leaf.shape for leaf in layout.leaves}
    if isinstance(config, DoraConfig):
        return _lora(layout, seed)
    return {
        leaf.name: torch.zeros(leaf.shape) if leaf.origin == "difference" else _one(leaf, config, seed, shapes)
        for leaf in layout.leaves
    }


def projections(config: VeraConfig, seed: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """VeRA's frozen A [rank, inputs] and B [outputs, rank], float32: uniform within ±sqrt(6 / fan-in), as peft's."""
    a = _uniform(rng.key(seed, "vera projection", "A"), (config.rank, inputs), (6 / inputs) ** 0.5)
    b = _uniform(rng.key(seed, "vera projection", "B"), (outputs, config.rank), (6 / config.rank) ** 0.5)
    return a, b


def vocabulary(seed: int, tokens: int, known: int) -> list[int]:
    """Which of the base's `known` tokens virtual ones begin as."""
    ids: list[int] = rng.numbers(rng.key(seed, "adapter start", "vocabulary")).integers(0, known, tokens).tolist()
    return ids


def _lora(layout: Layout, seed: int) -> dict[str, Tensor]:
    """A as LoRA draws it for the same layer, all else 0."""
    told = Layout.of(
        [Leaf(leaf.name, leaf.shape, factor="A" if leaf.name.endswith(".A") else "plain") for leaf in layout.leaves]
    )
    return dict(told.views(lowrank.start(told, seed)))


def _one(leaf: Leaf, config: OtherConfig, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    last, key = leaf.name.rpartition(".")[2], rng.key(seed, "adapter start", leaf.name)
    match config:
        case Ia3Config():
            return torch.ones(leaf.shape)
        case VeraConfig():
            return torch.full(leaf.shape, config.start) if last == "d" else torch.zeros(leaf.shape)
        case AdaLoraConfig():
            return torch.zeros(leaf.shape) if last == "E" else (rng.normal(key, *leaf.shape) * SMALL).float()
        case PrefixConfig() if config.start == "zero" and _last_layer(leaf.name, shapes):
            return torch.zeros(leaf.shape)
    if leaf.name.startswith("prompt.embedding."):
        return rng.normal(key, *leaf.shape).float()
    inputs = shapes[leaf.name.rpartition(".")[0] + ".weight"][1]  # a linear layer as torch begins it
    return _uniform(key, leaf.shape, inputs**-0.5)


def _last_layer(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the numbers of this leaf are those of the prefix itself, or of the layer that makes them."""
    layers = [other.rpartition(".")[0] for other in shapes]
    return name.rpartition(".")[0] == layers[-1]


def _uniform(key: int, shape: tuple[int, ...], bound: float) -> Tensor:
    return ((rng.uniform(key, *shape) * 2 - 1) * bound).float()
