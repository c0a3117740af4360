"""The classification head beside an adapter: plain leaves `head.<parameter>` behind those of the adapted layers."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fedloom.models import heads
from fedloom.models.heads import Classifier
from fedloom.params import Leaf

PREFIX = "head."
POOLER = r"(.*\.)?pooler(_activation)?(\..*)?"
"""A model's own pooler, which is never adapted."""


def trainable(model: Classifier) -> list[tuple[Leaf, nn.Parameter]]:
    """The head's leaves and their tensors; a skeleton's are put on the CPU, as an adapter's are."""
    if next(model.head.parameters()).is_meta:
        model.head.to_empty(device="cpu")
        for tensor in model.head.parameters():
            nn.init.zeros_(tensor)
    model.head.requires_grad_(True)
    return [(Leaf(PREFIX + name, tuple(tensor.shape)), tensor) for name, tensor in model.head.named_parameters()]


def start(model: Classifier) -> dict[str, Tensor]:
    """Where the head's leaves begin, by name; a skeleton's are those of the loaded model."""
    return {
        PREFIX + name: heads.start(model.spec, name, tuple(tensor.shape))
        for name, tensor in model.head.named_parameters()
    }


def views(names: Sequence[str], values: Mapping[str, Tensor], grads: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The head's parameters as one row holds them.

    Args:
        names: of the head's parameters.
        values: views of the row, by leaf.
        grads: views of its gradients, by leaf; None: nothing is trained.
    """
    found = {name: values[PREFIX + name].detach() for name in names}
    if grads is not None:
        for name, value in found.items():
            value.requires_grad_(True).grad = grads[PREFIX + name]
    return found
