"""Pieces of what an owner keeps, to look for wherever a client could see them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

PIECE = 256
"""Bytes."""


def kept_back(owner: Path, blocks: Sequence[int]) -> dict[str, bytes]:
    """By name of tensor and place: every piece of these blocks, as float32 and as bfloat16."""
    found = {}
    for name, tensor in load_file(owner / "model.safetensors").items():
        if not any(f".layers.{block}." in name or f".h.{block}." in name for block in blocks):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            raw = tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
            for start in range(0, len(raw), PIECE):
                piece = raw[start : start + PIECE]
                if len(piece) >= 64:
                    found[f"{name} {dtype} {start}"] = piece
    assert found
    return found


def seen(pieces: dict[str, bytes], said: Iterable[bytes]) -> list[str]:
    """Which of the pieces stand anywhere in what was said."""
    whole = list(said)
    return [name for name, piece in pieces.items() if any(piece in one for one in whole)]
