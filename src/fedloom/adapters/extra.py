"""What an adapted module adds to its output beside its adapter: a carried product, a sparse update.

The shared base is never changed: both are computed next to it, so what one client carries touches no other.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fedloom import masks
from fedloom.adapters.dropout import Moment


@dataclass
class Extra:
    """Hangs on one adapted module; the engine sets what applies to the client at hand."""

    outputs: int
    inputs: int
    moment: Moment
    carry: tuple[Tensor, Tensor] | None = None
    """L [out, k], R [k, in] with the scale within."""
    values: Tensor | None = None
    """[k] entries of a sparse update, trainable; None: this adapter has none."""
    places: Tensor | None = None
    """[k] where they stand in the flattened [out, in] matrix."""
    live: bool = False
    """Whether the sparse update is trained or not zero; computing it costs as much as a dense layer."""

    def hang(self, layer: nn.Module) -> None:
        """Make the layer add it to what it computes."""
        layer.register_forward_hook(self._added)

    def _added(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.moment.segments is not None:  # the segments bring their own
            return output
        x = inputs[0]
        if self.carry is not None:
            left, right = self.carry
            output = output + functional.linear(functional.linear(x.to(right.dtype), right), left).to(output.dtype)
        if self.live and self.values is not None and self.places is not None:
            update = masks.dense(self.values, self.places, self.outputs, self.inputs)
            output = output + functional.linear(x.to(update.dtype), update).to(output.dtype)
        return output
