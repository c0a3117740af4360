"""Tuned classifiers as files: the head beside an adapter or a whole model, and how both are put together again.

`head.safetensors` holds the head's parameters in float32; `head.json` says what stands for a text and what the classes
are called. The README beside them shows the way without fedloom.
"""

import json
from pathlib import Path
from typing import Any

import torch

from fedloom.adapters import readme
from fedloom.errors import UserError
from fedloom.models.config import ModelConfig
from fedloom.models.heads import Classifier, HeadSpec
from fedloom.models.load import load_model, quiet


def save_head(model: Classifier, folder: Path) -> None:
    """Write the head as it stands."""
    from safetensors.torch import save_file

    numbers = {name: tensor.detach().float().cpu().clone() for name, tensor in model.head.state_dict().items()}
    save_file(numbers, str(folder / "head.safetensors"), metadata={"format": "pt"})
    said = {
        "pooling": model.pooling,
        "kind": model.spec.kind,
        "classes": model.spec.classes,
        "labels": None if model.spec.labels is None else list(model.spec.labels),
    }
    (folder / "head.json").write_text(json.dumps(said, indent=2) + "\n")


def save_whole(model: Classifier, folder: Path) -> None:
    """Write the model as a Hugging Face folder, and its head beside it."""
    model.backbone.save_pretrained(str(folder))
    save_head(model, folder)
    readme.write(folder, model, None, None)


def is_classifier(folder: Path) -> bool:
    """Whether a folder of a tuned model holds a classifier."""
    return (folder / "head.json").exists()


def load_classifier(folder: Path, device: str = "auto", model: ModelConfig | None = None) -> Classifier:
    """A tuned classifier, whole: the adapter is added to its base in float32.

    Args:
        folder: an adapter or a whole model of a run, with its head.
        device: auto, cpu, cuda or cuda:N.
        model: where the base comes from and which of its layers were kept, where the folder holds an adapter; None: by
            the name in the adapter's files.

    Raises:
        UserError: the folder holds no classifier, or its base cannot be loaded.
    """
    spec = _spec(folder)
    adapter = folder / "adapter_config.json"
    if not adapter.exists():
        config = ModelConfig(name=str(folder), dtype="float32", device=device)
        found = _classifier(config, spec)
    else:
        named = ModelConfig(name=str(json.loads(adapter.read_text())["base_model_name_or_path"]))
        changes = {"dtype": "float32", "device": device, "layers": readme.layers(folder)}
        found = _classifier((model or named).model_copy(update=changes), spec)
        found.backbone = _merged(found.backbone, folder)
    _fill(found, folder)
    return found.eval().requires_grad_(False)


def _spec(folder: Path) -> HeadSpec:
    try:
        said = json.loads((folder / "head.json").read_text())
        labels = None if said["labels"] is None else tuple(said["labels"])
        return HeadSpec(said["classes"], said["pooling"], said["kind"], labels=labels)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no classifier: head.json is not there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'head.json'} is damaged: {error}") from None


def _classifier(config: ModelConfig, spec: HeadSpec) -> Classifier:
    module = load_model(config, trained_whole=True, head=spec).module
    assert isinstance(module, Classifier)
    return module


def _merged(backbone: Any, folder: Path) -> Any:
    from peft import PeftConfig, PeftModel

    settings: Any = PeftConfig.from_pretrained(str(folder))
    if getattr(backbone, "pooler", None) is None:
        settings.exclude_modules = None  # there is none here
    with quiet():
        return PeftModel.from_pretrained(backbone, str(folder), config=settings).merge_and_unload()


def _fill(model: Classifier, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with torch.no_grad():
            model.head.load_state_dict(load_file(str(folder / "head.safetensors")))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"the head in {folder} cannot be read: {' '.join(str(error).split())[:300]}") from None
