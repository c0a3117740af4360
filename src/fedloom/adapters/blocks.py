"""Which parameters of a model belong to some of its blocks, and what a layout calls them.

Of a classifier the blocks are those of the model inside; its head is trained with whatever else is.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import nn

from fedloom.adapters.config import FullConfig
from fedloom.errors import UserError
from fedloom.models.heads import Classifier
from fedloom.models.layers import find

Called: TypeAlias = Callable[[str], str]
"""From the name of a module or parameter in the model to its name in the layout."""
INSIDE, HEAD = "backbone.", "head."
"""How names in a classifier begin."""


def own(name: str) -> str:
    """The model's own name."""
    return name


def within(module: Any, layers: Sequence[int], asked: str) -> Callable[[str], bool]:
    """Whether a name in the model is in one of these blocks.

    Args:
        module: the model, or its skeleton; no classifier.
        layers: the blocks, counted from 0.
        asked: the setting that names them, for messages.

    Raises:
        UserError: one of them is no block, or comes twice; or the blocks cannot be found.
    """
    name, blocks = find(module, asked)
    wrong = [i for i in layers if not 0 <= i < len(blocks)]
    if wrong:
        last = len(blocks) - 1
        raise UserError(f"{asked}: {wrong[0]} is no layer of this model, which has {len(blocks)} (0 to {last})")
    twice = sorted({i for i in layers if list(layers).count(i) > 1})
    if twice:
        raise UserError(f"{asked}: layer {twice[0]} is named twice; name each at most once")
    begins = tuple(f"{name}.{i}." for i in layers)
    return lambda one: one.startswith(begins)


def trained(module: nn.Module, config: FullConfig) -> Callable[[str], bool]:
    """Whether a parameter is trained, by its name.

    Raises:
        UserError: none is, or there are no such blocks.
    """
    if config.layers is None:
        return lambda name: True
    if not config.layers and not config.embeddings:
        raise UserError("adapter.layers=[] without adapter.embeddings: nothing would be trained; name a block")
    classifier = isinstance(module, Classifier)
    model: Any = module.backbone if isinstance(module, Classifier) else module
    inside = within(model, config.layers, "adapter.layers")
    blocks = f"{find(model, 'adapter.layers')[0]}."

    def wanted(name: str) -> bool:
        if classifier and name.startswith(HEAD):
            return True
        inner = name.removeprefix(INSIDE) if classifier else name
        return inside(inner) or (config.embeddings and not inner.startswith(blocks))

    return wanted
