"""A frozen base held in 8 or 4 bits, with an adapter in full precision on top (QLoRA).

Dettmers et al. 2023, https://arxiv.org/abs/2305.14314 (nf4); Dettmers et al. 2022, https://arxiv.org/abs/2208.07339
(int8, one scale for each output). bitsandbytes makes the numbers and holds them; every product here is that of the
weights they stand for, made for the moment and thrown away, in the backward pass as well:

* LLM.int8() rounds inputs too, by what stands beside them in a batch; here a text's result is its own.
* On some CPUs bitsandbytes rearranges 4-bit weights when it first evaluates, and gives no gradients from then on.
"""

import importlib.util
import logging
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom.errors import UserError

Quantised = Literal["int8", "nf4"]
_LARGEST = 127
"""What 1 is in eight bits."""
# When it is imported, which peft does wherever it is installed, it warns of a product of its own that is not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def settings(kind: Quantised, dtype: torch.dtype) -> Any:
    """What transformers is told when it loads the model.

    Args:
        kind: the format.
        dtype: of everything else, and of the products.

    Raises:
        UserError: the libraries are not installed.
    """
    absent = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"model.quantize={kind} needs {' and '.join(absent)}, which {'are' if len(absent) > 1 else 'is'} not "
            "installed; pip install 'fedloom[quant]', or leave model.quantize out"
        )
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def attach(module: nn.Module) -> None:
    """Let every quantised layer of a loaded model compute with the weights its numbers stand for.

    Raises:
        UserError: there is no such layer.
    """
    layers = [layer for layer in module.modules() if held(layer)]
    if not layers:
        raise UserError(
            f"model.quantize: a {type(module).__name__} has no linear layer that can be quantised; leave it out"
        )
    for layer in layers:
        layer.forward = _Layer(layer)


def laid_out(module: Any) -> None:
    """What transformers makes of a model before it is quantised, for a skeleton: GPT-2's layers are turned back."""
    for name, layer in list(module.named_modules()):
        if type(layer).__name__ == "Conv1D":
            inputs, outputs = layer.weight.shape
            plain = nn.Linear(inputs, outputs, layer.bias is not None, device="meta", dtype=layer.weight.dtype)
            module.set_submodule(name, plain.requires_grad_(False))


def held(layer: nn.Module) -> bool:
    """Whether a layer's weights are quantised."""
    return type(layer).__name__ in ("Linear4bit", "Linear8bitLt")


def shape(layer: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer, however it is held; the other way round for GPT-2's, as it is stored."""
    if held(layer):
        return layer.out_features, layer.in_features
    outputs, inputs = layer.weight.shape
    return outputs, inputs


def count(module: nn.Module) -> int:
    """Parameters of the model, each quantised weight as one."""
    packed = {id(layer.weight): math.prod(shape(layer)) for layer in module.modules() if held(layer)}
    return sum(packed.get(id(p), p.numel()) for p in module.parameters())


def dense(layer: Any, dtype: torch.dtype) -> Tensor:
    """[outputs, inputs]: the weights a layer's numbers stand for."""
    weight = layer.weight
    if type(layer).__name__ == "Linear8bitLt":
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB
        return (weight.data.to(scales.dtype) * (scales / _LARGEST)[:, None]).to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return found.to(dtype)


class _Layer:
    """In place of a layer's own forward."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.layer)  # type: ignore[no-untyped-call]
        bias = self.layer.bias
        return y if bias is None else y + bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x W^T, without keeping W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, dense(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        return g @ dense(ctx.layer, g.dtype), None
