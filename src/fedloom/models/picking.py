"""What `auto` means: device, number format and attention; and dropout, which no base keeps."""

from typing import Any

import torch

from fedloom.errors import UserError

WIDE = 512
"""Layers of this width pay bfloat16 back on a CPU, whatever the attention."""
SHORT = 384
"""Tokens up to which plain attention is the faster one on a CPU."""


def pick_device(name: str) -> torch.device:
    """The device a recipe names.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"model.device={name} is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"model.device={name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use device=cpu, or install a torch built for your GPU"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"model.device={name}: only cpu and cuda are supported")
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def pick_dtype(
    name: str, device: torch.device, trained_whole: bool, hidden: int | None = None, attention: str | None = None
) -> torch.dtype:
    """The base's number format.

    auto: bfloat16 where the device multiplies it in hardware. On a CPU with layers narrower than WIDE that pays only
    with plain attention, since the backward pass of torch's fused kernel is slow in bfloat16 (at width 192 and 28
    tokens: 131 ms a step, 117 in float32, 93 with plain attention).

    Args:
        name: the setting.
        device: where the base lies.
        trained_whole: every parameter is trained, in float32.
        hidden: width of the layers.
        attention: how it is computed.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    narrow = device.type == "cpu" and hidden is not None and hidden < WIDE and attention != "eager"
    return torch.bfloat16 if fast_bfloat16(device) and not trained_whole and not narrow else torch.float32


def pick_attention(name: str, device: torch.device, longest: int | None) -> str | None:
    """How attention is computed; None: as transformers chooses for the model, mostly torch's fused kernel.

    auto: the plain products on a CPU for texts of at most SHORT tokens; the fused kernel needs less memory the longer
    the text.
    """
    if name != "auto":
        return name
    return "eager" if device.type == "cpu" and longest is not None and longest <= SHORT else None


def without_dropout(settings: Any) -> None:
    """Set every dropout rate of a model configuration to zero, in place."""
    for part in [settings, *(v for v in vars(settings).values() if hasattr(v, "to_dict"))]:
        for key, value in list(vars(part).items()):
            if isinstance(value, float) and "drop" in key:
                setattr(part, key, 0.0)
