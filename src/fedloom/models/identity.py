"""Whether two machines hold the same base model, whatever format each of them computes in."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.models import quantised

SAMPLE = 64
"""Numbers looked at in each tensor."""


def kin(module: nn.Module) -> str:
    """Sixteen hex digits over the names, shapes and 64 values of every tensor of a base without adapter, in bfloat16.

    A file's numbers become the same bfloat16 whether they are loaded as that or as float32. Quantised ones are others,
    so that their digits end in the format, as in `@nf4`.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        _look(digest, name, tensor)
    formats = sorted({type(layer).__name__ for layer in module.modules() if quantised.held(layer)})
    return digest.hexdigest() + "".join(f"@{FORMATS[name]}" for name in formats)


FORMATS = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}


def frame(module: nn.Module) -> str:
    """Sixteen hex digits over what is the same however the linear layers inside are held: their names and sizes, and 64
    values of every other tensor (embeddings, norms, biases).
    """
    digest = hashlib.blake2b(digest_size=8)
    inside = {
        f"{name}.weight": sorted(quantised.shape(layer)) for name, layer in module.named_modules() if _linear(layer)
    }
    for name, tensor in sorted(module.named_parameters(remove_duplicate=False)):
        if name in inside:
            digest.update(f"{name} {inside[name]}".encode())
        else:
            _look(digest, name, tensor)
    return digest.hexdigest()


def _look(digest: Any, name: str, tensor: Tensor) -> None:
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLE)].to("cpu", torch.bfloat16).contiguous()
    digest.update(f"{name} {tuple(tensor.shape)}".encode())
    digest.update(sample.view(torch.int16).numpy().tobytes())


def _linear(layer: nn.Module) -> bool:
    return quantised.held(layer) or isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
