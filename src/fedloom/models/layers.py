"""A smaller model out of some layers of a larger one, in plain transformers' own terms.

The kept blocks are numbered anew, and the configuration says so many layers, so that what is saved afterwards loads as
any model does. A model whose blocks are not alike in the file as they are in the list is refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedloom.errors import UserError

ASKED = "model.layers"
"""The setting that asks for fewer blocks, unless it is another one."""
REMEDIES = {
    ASKED: "leave model.layers out and take a model that is as small as you want it",
    "adapter.layers": "leave adapter.layers out, or name modules in adapter.targets",
    "offsite": "so they cannot be shared out between its owner and the clients; take another model, or leave offsite "
    "out",
}
ALIKE = {
    ASKED: "keep layers of one pattern, or leave model.layers out",
    "offsite": "choose head_layers, tail_layers and drop_ratio so that layers of one pattern are kept, or take another "
    "model",
}


def cut(module: Any, kept: Sequence[int], asked: str = ASKED) -> None:
    """Keep some blocks of a transformers model, in place.

    Args:
        module: the model, or its skeleton.
        kept: which, counted from 0, in their new order.
        asked: the setting that asks for it, for messages.

    Raises:
        UserError: a number is no block or comes twice, or the blocks cannot be told apart from the rest.
    """
    name, blocks = find(module, asked)
    _check(kept, len(blocks))
    chosen = [blocks[i] for i in kept]
    for number, block in enumerate(chosen):
        part: Any
        for part in block.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = number
    module.set_submodule(name, nn.ModuleList(chosen))
    for key, value in _changes(module.config, len(blocks), kept).items():
        setattr(module.config.get_text_config(), key, value)
    _check_alike(module, name, asked)


def recipe(module: Any, kept: Sequence[int], variable: str = "base") -> list[str]:
    """Lines of Python that cut a freshly loaded model the same way, with torch and transformers alone.

    Args:
        module: the model, cut already.
        kept: as it was cut.
        variable: what the whole model is called in these lines.
    """
    name, blocks = find(module)
    text = "" if module.config.get_text_config() is module.config else ".get_text_config()"
    lines = [f"{variable}.{name} = torch.nn.ModuleList([{variable}.{name}[i] for i in {list(kept)}])"]
    if any(isinstance(getattr(part, "layer_idx", None), int) for block in blocks for part in block.modules()):
        lines.append(f"for number, block in enumerate({variable}.{name}):")
        lines.append("    [setattr(p, 'layer_idx', number) for p in block.modules() if hasattr(p, 'layer_idx')]")
    changes = {"num_hidden_layers": len(kept)} | _lists(module.config, len(kept))
    return lines + [f"{variable}.config{text}.{key} = {value!r}" for key, value in changes.items()]


def find(module: Any, asked: str = ASKED) -> tuple[str, nn.ModuleList]:
    """The list of the model's blocks and its name: the one list that is as long as the configuration says.

    Args:
        module: the model, or its skeleton.
        asked: the setting that asks for it, for messages.

    Raises:
        UserError: there is no such list, or more than one.
    """
    count = getattr(module.config.get_text_config(), "num_hidden_layers", None)
    lists = {
        name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count
    }
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise UserError(
            f"{asked}: the layers of a {type(module).__name__} cannot be found ({len(outer)} lists of {count} "
            f"parts); {REMEDIES[asked]}"
        )
    return outer[0], lists[outer[0]]


def _check(kept: Sequence[int], count: int) -> None:
    if not kept:
        raise UserError("model.layers=[]: a model needs at least one layer; leave model.layers out to keep all")
    wrong = [i for i in kept if not 0 <= i < count]
    if wrong:
        raise UserError(f"model.layers: {wrong[0]} is no layer of this model, which has {count} (0 to {count - 1})")
    twice = sorted({i for i in kept if list(kept).count(i) > 1})
    if twice:
        raise UserError(f"model.layers: layer {twice[0]} is named twice; name each at most once")


def _changes(config: Any, count: int, kept: Sequence[int]) -> dict[str, Any]:
    """What the configuration says anew: the number of layers, and every list that has an entry for each."""
    lists = {key: [value[i] for i in kept] for key, value in _lists(config, count).items()}
    return {"num_hidden_layers": len(kept)} | lists


def _lists(config: Any, count: int) -> dict[str, list[Any]]:
    """Settings with an entry for each layer, which a cut model must name in the order of its own."""
    text = config.get_text_config()
    return {key: value for key, value in text.to_dict().items() if _per_layer(key, value, count)}


def _per_layer(key: str, value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and "layer" in key


def _check_alike(module: Any, name: str, asked: str) -> None:
    """The blocks must be what the cut configuration builds, or the saved model would be another."""
    import copy

    try:
        with torch.device("meta"):
            built = type(module)(copy.deepcopy(module.config))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{asked}: a {type(module).__name__} cannot be cut ({_short(error)})") from None
    for number, (mine, its) in enumerate(zip(module.get_submodule(name), built.get_submodule(name), strict=True)):
        if _facts(mine) != _facts(its):
            raise UserError(
                f"{asked}: layers of a {type(module).__name__} differ by their place, so that layer {number} of "
                f"the smaller model would be of another kind when it is loaded again; {ALIKE[asked]}"
            )


def _facts(block: nn.Module) -> list[Any]:
    """Shapes of a block, and the plain settings of its parts."""
    facts: list[Any] = [(name, tuple(p.shape)) for name, p in block.named_parameters()]
    for name, part in block.named_modules():
        plain = {k: v for k, v in vars(part).items() if not k.startswith("_") and isinstance(v, int | float | str)}
        plain.pop("training", None)
        facts.append((name, type(part).__name__, sorted(plain.items())))
    return facts


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
