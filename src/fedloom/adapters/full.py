"""Every parameter is trained. What travels is the difference to the base, so that a server needs no base."""

from pathlib import Path

import torch

from fedloom.adapters.adapted import Adapted
from fedloom.models.load import Base
from fedloom.params import Layout, Leaf, Params


def adapt(base: Base) -> Adapted:
    """Make all parameters trainable, in float32; tied tensors count once."""
    module = base.module.float().requires_grad_(True)
    named = dict(module.named_parameters())
    layout = Layout.of([Leaf(name, tuple(p.shape), origin="difference") for name, p in named.items()])
    return Adapted(module, layout, list(named.values()), torch.zeros(layout.size))


def save(adapted: Adapted, x: Params, folder: Path) -> None:
    """Write the whole tuned model as a Hugging Face folder."""
    before = adapted.read()
    adapted.load(x)
    adapted.module.save_pretrained(str(folder))  # type: ignore[operator]
    adapted.load(before)
