"""One model, ready for lm-eval: base and adapter as they were trained, each checked to be all there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedloom.adapters.merging import untie
from fedloom.data.encode import Encoder
from fedloom.data.rows import Row
from fedloom.errors import UserError
from fedloom.evaluate.job import Entrant, Settings, Template
from fedloom.models.load import load_model, load_tokenizer, quiet

WEIGHTS = "adapter_model.safetensors"


def language_model(entrant: Entrant, settings: Settings) -> Any:
    """The model as lm-eval sees one (its class HFLM).

    Args:
        entrant: which model.
        settings: number format, device, batch, and whether the adapter is merged.

    Raises:
        UserError: model or adapter are not whole, or the template cannot be written.
    """
    from fedloom.evaluate.asking import asking

    tokenizer = load_tokenizer(entrant.base)
    write = _writer(entrant.template, tokenizer) if settings.template == "own" else None
    module = _module(entrant, settings)
    return asking(module, tokenizer, settings.batch_size, settings.max_length, write)


def _module(entrant: Entrant, settings: Settings) -> Any:
    """Base and adapter in one number format, so that before and after differ in the adapter alone."""
    changes: dict[str, Any] = {"dtype": settings.dtype, "device": settings.device, "attention": "sdpa"}
    if settings.merge:
        changes["quantize"] = None  # what is merged into quantised weights would be rounded anew
    base = load_model(entrant.base.model_copy(update=changes))
    if entrant.adapter is None:
        return base.module
    module = attached(base.module, Path(entrant.adapter)).to(base.device)
    if settings.merge:
        if module.active_peft_config.is_prompt_learning:
            raise UserError(
                f"--merge: the adapter in {entrant.adapter} is tokens or keys before the text, which no weight can "
                "hold; leave --merge out"
            )
        untie(module)
        module = module.merge_and_unload()
    return module.eval()


def attached(base: Any, folder: Path) -> Any:
    """The base with the adapter in a folder, every tensor of which has its place.

    Raises:
        UserError: the folder lacks its weights, or they are not those this base and this adapter need.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is no whole adapter: {WEIGHTS} is not there")
    try:
        with quiet():
            module: Any = PeftModel.from_pretrained(base, str(folder))
        with safe_open(str(folder / WEIGHTS), "pt") as file:
            written = set(file.keys())
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the adapter in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    missing = set(get_peft_model_state_dict(module, save_embedding_layers=False)) - written
    stray = written - set(get_peft_model_state_dict(module))  # among them may be embeddings, which peft writes too
    if missing or stray:  # peft only warns of both, and leaves what is missing as it was before training
        odd = ", ".join(sorted(missing | stray)[:2])
        raise UserError(
            f"the adapter in {folder} does not fit its model: {len(missing)} tensors are missing and {len(stray)} have "
            f"no place ({odd} ...); use the base it was trained on"
        )
    return module


def _writer(template: Template | None, tokenizer: Any) -> Callable[[str], str] | None:
    """How a question is written as in training; None: by the tokenizer's own chat template.

    Raises:
        UserError: neither a run's template nor one of the tokenizer is there.
    """
    if template is None or template.name == "chat":
        if not tokenizer.chat_template:
            raise UserError(
                "--template own: this model comes from no run, and its tokenizer has no chat template; "
                "leave --template out"
            )
        return None
    asked = template.data.template if template.name == "own" else template.name
    render = Encoder(tokenizer, template.data.model_copy(update={"template": asked})).template.render

    def write(question: str) -> str:
        pieces = render(Row(question, "", "x"))
        return "".join(piece.text for piece in pieces if not piece.learned)

    return write
