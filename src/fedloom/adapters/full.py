"""Every parameter is trained. What travels is the difference to the base, so that a server needs no base.

Only writing the tuned model needs it.
"""

from pathlib import Path

import torch

from fedloom.adapters import classifiers
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models.heads import Classifier
from fedloom.models.load import Base
from fedloom.params import Layout, Leaf


def adapt(base: Base) -> Adapted:
    """Make all parameters trainable, in float32; tied tensors count once. A skeleton's stay without numbers."""
    module = base.module.float().requires_grad_(True)
    named = dict(module.named_parameters())
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
