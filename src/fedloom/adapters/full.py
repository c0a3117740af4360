"""Every parameter is trained, or all of some blocks. What travels is the difference to the base, so that a server needs
no base.

Only writing the tuned model needs it. What is not trained is no leaf: it gets no gradient and does not travel. It is in
float32 as well, so that the model computes in one format.
"""

from pathlib import Path

import torch

from fedloom.adapters import classifiers
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.blocks import Called, own, trained
from fedloom.adapters.config import FullConfig
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models.heads import Classifier
from fedloom.models.load import Base
from fedloom.params import Layout, Leaf


def adapt(base: Base, config: FullConfig | None = None, called: Called = own) -> Adapted:
    """Make parameters trainable, in float32; tied tensors count once. A skeleton's stay without numbers.

    Args:
        base: the model, or its skeleton.
        config: which parameters; None: all.
        called: what the layout calls a parameter.

    Raises:
        UserError: the model has no such blocks.
    """
    module = base.module.float().requires_grad_(False)
    wanted = trained(module, config or FullConfig())
    named = {called(name): p for name, p in module.named_parameters() if wanted(name)}
    for tensor in named.values():
        tensor.requires_grad_(True)
    layout = Layout.of([Leaf(name, tuple(p.shape), origin="difference") for name, p in named.items()])
    start = torch.zeros(()).expand(layout.size)  # no difference: nothing to hold
    return Adapted(module, layout, list(named.values()), start, layers=base.layers)


def save(adapted: Adapted, model: Model, folder: Path) -> None:
    """Write the whole tuned model as a Hugging Face folder; a classifier's head stands in files of its own.

    Raises:
        UserError: the base is a skeleton.
    """
    if adapted.w.is_meta:
        raise UserError(
            f"adapter.kind=full: the tuned model cannot be written to {folder}, because it is the base plus what was "
            "trained, and this process has the base without its weights, as a server has. What was trained is in the "
            "checkpoints; write the model where the weights are, or tune an adapter (adapter.kind=lora)"
        )
    before = None if model.drift is not None else adapted.read()
    if model.drift is not None:
        adapted.stand(model.drift, adapted.layout)
    else:
        adapted.load(model.x)
    if isinstance(adapted.module, Classifier):
        classifiers.save_whole(adapted.module, folder)
    else:
        adapted.module.save_pretrained(str(folder))  # type: ignore[operator]
    if before is not None:
        adapted.load(before)
