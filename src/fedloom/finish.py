"""What a finished run is good for: talking to the model, and handing it on."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedloom.adapters import others_saved
from fedloom.adapters.build import adapt
from fedloom.adapters.classifiers import is_classifier, load_classifier, save_whole
from fedloom.adapters.config import FullConfig, virtual_tokens
from fedloom.adapters.merging import untie
from fedloom.config import Config, load
from fedloom.data.config import DataConfig
from fedloom.data.encode import Encoder
from fedloom.data.rows import Row, Turn
from fedloom.engine.generation import answers
from fedloom.errors import UserError
from fedloom.folder import RunFolder
from fedloom.models import quantised
from fedloom.models.load import Base, load_model, load_tokenizer, location, quiet
from fedloom.sides import Both


def export(folder: Path, out: Path, merge: bool) -> Path:
    """Write the run's final model where it can be used without fedloom.

    Args:
        folder: the run.
        out: a folder that is not there yet, or empty.
        merge: put the adapter into the base weights, giving a plain Hugging Face model; else copy the adapter.

    Raises:
        UserError: the run has no final model, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another folder, nothing is overwritten")
    config = load(RunFolder(folder).path / "config.yaml")
    if merge and virtual_tokens(config.adapter):
        raise UserError(
            f"adapter.kind={config.adapter.kind}: virtual tokens stand before every text and are no weights, so there "
            "is nothing to merge; export without --merge and load the folder with peft"
        )
    tokenizer = load_tokenizer(config.model)
    final = _ready(_final(folder), config, tokenizer)
    if merge and is_classifier(final) and not isinstance(config.adapter, FullConfig):
        save_whole(load_classifier(final, config.model.device, config.model), out)
        tokenizer.save_pretrained(str(out))
    elif merge and not isinstance(config.adapter, FullConfig):
        with quiet():  # into whole weights: what is merged into quantised ones would be rounded anew
            tuned = _with_adapter(load_model(config.model.model_copy(update={"quantize": None})), final)
            untie(tuned)
            module = tuned.merge_and_unload()
        module.save_pretrained(str(out))
        tokenizer.save_pretrained(str(out))
    else:
        shutil.copytree(final, out, dirs_exist_ok=True)
        tokenizer.save_pretrained(str(out))
    return out


class Chat:
    """Answers as the tuned model would, or as its base."""

    def __init__(self, folder: Path, base: bool = False, max_new_tokens: int = 256) -> None:
        """Load the run's model.

        Raises:
            UserError: the run has no final model, or one that does not write.
        """
        run = RunFolder(folder)
        self.config: Config = load(folder / "config.yaml")
        if self.config.objective.rows == "labels":
            raise UserError(
                f"{folder} tuned a classifier (objective={self.config.objective.name}), which scores texts and writes "
                "none; its folder's README shows how texts are classified (fedloom export writes it somewhere else)"
            )
        self.tokenizer = load_tokenizer(self.config.model)
        self.encoder = Encoder(self.tokenizer, _asking(self.config, run.env()["template"]))
        self.max_new_tokens = max_new_tokens
        if base:
            self.module: Any = _base(self.config).module
        elif isinstance(self.config.adapter, FullConfig):
            model = self.config.model.model_copy(update={"name": str(_final(folder)), "revision": None, "layers": None})
            self.module = load_model(model).module
        else:
            self.module = _with_adapter(_base(self.config), _ready(_final(folder), self.config, self.tokenizer))

    def reply(self, messages: Sequence[dict[str, str]]) -> str:
        """The answer to a conversation of {role, content} turns, greedily.

        It is written by the template the run was trained with; templates without turns see the last question.
        """
        turns = tuple(Turn(message["role"], message["content"]) for message in messages)
        answer = "x"  # a row needs one; the prompt ends before it
        if self.encoder.template_name == "chat":
            row = Row("", "", answer, messages=(*turns, Turn("assistant", answer)))
        else:
            row = Row(turns[-1].content, "", answer)
        encoded = self.encoder.encode(row)
        if isinstance(encoded, str):
            raise UserError(f"this cannot be answered: {encoded}")
        stops = self.encoder.stop_ids
        return answers(self.module, self.tokenizer, [encoded.prompt], stops, 1, self.max_new_tokens)[0]


def _asking(config: Config, template: str) -> DataConfig:
    """The data section for questions: the template the run resolved to, and long talks cut from the left."""
    changes: dict[str, str] = {"overlong": "cut"}
    if template != "own":
        changes["template"] = template
    return config.data.model_copy(update=changes)


def _base(config: Config) -> Base:
    return load_model(config.model, trained_whole=isinstance(config.adapter, FullConfig))


def _ready(final: Path, config: Config, tokenizer: Any) -> Path:
    """The folder, after an adapter was made of what a server without the base wrote there."""
    if others_saved.incomplete(final):
        adapted = adapt(Both().base(config), config.adapter, config.seed, tokenizer=tokenizer)
        others_saved.complete(adapted, location(config.model.name), final)
    return final


def _with_adapter(base: Base, folder: Path) -> Any:
    """The base with the adapter in `folder`, in float32 unless quantised: the sum is what was trained."""
    from peft import PeftModel

    held = any(quantised.held(layer) for layer in base.module.modules())
    with quiet():
        module = PeftModel.from_pretrained(base.module if held else base.module.to(torch.float32), str(folder))
    return module.to(base.device).eval()


def _final(folder: Path) -> Path:
    path = folder / "adapters" / "final"
    if path.is_dir():
        return path
    own = folder / "adapters" / "clients"
    if own.is_dir():
        raise UserError(f"{folder} has no shared model, only the clients' own in {own}; load one of them with peft")
    raise UserError(f"{folder} has no final model yet; finish the run with fedloom resume {folder}")
