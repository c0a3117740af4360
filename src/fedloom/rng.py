"""Keyed randomness: every random number of a run is a function of (root, purpose, parts), never of what ran before.

`key(root, "batch", dispatch, client, turn)` gives the same number in any process, in any order, on any machine, so that
clients trained together, one by one, or on other machines draw the same batches and masks. Purposes are separate
streams: changing how cohorts are drawn leaves the batches alone. Python's `hash` is salted per process and is not used.
"""

import hashlib
import random
from typing import TypeAlias

import torch

Part: TypeAlias = int | str


def key(root: int, purpose: str, *parts: Part) -> int:
    """A 63-bit number from blake2 over the root, the purpose and the parts, unambiguous in their order and types."""
    text = "\x1f".join([str(root), purpose, *(f"{type(p).__name__}:{p}" for p in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int) -> torch.Generator:
    """A CPU torch generator of its own, seeded with a key."""
    return torch.Generator().manual_seed(seed)


def python(seed: int) -> random.Random:
    """A Python generator of its own, seeded with a key."""
    return random.Random(seed)


def permutation(seed: int, count: int) -> list[int]:
    """The numbers 0..count-1 in an order drawn from the key."""
    order: list[int] = torch.randperm(count, generator=generator(seed)).tolist()
    return order
