"""A base model with trainable numbers that live in one flat buffer.

Every trainable tensor is a view of `w` and its gradient a view of `g`: a client's weights go in and out with one copy.
Clients whose adapters have smaller ranks use the front of the buffer: their vector brings its own layout.

Over a skeleton layout, start and extras are those of the loaded base. An adapter's own numbers are there as well, so
that it can be saved; nothing can be computed, and parameters trained in full have no numbers at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedloom.adapters.dropout import Moment
from fedloom.adapters.extra import Extra
from fedloom.adapters.together import Together, fitted
from fedloom.contracts import Carry
from fedloom.errors import UserError
from fedloom.params import Layout, Params


@dataclass
class Adapted:
    """A module, its layout, and the buffers behind its trainable tensors."""

    module: nn.Module
    layout: Layout
    """Of the shared vector: the largest ranks."""
    tensors: Sequence[nn.Parameter]
    """Trainable tensors in the order of the layout."""
    start: Params
    """[P] on the CPU: where a fresh run begins."""
    moment: Moment = field(default_factory=Moment)
    extras: Mapping[str, Extra] = field(default_factory=dict)
    """By adapted module, in the order of the layout."""
    rescale: Callable[[Layout], None] | None = None
    """Tells the modules a layout's scales and what else follows from its ranks."""
    together: Together | None = None
    """How clients share a forward pass; None: this kind of adapter cannot."""
    wrapper: nn.Module | None = None
    """peft's, around what is adapted: the module itself, or a classifier's backbone; None: this kind has none."""
    layers: Sequence[int] | None = None
    """The base's blocks that were kept, in this order; None: all."""
    w: Tensor = field(init=False)
    """[P of the layout in use] on the model's device; float32, or float64 for a model in float64. On the CPU for an
    adapter over a skeleton; on `meta` where every parameter of a skeleton is trained."""
    g: Tensor = field(init=False)
    """The same shape, gradients."""
    base: Tensor | None = field(init=False, default=None)
    """[P]: what the base holds where leaves are differences to it."""

    def __post_init__(self) -> None:
        device = self.tensors[0].device
        exact = self.tensors[0].dtype == torch.float64
        self._values = torch.zeros(self.layout.size, device=device, dtype=torch.float64 if exact else torch.float32)
        self._gradients = torch.zeros_like(self._values)
        differences = {leaf.origin == "difference" for leaf in self.layout.leaves}
        if len(differences) > 1:
            raise ValueError("a layout holds values or differences to the base, not both")
        with torch.no_grad():
            views = self.layout.views(self._values)
            for leaf, tensor in zip(self.layout.leaves, self.tensors, strict=True):
                if tuple(tensor.shape) == leaf.shape:
                    views[leaf.name].copy_(tensor)
        self._shape(self.layout)
        if differences == {True}:
            self.base = self.w.clone()

    def rest(self) -> None:
        """Let go of the start and the buffers, until something is loaded: a server only writes adapters, at the end."""
        self.start = torch.empty(0)
        if self.w.device.type != "meta":
            self._values = self._gradients = self.w = self.g = self._values.new_empty(0)
            for tensor in self.tensors:
                tensor.grad, tensor.data = None, self._values

    def _wake(self) -> None:
        self._values = self._values.new_zeros(self.layout.size)
        self._gradients = self._values.new_empty(self.layout.size)  # nothing is trained here, so no page is touched
        self._shape(self.layout)

    @torch.no_grad()
    def load(self, x: Params, layout: Layout | None = None, carry: Carry = ()) -> None:
        """Put a client's vector [P] into the model, and what it carries on top of the base.

        Args:
            x: [P] of the layout.
            layout: the client's own, where its ranks differ from the shared one.
            carry: a pair of factors for each adapted module, or nothing.

        Raises:
            ValueError: the vector or the carry does not fit.
            UserError: the model has no numbers here.
        """
        layout = layout or self.layout
        self.check(x, layout)
        self._has_numbers()
        if self._values.numel() < self.layout.size:
            self._wake()
        if layout is not self._shaped and layout != self._shaped:
            self._shape(layout)
        self.w.copy_(x)
        if self.base is not None:
            self.w.add_(self.base)
        self._carry(carry)
        for extra in self.extras.values():
            extra.live = extra.values is not None and bool(extra.values.any())

    @contextmanager
    def standing(self, x: Params, carry: Carry = ()) -> Iterator[None]:
        """Within, without gradients, the model stands at x [P] of the layout in use; then where it was, to the bit."""
        extras = list(self.extras.values())
        kept, before = self.w.clone(), [(extra.carry, extra.live) for extra in extras]
        self.load(x, self._shaped, carry)
        try:
            with torch.no_grad():
                yield
        finally:
            with torch.no_grad():
                self.w.copy_(kept)
            for extra, (pair, live) in zip(extras, before, strict=True):
                extra.carry, extra.live = pair, live

    def check(self, x: Params, layout: Layout) -> None:
        """Whether a vector is the layout's, and the layout this model's.

        Raises:
            ValueError: it is not.
        """
        if tuple(x.shape) != (layout.size,):
            raise ValueError(f"a vector of {tuple(x.shape)} does not fit a model with {layout.size} numbers")
        if layout is not self.layout and (layout.names != self.layout.names or layout.size > self.layout.size):
            raise ValueError(
                f"a layout of {len(layout.leaves)} tensors and {layout.size} numbers does not fit a model made for "
                f"{len(self.layout.leaves)} and {self.layout.size}; names and order must agree, ranks may be smaller"
            )

    @torch.no_grad()
    def read(self) -> Params:
        """The model's vector [P], a copy on the CPU.

        Raises:
            UserError: the model has no numbers here.
        """
        self._has_numbers()
        return self.now().to("cpu", copy=True)

    def now(self) -> Params:
        """The model's vector [P] on its device; where leaves are differences, what was added to the base."""
        return self.w if self.base is None else self.w - self.base

    def by_name(self) -> dict[str, Tensor]:
        """The trainable numbers by leaf, differentiable; where leaves are differences, what was added to the base."""
        known = {leaf.name: tensor for leaf, tensor in zip(self._shaped.leaves, self.tensors, strict=True)}
        if self.base is None:
            return dict(known)
        base = self._shaped.views(self.base)
        return {name: tensor - base[name] for name, tensor in known.items()}

    def parameters(self, names: Sequence[str] | None) -> list[nn.Parameter]:
        """The trainable tensors, or those of these leaves; what they make trainable is switched on.

        Raises:
            ValueError: a name is no leaf.
        """
        known = {leaf.name: tensor for leaf, tensor in zip(self._shaped.leaves, self.tensors, strict=True)}
        if names is None:
            names = list(known)
        unknown = sorted(set(names) - set(known))
        if unknown or not names:
            raise ValueError(f"`train` names {unknown or 'no leaf at all'}; leaves: {', '.join(list(known)[:4])} ...")
        chosen = [known[name] for name in names]
        for extra in self.extras.values():
            extra.live = extra.live or any(extra.values is tensor for tensor in chosen)
        return chosen

    def _has_numbers(self) -> None:
        if self.w.is_meta:
            raise UserError(
                "adapter.kind=full: what is trained is added to the base's own weights, and this process has the "
                "model without its weights, as a server has; ask where the weights are, or tune an adapter "
                "(adapter.kind=lora)"
            )

    def _shape(self, layout: Layout) -> None:
        """Let the tensors be views of the buffers as this layout cuts them."""
        self.w, self.g = self._values[: layout.size], self._gradients[: layout.size]
        for leaf, tensor in zip(layout.leaves, self.tensors, strict=True):
            span = slice(leaf.offset, leaf.offset + leaf.size)
            tensor.grad = None
            tensor.data = self.w.new_empty(0, dtype=torch.float64)  # another format: a graph still alive lets go of it
            tensor.data = self.w[span].view(leaf.shape)
            tensor.grad = self.g[span].view(leaf.shape)
        if self.rescale is not None:
            self.rescale(layout)
        self._shaped = layout

    def _carry(self, carry: Carry) -> None:
        shapes = [(extra.outputs, extra.inputs) for extra in self.extras.values()]
        for extra, pair in zip(self.extras.values(), fitted(carry, shapes, self.w), strict=True):
            extra.carry = pair
