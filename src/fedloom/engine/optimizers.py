"""Torch optimisers by name."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.engine.config import OptimizerConfig
from fedloom.errors import UserError, nearest
from fedloom.params import Layout

ELEMENTWISE = frozenset(
    {"sgd", "adam", "adamw", "adagrad", "rmsprop", "nadam", "radam", "adamax", "adadelta", "asgd", "rprop"}
)
"""Optimisers that treat every number by itself, so that one flat vector is as good as the tensors it is cut into."""
REFUSED = {"lbfgs": "it needs to evaluate the loss several times a step", "sparseadam": "gradients here are dense"}


@functools.cache
def names() -> Mapping[str, type[torch.optim.Optimizer]]:
    """Every optimiser of torch.optim by its lower-case name."""
    found = {}
    for name, kind in vars(torch.optim).items():
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            found[name.lower()] = kind
    return {name: kind for name, kind in found.items() if name not in REFUSED}


def check(config: OptimizerConfig) -> None:
    """Whether torch has it and takes its arguments.

    Raises:
        UserError: it does not.
    """
    tensor = nn.Parameter(torch.zeros(2, 2))
    optimizer = make(config, [tensor], 1e-3)
    tensor.grad = torch.ones_like(tensor)
    try:
        optimizer.step()  # some settings are looked at only here
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise _refused(config, error) from None


def make(config: OptimizerConfig, tensors: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """A fresh optimiser over these tensors.

    Raises:
        UserError: unknown, unsuitable, or arguments it does not take.
    """
    known, name = names(), config.name.lower()
    if name not in known:
        why = REFUSED.get(name)
        raise UserError(
            f"local.optimizer.name={config.name}: " + (why or f"torch.optim has none.{nearest(name, known)}")
        )
    takes = _arguments(name)
    elsewhere = {"lr": "local.lr", "weight_decay": "local.optimizer.weight_decay", "params": "adapter"}
    for key in sorted(set(config.args) & set(elsewhere)):
        raise UserError(f"local.optimizer.args: {key} has a place of its own, {elsewhere[key]}; say it there")
    arguments: dict[str, Any] = {"lr": lr, **config.args}
    if "weight_decay" in takes:
        arguments["weight_decay"] = config.weight_decay
    elif config.weight_decay:
        raise UserError(f"local.optimizer: {config.name} has no weight_decay")
    unknown = sorted(set(config.args) - set(takes))
    if unknown:
        raise UserError(
            f"local.optimizer.args: {config.name} does not take {', '.join(unknown)} (it takes {[*takes][1:]})"
        )
    if (
        "fused" in takes
        and not {"fused", "foreach", "differentiable"} & set(config.args)
        and tensors[0].is_floating_point()
    ):
        arguments["fused"] = True  # one pass over memory; the same numbers
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    try:
        return known[name](list(tensors), **arguments)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise _refused(config, error) from None


@functools.cache
def _arguments(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(names()[name]).parameters


def memory(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers, as tensors by `<kind> <number of the trained tensor> <its shape> <name>`."""
    kind, tensors = type(optimizer).__name__, _tensors(optimizer)
    return {
        f"{kind} {i} {_shape(tensors[i])} {name}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for i, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if value is not None
    }


def recall(optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    """Let a fresh optimiser go on from what `memory` gave, which stays as it is.

    Raises:
        ValueError: it was another optimiser's, or of other tensors.
    """
    kind, tensors = type(optimizer).__name__, _tensors(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in kept.items():
        whose, number, shape, name = key.split(" ", 3)
        i = int(number)
        if whose != kind or i >= len(tensors) or shape != _shape(tensors[i]):
            there = _shape(tensors[i]) if i < len(tensors) else "not there"
            raise ValueError(
                f"the kept state is that of {whose} for tensor {i} of {shape}; it does not fit {kind}, whose tensor "
                f"{i} is {there}: it belongs to another optimiser, adapter or phase"
            )
        state.setdefault(i, {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def cut(kept: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The memory of an element-wise optimiser over one flat vector [P], as if it had trained the leaves one by one."""
    found = {}
    for key, value in kept.items():
        kind, _, _, name = key.split(" ", 3)
        parts = layout.views(value) if tuple(value.shape) == (layout.size,) else None
        for i, leaf in enumerate(layout.leaves):
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            found[f"{kind} {i} {shape} {name}"] = (value if parts is None else parts[leaf.name]).clone()
    return found


def joined(kept: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The reverse of `cut`: for one flat vector.

    Raises:
        ValueError: it was another optimiser's, or of other tensors.
    """
    names = sorted({tuple(key.split(" ", 3)[::3]) for key in kept})
    shapes, found = ["x".join(map(str, leaf.shape)) or "scalar" for leaf in layout.leaves], {}
    for kind, name in names:
        keys = [f"{kind} {i} {shape} {name}" for i, shape in enumerate(shapes)]
        lacking = [key for key in keys if key not in kept]
        if lacking or len(names) * len(keys) != len(kept):
            raise ValueError(
                f"the kept state of {kind} does not fit these tensors ({lacking or 'it has more of them'}): it belongs "
                "to another optimiser, adapter or phase"
            )
        parts = [kept[key] for key in keys]
        whole = all(tuple(part.shape) == leaf.shape for part, leaf in zip(parts, layout.leaves, strict=True))
        flat = torch.cat([part.reshape(-1) for part in parts]) if whole else parts[0]
        found[f"{kind} 0 {layout.size} {name}"] = flat
    return found


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _refused(config: OptimizerConfig, error: Exception) -> UserError:
    return UserError(f"local.optimizer: torch refuses these settings of {config.name}: {error}")
