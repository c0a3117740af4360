"""Attention maps of any model, looked at while it runs, and whether two models' can be compared."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.engine.reference import Reference
from fedloom.errors import UserError
from fedloom.objectives.base import Forward
from fedloom.objectives.distillation import pairs

PROBE = 4
"""Tokens of the text attention maps are looked for with."""


@contextmanager
def maps(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within, the attention map [texts, heads, tokens, tokens] of every layer, in the order they are computed.

    Layers say them beside their result where attention is written out (`eager`); their parents repeat them.
    """
    found = list[Tensor]()

    def look(_: nn.Module, __: Any, out: Any) -> None:
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if isinstance(weights, Tensor) and weights.dim() == 4 and all(weights is not one for one in found):
            found.append(weights)

    handles = [part.register_forward_hook(look) for part in module.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def watched(module: nn.Module, weight: float) -> AbstractContextManager[list[Tensor]]:
    """`maps`, where they count for something."""
    return maps(module) if weight else nullcontext([])


def check(student: Reference, teacher: Reference, forward: Forward) -> None:
    """Both models must show a map for each layer, of as many heads.

    Args:
        student: an engine that holds it.
        teacher: the same of the teacher, which must be at least as deep.
        forward: what is wanted of texts.

    Raises:
        UserError: one does not, or they cannot be compared.
    """
    text = student.objective.texts([student.objective.made_up(range(2, 2 + PROBE))])
    found = []
    for name, model in (("the model", student), ("the teacher", teacher)):
        model.adapted.module.eval()
        with torch.no_grad(), maps(model.adapted.module) as seen:
            model.said(text, forward)
        layers = _layers(model.adapted.module)
        if len(seen) != layers:
            raise UserError(
                f"algorithm.attention: {len(seen)} attention maps of {layers} layers of {name} can be seen; set "
                "model.attention=eager, or algorithm.attention=0"
            )
        found.append(seen)
    try:
        pairs(len(found[0]), len(found[1]))
    except ValueError as error:
        raise UserError(f"algorithm.attention: {error}; set it to 0, or take a deeper teacher") from None
    heads = [seen[0].shape[1] for seen in found]
    if heads[0] != heads[1]:
        raise UserError(
            f"algorithm.attention: the model has {heads[0]} attention heads and the teacher {heads[1]}, and maps are "
            "compared head by head; set it to 0"
        )


def _layers(module: Any) -> int:
    return int(module.config.get_text_config().num_hidden_layers)
