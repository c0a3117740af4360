"""Which entries of a weight matrix a sparse update may touch: drawn once from a seed, so that it never travels."""

import numpy
import torch
from torch import Tensor

from fedloom import rng


def entries(seed: int, module: str, outputs: int, inputs: int, density: float) -> Tensor:
    """[k] int64, ascending: places in a flattened [out, in] matrix, k = round(density · out · in), at least 1.

    Raises:
        ValueError: the density is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"a density of {density} makes no mask; choose one above 0 and at most 1")
    size = outputs * inputs
    count = max(1, round(density * size))
    source = rng.numbers(rng.key(seed, "sparse entries", module))
    return torch.from_numpy(numpy.sort(source.choice(size, count, replace=False, shuffle=False)).astype(numpy.int64))


def dense(values: Tensor, places: Tensor, outputs: int, inputs: int) -> Tensor:
    """[out, in] with `values` [k] at `places` and zero elsewhere; differentiable."""
    flat = values.new_zeros(outputs * inputs)
    return flat.index_put((places,), values).view(outputs, inputs)
