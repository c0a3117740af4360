"""Other kinds of adapters as files that plain peft loads: `peft.PeftModel.from_pretrained` gives the same logits.

Where an adapter begins at numbers of the base and the base is a skeleton, as on a server, there is nothing to add what
was trained to: the folder then holds that alone, and `complete` makes an adapter of it where the base is.
"""

import copy
from pathlib import Path
from typing import Any

from fedloom.adapters import classifiers, heads, others, readme
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models.heads import Classifier
from fedloom.params import Layout

TRAINED = "trained.safetensors"
"""Leaves by name, differences among them; only where the base was not at hand."""
WORDS = """What was trained on top of `{base}`, without the base: some of these numbers are differences to the base's.

This folder is no adapter yet, since it was written by a process that has no weights of the base. `fedloom export` and
`fedloom chat` make one of it on a machine that has them; clients of a deployment have theirs already.
"""


def save(adapted: Adapted, model: Model, layout: Layout, base_name: str, folder: Path) -> None:
    """Write an adapter folder, or what was trained where the base's numbers are needed and not here.

    Args:
        adapted: the model it belongs to.
        model: x [P] of the layout, or a drift.
        layout: what x means.
        base_name: what goes into `base_model_name_or_path`.
        folder: made when it is not there.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if model.drift is not None:
        adapted.stand(model.drift, layout)
    else:
        adapted.load(model.x, layout, model.carry)
    if lacks_base(adapted):
        leaves = {name: view.clone() for name, view in layout.views(adapted.read().float()).items()}
        save_file(leaves, str(folder / TRAINED), metadata={"format": "pt"})
        (folder / "README.md").write_text(WORDS.format(base=base_name))
        return
    wrapper: Any = adapted.wrapper
    settings: Any = copy.deepcopy(wrapper.peft_config["default"])
    settings.base_model_name_or_path = base_name
    settings.inference_mode = True
    if adapted.budget is not None:  # the pattern of whoever trained last; what is left out is 0 in the numbers
        settings.rank_pattern = None
    if isinstance(adapted.module, Classifier) and hasattr(settings, "exclude_modules"):
        settings.exclude_modules = heads.POOLER if adapted.module.pooler else None  # loaded without a head it has one
    _name_feedforward(settings, wrapper)
    settings.save_pretrained(str(folder))
    save_file(others.numbers(adapted), str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    if isinstance(adapted.module, Classifier):
        classifiers.save_head(adapted.module, folder)
    readme.write(folder, adapted.module, base_name, adapted.layers)


def _name_feedforward(settings: Any, wrapper: Any) -> None:
    """Name (IA)^3's layers in full where peft would refuse to read what it itself made of `all-linear`."""
    feedforward = getattr(settings, "feedforward_modules", None)
    if feedforward is None or set(feedforward) <= set(settings.target_modules):
        return
    found = others.layers(wrapper)
    settings.target_modules = set(found)
    settings.feedforward_modules = {name for name, layer in found.items() if layer.is_feedforward}


def lacks_base(adapted: Adapted) -> bool:
    """Whether numbers of the base are needed for an adapter file, and are not here."""
    return any(buffer.is_meta for name, buffer in _buffers(adapted) if name.rpartition(".")[2] == "origin")


def incomplete(folder: Path) -> bool:
    """Whether a folder holds what was trained alone."""
    return (folder / TRAINED).exists() and not (folder / "adapter_config.json").exists()


def complete(adapted: Adapted, base_name: str, folder: Path) -> None:
    """Make an adapter of a folder that holds what was trained alone, beside that.

    Args:
        adapted: the model with its weights.
        base_name: what goes into `base_model_name_or_path`.
        folder: of the adapter.

    Raises:
        UserError: the folder was written for another model or adapter.
    """
    from safetensors.torch import load_file

    try:
        x = adapted.layout.gather(load_file(str(folder / TRAINED)))
    except ValueError as error:
        raise UserError(f"{folder / TRAINED} does not belong to this model: {error}") from None
    (folder / "README.md").unlink(missing_ok=True)
    save(adapted, Model(x), adapted.layout, base_name, folder)


def _buffers(adapted: Adapted) -> Any:
    assert adapted.wrapper is not None
    return adapted.wrapper.named_buffers()
