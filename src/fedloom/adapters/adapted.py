"""A base model with trainable numbers that live in one flat buffer.

Every trainable tensor is a view of `w` and its gradient a view of `g`: a client's weights go in and out with one copy.
Clients whose adapters have smaller ranks use the front of the buffer: their vector brings its own layout.

Where vectors are differences to the base, the base's own numbers stand in the buffer until a vector comes: only then is
there a copy of them. A drift needs none: the model is moved in place from one to the next.

Over a skeleton layout, start and extras are those of the loaded base. An adapter's own numbers are there as well, so
that it can be saved; nothing can be computed, and parameters trained in full have no numbers at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedloom.adapters.budget import Budget
from fedloom.adapters.dropout import Moment
from fedloom.adapters.extra import Extra
from fedloom.adapters.together import Together, fitted
from fedloom.contracts import Carry
from fedloom.drift import Drift, Footing
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
    names: Mapping[str, str] = field(default_factory=dict)
    """What the model calls an adapted module, by what the layout calls it, where these differ."""
    shifts: bool = False
    """The module itself adds a leaf's difference to the base's number: vectors stand in it as they are."""
    bare: Callable[[], AbstractContextManager[None]] | None = None
    """Lets the module compute as its base; None: zeros of the vector do."""
    apart: str = "this kind of adapter changes weights that clients would share"
    """Why clients cannot share a forward pass, where they cannot."""
    budget: Budget | None = None
    """What a kind of falling ranks decides after each step."""
    w: Tensor = field(init=False)
    """[P of the layout in use] on the model's device; float32, or float64 for a model in float64. On the CPU for an
    adapter over a skeleton; on `meta` where every parameter of a skeleton is trained."""
    g: Tensor = field(init=False)
    """The same shape, gradients. Empty until something is trained, where every parameter is."""
    differences: bool = field(init=False)
    """Vectors are what was added to the base, and are so here."""
    footing: Footing | None = field(init=False, default=None)
    """Of a model at a drift: `w` itself where vectors are differences, else a vector of its own."""

    def __post_init__(self) -> None:
        differences = {leaf.origin == "difference" for leaf in self.layout.leaves}
        if len(differences) > 1 and not self.shifts:
            raise ValueError("a layout holds values or differences to the base, not both")
        self.differences = differences == {True} and not self.shifts
        self._base: Tensor | None = None
        self._astray = False  # w is neither the base nor at the footing
        self._stood: Tensor | None = None  # what stood at the footing, before something was loaded over it
        exact = self.tensors[0].dtype == torch.float64
        dtype = torch.float64 if exact else torch.float32
        self._values = torch.empty(self.layout.size, device=self.tensors[0].device, dtype=dtype)
        self._gradients = self._values.new_empty(0) if self.differences else torch.zeros_like(self._values)
        with torch.no_grad():
            views = self.layout.views(self._values)
            for leaf, tensor in zip(self.layout.leaves, self.tensors, strict=True):
                if tuple(tensor.shape) != leaf.shape:
                    views[leaf.name].zero_()
                    continue
                views[leaf.name].copy_(tensor)
                tensor.data = views[leaf.name]  # one by one, so that the model is never there twice
        self._shape(self.layout)

    def rest(self, start: bool = True) -> None:
        """Let go of the buffers, until something is loaded: a server only writes adapters, at the end.

        Args:
            start: let go of the start too, which only drifts are still reckoned from.
        """
        if start:
            self.start = torch.empty(0)
        if self.w.device.type != "meta":
            self._values = self._gradients = self.w = self.g = self._values.new_empty(0)
            self.footing = None
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
        base = self._origin() if self.differences else None
        if base is not None and self.footing is not None and not self._astray:
            self._stood = self.w.clone()
        self.w.copy_(x)
        if base is not None:
            self.w.add_(base)
        self._astray = True
        self._carry(carry)
        for extra in self.extras.values():
            extra.live = extra.values is not None and bool(extra.values.any())

    def stand(self, drift: Drift, layout: Layout) -> Footing:
        """Let the model stand where a drift leads from the run's start, carrying nothing.

        Returns:
            What stands in `w` and may move on; it is good until the model is given something else.

        Raises:
            Strayed: the drift leaves the range its moves are exact in.
            UserError: the layout is not the shared one, or the model has no numbers here.
        """
        if not self.differences:
            w, footing = self.beside(drift, layout)
            self.load(w, layout)
            return footing.copied(self.w)
        self._shared(layout)
        if self.footing is None:
            if self._base is not None:
                self.w.copy_(self._base)
            self.footing = Footing(self.w, self.layout)
        elif self._astray and self._stood is not None:
            self.w.copy_(self._stood)
        elif self._astray:
            assert self._base is not None
            self.footing.begin(self._base)
        self._stood = None
        self._astray = False
        self.footing.to(drift)
        return self.footing

    def beside(self, drift: Drift, layout: Layout) -> tuple[Params, Footing]:
        """Where a drift leads from the run's start [P], on the model's device, and what stands there and may move on:
        both the caller's. Not for differences.

        Raises:
            Strayed: the drift leaves the range its moves are exact in.
            UserError: the layout is not the shared one.
        """
        self._shared(layout)
        if self.footing is None:
            self.footing = Footing(self.start.to(self.w, copy=True), self.layout)
        self.footing.to(drift)  # from where the last one led, which is near
        w = self.footing.w.clone()
        return w, self.footing.copied(w)

    def _shared(self, layout: Layout) -> None:
        self._has_numbers()
        if layout != self.layout:
            raise UserError(
                "a model that is reached by seeds and amounts has one layout for all clients; give all of them the "
                "same ranks"
            )

    def _origin(self) -> Tensor:
        """[P]: the base's own numbers; copied when they are first asked for, on their grids if the model drifted."""
        if self._base is None:
            amounts = self.footing.amounts if self.footing is not None else {}
            if self.footing is not None:
                self.footing.go({})
            self._base = self.w.clone()
            if self.footing is not None:
                self.footing.go(amounts)
        return self._base

    @contextmanager
    def standing(self, x: Params, carry: Carry = ()) -> Iterator[None]:
        """Within, without gradients, the model stands at x [P] of the layout in use; then where it was, to the bit."""
        extras = list(self.extras.values())
        kept, astray, before = self.w.clone(), self._astray, [(extra.carry, extra.live) for extra in extras]
        self._astray = True  # and `kept` will be put back
        self.load(x, self._shaped, carry)
        try:
            with torch.no_grad():
                yield
        finally:
            with torch.no_grad():
                self.w.copy_(kept)
            self._astray = astray
            for extra, (pair, live) in zip(extras, before, strict=True):
                extra.carry, extra.live = pair, live

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within, without gradients, the model is its base; then it stands where it stood, to the bit."""
        if self.bare is None:  # no product of factors, no difference
            with self.standing(torch.zeros_like(self.w, device="cpu")):
                yield
            return
        with torch.no_grad(), self.bare():
            yield

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
        return self.now().to("cpu", copy=not self.differences)

    def now(self) -> Params:
        """The model's vector [P] on its device; where leaves are differences, what was added to the base."""
        return self.w - self._origin() if self.differences else self.w

    def by_name(self) -> dict[str, Tensor]:
        """The trainable numbers by leaf, differentiable; where leaves are differences, what was added to the base."""
        known = {leaf.name: tensor for leaf, tensor in zip(self._shaped.leaves, self.tensors, strict=True)}
        if not self.differences:
            return dict(known)
        base = self._shaped.views(self._origin())
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
        if self._gradients.numel() < self._values.numel():
            self._gradients = torch.zeros_like(self._values)
            self._shape(self._shaped)
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
            if self.g.numel():
                tensor.grad = self.g[span].view(leaf.shape)
        if self.rescale is not None:
            self.rescale(layout)
        self._shaped = layout

    def _carry(self, carry: Carry) -> None:
        shapes = [(extra.outputs, extra.inputs) for extra in self.extras.values()]
        for extra, pair in zip(self.extras.values(), fitted(carry, shapes, self.w), strict=True):
            extra.carry = pair
