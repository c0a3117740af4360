"""A base model with trainable numbers that live in one flat buffer.

Every trainable tensor is a view of `w` and its gradient a view of `g`: a client's weights go in and out with one copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedloom.adapters.dropout import Moment
from fedloom.params import Layout, Params


@dataclass
class Adapted:
    """A module, its layout, and the buffers behind its trainable tensors."""

    module: nn.Module
    layout: Layout
    tensors: Sequence[nn.Parameter]
    """Trainable tensors in the order of the layout."""
    start: Params
    """[P] on the CPU: where a fresh run begins."""
    moment: Moment = field(default_factory=Moment)
    w: Tensor = field(init=False)
    """[P] float32 on the model's device."""
    g: Tensor = field(init=False)
    """[P] float32, gradients."""
    base: Tensor | None = field(init=False, default=None)
    """[P]: what the base holds where leaves are differences to it."""

    def __post_init__(self) -> None:
        device = self.tensors[0].device
        self.w = torch.zeros(self.layout.size, device=device)
        self.g = torch.zeros_like(self.w)
        differences = {leaf.origin == "difference" for leaf in self.layout.leaves}
        if len(differences) > 1:
            raise ValueError("a layout holds values or differences to the base, not both")
        with torch.no_grad():
            for leaf, tensor in zip(self.layout.leaves, self.tensors, strict=True):
                span = slice(leaf.offset, leaf.offset + leaf.size)
                self.w[span].copy_(tensor.reshape(-1))
                tensor.data = self.w[span].view(leaf.shape)
                tensor.grad = self.g[span].view(leaf.shape)
        if differences == {True}:
            self.base = self.w.clone()

    @torch.no_grad()
    def load(self, x: Params) -> None:
        """Put a client's vector [P] into the model.

        Raises:
            ValueError: it is not [P].
        """
        if tuple(x.shape) != tuple(self.w.shape):
            raise ValueError(f"a vector of {tuple(x.shape)} does not fit a model with {self.layout.size} numbers")
        self.w.copy_(x)
        if self.base is not None:
            self.w.add_(self.base)

    @torch.no_grad()
    def read(self) -> Params:
        """The model's vector [P], a copy on the CPU."""
        now = self.w if self.base is None else self.w - self.base
        return now.to("cpu", copy=True)

    def parameters(self, names: Sequence[str] | None) -> list[nn.Parameter]:
        """The trainable tensors, or those of these leaves.

        Raises:
            ValueError: a name is no leaf.
        """
        if names is None:
            return list(self.tensors)
        known = {leaf.name: tensor for leaf, tensor in zip(self.layout.leaves, self.tensors, strict=True)}
        unknown = sorted(set(names) - set(known))
        if unknown or not names:
            raise ValueError(f"`train` names {unknown or 'no leaf at all'}; leaves: {', '.join(list(known)[:4])} ...")
        return [known[name] for name in names]
