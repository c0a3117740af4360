"""What a folder of a tuned model says of itself where plain peft or transformers would not know: a head, a cut base."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.models.heads import Classifier
from fedloom.models.layers import recipe

NAME = "fedloom.json"


def write(folder: Path, module: Any, base_name: str | None, kept: Sequence[int] | None) -> None:
    """Write README.md, and which layers the base kept; nothing where peft alone is right.

    Args:
        folder: of the adapter or the whole model.
        module: the classifier, or the causal model inside peft's wrapper.
        base_name: what the adapter belongs to; None: the folder holds the whole model.
        kept: the base's layers, in their order; None: all.
    """
    if base_name is None:
        kept = None  # it is written as the small model it is
    if kept is not None:
        (folder / NAME).write_text(json.dumps({"layers": list(kept)}) + "\n")
    if kept is not None or isinstance(module, Classifier):
        (folder / "README.md").write_text(_text(module, base_name, kept))


def layers(folder: Path) -> list[int] | None:
    """Which layers of its base an adapter was trained on; None: all.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return [int(i) for i in json.loads(path.read_text())["layers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _text(module: Any, base_name: str | None, kept: Sequence[int] | None) -> str:
    classifier = isinstance(module, Classifier)
    what = "A tuned classifier" if base_name is None else f"An adapter of `{base_name}`"
    if kept is not None:
        what += f", of which layers {', '.join(map(str, kept))} were kept"
    if classifier:
        what += f", with a head for {module.spec.classes} classes (`head.safetensors`; `head.json` names them)"
    code = _loading(module, base_name, kept) + (_classifying(module, base_name) if classifier else [])
    return "\n".join([f"{what}. Without fedloom, from inside this folder:", "", "```python", *code, "```", ""])


def _loading(module: Any, base_name: str | None, kept: Sequence[int] | None) -> list[str]:
    kind = "AutoModel" if isinstance(module, Classifier) else "AutoModelForCausalLM"
    names = f"{kind}, AutoTokenizer" if isinstance(module, Classifier) else kind
    imports = [] if base_name is None else ["from peft import PeftModel"]
    if isinstance(module, Classifier):
        imports.append("from safetensors.torch import load_file")
    lines = ["import torch", *imports, f"from transformers import {names}", ""]
    lines.append(f'base = {kind}.from_pretrained("{base_name or "."}", dtype=torch.float32)')
    if kept is not None:
        lines += recipe(module.backbone if isinstance(module, Classifier) else module.get_base_model(), kept)
    wrapped = "base" if base_name is None else 'PeftModel.from_pretrained(base, ".")'
    return [*lines, f"model = {wrapped}.eval()"]


def _classifying(model: Classifier, base_name: str | None) -> list[str]:
    """From a text to the scores of its classes."""
    own = getattr(model.backbone, "pooler", None) is not None
    pooled = {"mean": "out.last_hidden_state[0].mean(0)", "last": "out.last_hidden_state[0, -1]"}.get(
        model.pooling, "out.pooler_output[0]" if own else "out.last_hidden_state[0, 0]"
    )
    lines = [
        'head = load_file("head.safetensors")',
        f'tokenizer = AutoTokenizer.from_pretrained("{base_name or "."}")',
        'out = model(**tokenizer("some text", return_tensors="pt"))',
        f"x = {pooled}",
    ]
    if model.head.dense is not None:
        lines.append('x = torch.tanh(head["dense.weight"] @ x + head["dense.bias"])')
    return [*lines, 'scores = head["out.weight"] @ x + head["out.bias"]']
