"""Whether two machines hold the same base model, whatever format each of them computes in."""

import hashlib

import torch
from torch import nn

SAMPLE = 64
"""Numbers looked at in each tensor."""


def kin(module: nn.Module) -> str:
    """Sixteen hex digits over the names, shapes and 64 values of every tensor of a base without adapter, in bfloat16.

    A file's numbers become the same bfloat16 whether they are loaded as that or as float32.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLE)].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
