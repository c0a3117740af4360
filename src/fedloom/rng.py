"""Keyed randomness: every random number of a run is a function of (root, purpose, parts), never of what ran before.

`key(root, "batches", client, turn)` gives the same number in any process, in any order, on any machine, so that clients
trained together, one by one, or on other machines draw the same batches and masks. Purposes are separate streams:
changing how cohorts are drawn leaves the batches alone. Python's `hash` is salted per process and is not used; torch's
CPU generator is not either, since it looks at the lower 32 bits of a seed only, and 65 thousand keys would meet again.
"""

import hashlib
import json
import random
from typing import TypeAlias

import numpy
import torch
from torch import Tensor

Part: TypeAlias = int | str


def key(root: int, purpose: str, *parts: Part) -> int:
    """A 63-bit number from blake2 over the root, the purpose and the parts, unambiguous in their order and types."""
    text = json.dumps([root, purpose, *parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numbers(seed: int) -> numpy.random.Generator:
    """A numpy generator of its own, a function of every bit of the key."""
    return numpy.random.Generator(numpy.random.Philox(key=seed))


def python(seed: int) -> random.Random:
    """A Python generator of its own, seeded with a key."""
    return random.Random(seed)


def permutation(seed: int, count: int) -> list[int]:
    """The numbers 0..count-1 in an order drawn from the key."""
    order: list[int] = numbers(seed).permutation(count).tolist()
    return order


def uniform(seed: int, *shape: int) -> Tensor:
    """Numbers from [0, 1), float64."""
    return torch.from_numpy(numbers(seed).random(shape))


def normal(seed: int, *shape: int) -> Tensor:
    """Numbers from the standard normal distribution, float64."""
    return torch.from_numpy(numbers(seed).standard_normal(shape))
