"""The emulator as a folder: what an owner hands to clients in place of a model it keeps.

The folder is a plain Hugging Face model with fewer blocks. Beside it, `emulator.json` says what it was made from, which
blocks stand for which, and what bytes every file has. It is made once and handed over like a model: no round sends it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fedloom import atomic
from fedloom.errors import UserError
from fedloom.models.config import ModelConfig
from fedloom.models.identity import kin
from fedloom.models.layers import cut
from fedloom.models.load import Base, load_model
from fedloom.models.offsite import Plan

FORMAT: Final = 1
FACTS: Final = "emulator.json"
ASKED: Final = "offsite"
_AGAIN: Final = "copy the whole folder again from where `fedloom emulator build` wrote it"


@dataclass(frozen=True)
class Alignment:
    """How a distilled emulator was aligned. Distances are of rows that alignment never saw."""

    steps: int
    rows: int
    """It learned from."""
    held: int
    """Rows that were kept for the measurement."""
    kd_before: float
    """Distance of what the emulator's blocks put out from what the owner's do, as the plain blocks were."""
    kd_after: float
    """The same when it was done."""
    loss_first: float
    """What was minimised, in the first step."""
    loss_last: float
    """The same in the last."""


@dataclass(frozen=True)
class Facts:
    """What an artefact says of itself."""

    base: str
    """The owner's model, by the name its recipe had."""
    base_kin: str
    """`models.identity.kin` of that model, whole."""
    plan: Plan
    method: str
    """drop or distill."""
    own: str
    """`kin` of the emulator."""
    parameters: int
    """Of the emulator, tied ones once."""
    base_parameters: int
    """Of the owner's model."""
    align: Alignment | None = None
    """None: the blocks are the owner's own."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Digest of every file beside these facts."""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all of it, and so over every byte of the folder."""
        return hashlib.blake2b(_text(self).encode(), digest_size=8).hexdigest()


def cut_out(module: Any, plan: Plan) -> None:
    """An owner's model, or its skeleton, becomes the emulator, in place.

    Raises:
        UserError: its blocks cannot be found, or are not alike.
    """
    cut(module, plan.layers, ASKED)


def check_empty(folder: Path) -> None:
    """Nothing is overwritten.

    Raises:
        UserError: the folder holds something, or is none.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose another folder, nothing is overwritten")


def write(module: Any, tokenizer: Any, facts: Facts, folder: Path) -> Facts:
    """Write the artefact, whole or not at all.

    Args:
        module: the emulator, in the number format it is to have in the file.
        tokenizer: the owner's model's.
        facts: what it is; digests of files are added here.
        folder: not there yet, or empty.

    Returns:
        The facts as they were written.

    Raises:
        UserError: the folder holds something.
    """
    check_empty(folder)
    with atomic.folder(folder) as aside:
        module.save_pretrained(str(aside))
        tokenizer.save_pretrained(str(aside))
        names = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
        facts = replace(facts, files={name: _digest(aside / name) for name in names})
        (aside / FACTS).write_text(_text(facts), encoding="utf-8")
    return facts


def read(folder: Path, thorough: bool = True) -> Facts:
    """What an artefact says of itself, once it is sure that it is whole.

    Args:
        folder: the artefact.
        thorough: read every byte of its files; else only look whether they are there.

    Raises:
        UserError: it is no artefact, one of another version, damaged, or its parts do not fit each other.
    """
    facts = _parsed(folder)
    missing = [name for name in facts.files if not (folder / name).is_file()]
    if missing:
        raise UserError(f"the emulator in {folder} is incomplete: {', '.join(missing[:3])} missing; {_AGAIN}")
    _check_plan(facts.plan, folder)
    for name, digest in facts.files.items() if thorough else ():
        if _digest(folder / name) != digest:
            raise UserError(
                f"the emulator in {folder} is damaged: {name} does not hold the bytes that were written (cut short, or "
                f"changed); {_AGAIN}"
            )
    return facts


def section(folder: Path, model: ModelConfig) -> ModelConfig:
    """The section `model` of whoever holds the emulator alone: its folder in place of the name."""
    return model.model_copy(update={"name": str(folder), "revision": None, "layers": None})


def load(folder: Path, model: ModelConfig, trained_whole: bool = False, longest: int | None = None) -> Base:
    """The emulator as a base.

    Args:
        folder: the artefact.
        model: the recipe's section; its name, revision and layers are not looked at.
        trained_whole: every parameter will be trained, so `auto` means float32.
        longest: tokens of the longest text it will see, where that is known.

    Raises:
        UserError: as `read`; or it is not the model its facts speak of.
    """
    facts = read(folder)
    base = load_model(section(folder, model), trained_whole, longest)
    found = kin(base.module)
    if found != facts.own:
        raise UserError(
            f"the emulator in {folder} is damaged: {FACTS} speaks of other weights (fingerprint {facts.own}) than its "
            f"files hold ({found}); {_AGAIN}"
        )
    return base


def check_base(facts: Facts, module: Any, name: str) -> None:
    """Whether an emulator was made from this model.

    Args:
        facts: the artefact's.
        module: the owner's model, whole, with its weights and without adapter.
        name: what the recipe calls it.

    Raises:
        UserError: it was made from another one.
    """
    found = kin(module)
    if found != facts.base_kin:
        raise UserError(
            f"offsite.emulator: it was made from {facts.base} (fingerprint {facts.base_kin}), and model.name={name} is "
            f"another model (fingerprint {found}); name the model it was made from, or build one from this model with "
            "`fedloom emulator build`"
        )


def _text(facts: Facts) -> str:
    return json.dumps(asdict(facts), indent=2, sort_keys=True) + "\n"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _parsed(folder: Path) -> Facts:
    try:
        said = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no emulator: there is no {FACTS}; make one with `fedloom emulator build`, or name the "
            "folder it wrote"
        ) from None
    except ValueError as error:
        raise UserError(f"the emulator in {folder} is damaged: {FACTS} is no JSON ({error}); {_AGAIN}") from None
    found = said.get("format") if isinstance(said, dict) else None
    if found != FORMAT:
        raise UserError(
            f"the emulator in {folder} was written by another version of fedloom (format {found!r}, this version reads "
            f"{FORMAT}); build it again with this one"
        )
    try:
        return _facts(said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the emulator in {folder} is damaged: {FACTS} cannot be read ({error}); {_AGAIN}") from None


def _facts(said: dict[str, Any]) -> Facts:
    """Facts as `_text` wrote them; anything else is an error of some kind."""
    plan = said["plan"]
    numbers = [plan["blocks"], plan["head"], plan["tail"], *plan["kept"], said["parameters"], said["base_parameters"]]
    words = [said[key] for key in ("base", "base_kin", "method", "own")] + [*said["files"], *said["files"].values()]
    if not all(type(number) is int for number in numbers) or not all(isinstance(word, str) for word in words):
        raise ValueError("a value of another type")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in said["files"]):
        raise ValueError("a file outside the folder")
    align = None if said["align"] is None else Alignment(**said["align"])
    return Facts(**{**said, "plan": Plan(**{**plan, "kept": tuple(plan["kept"])}), "align": align})


def _check_plan(plan: Plan, folder: Path) -> None:
    """Whether a plan is one at all, and that of the model beside it."""
    from transformers import AutoConfig

    rising = all(a < b for a, b in zip(plan.kept, plan.kept[1:], strict=False))
    within = min(plan.head, plan.tail) >= 0 and set(plan.kept) < set(plan.middle)  # fewer than all
    if not plan.kept or not rising or not within:
        raise UserError(
            f"the emulator in {folder} is damaged: {FACTS} has a plan that cannot be (of {plan.blocks} blocks "
            f"{plan.head} before and {plan.tail} behind, {list(plan.kept)} between); {_AGAIN}"
        )
    try:
        count = AutoConfig.from_pretrained(str(folder)).get_text_config().num_hidden_layers
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the emulator in {folder} is damaged: config.json cannot be read ({reason}); {_AGAIN}"
        ) from None
    if count != len(plan.layers):
        raise UserError(
            f"the emulator in {folder} is damaged: its plan has {len(plan.layers)} blocks, and its config.json says "
            f"{count}; {_AGAIN}"
        )
