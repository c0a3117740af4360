"""The two models of offsite-tuning: the emulator, which the federation trains, and its owner's, which it goes back to.

An emulator comes out of the folder that `fedloom emulator build` wrote. A simulation without one cuts it out of the
owner's model in memory.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from fedloom.errors import UserError
from fedloom.models import emulator
from fedloom.models.config import ModelConfig
from fedloom.models.emulator import Facts
from fedloom.models.layers import find
from fedloom.models.load import Base, load_model, load_skeleton
from fedloom.models.offsite import Plan, plan
from fedloom.models.offsite_config import OffsiteConfig


@dataclass(frozen=True)
class Emulated:
    """An emulator, ready to be adapted."""

    base: Base
    plan: Plan
    facts: Facts | None
    """What its folder says; None: it was cut in memory."""


def folder(offsite: OffsiteConfig) -> Path | None:
    """Where the emulator is; None: nowhere yet."""
    return None if offsite.emulator is None else Path(offsite.emulator).expanduser()


def section(model: ModelConfig, offsite: OffsiteConfig) -> ModelConfig:
    """The section `model` of whoever trains: the emulator's, if it has a folder."""
    where = folder(offsite)
    return model if where is None else emulator.section(where, model)


def emulated(
    model: ModelConfig,
    offsite: OffsiteConfig,
    trained_whole: bool = False,
    longest: int | None = None,
    skeleton: bool = False,
) -> Emulated:
    """The emulator of a recipe.

    Args:
        model: the owner's; it is opened only where `offsite.emulator` is null.
        offsite: what is cut.
        trained_whole: parameters themselves will be trained, so `auto` means float32.
        longest: tokens of the longest text it will see, where that is known.
        skeleton: lay it out without its weights.

    Raises:
        UserError: it is not there, damaged, or another one than the recipe means; or the model cannot be cut so.
    """
    where = folder(offsite)
    if where is None:
        base = (load_skeleton if skeleton else load_model)(model, trained_whole, longest)
        chosen = plan(offsite, len(find(base.module, emulator.ASKED)[1]))
        emulator.cut_out(base.module, chosen)
        count = sum(p.numel() for p in base.module.parameters())
        return Emulated(replace(base, parameters=count, layers=chosen.layers), chosen, None)
    facts = emulator.read(where, thorough=False)  # every byte is read where the weights are
    check_meant(facts, offsite, where)
    if skeleton:
        base = load_skeleton(emulator.section(where, model), trained_whole, longest)
    else:
        base = emulator.load(where, model, trained_whole, longest)
    return Emulated(base, facts.plan, facts)


def owned(
    model: ModelConfig, facts: Facts | None, trained_whole: bool, longest: int | None, skeleton: bool = False
) -> Base:
    """The owner's model, whole.

    Args:
        model: where it is.
        facts: of the emulator that stands for it; None: it was cut out of this one.
        trained_whole: parameters themselves are put back, so `auto` means float32.
        longest: tokens of the longest text it will see, where that is known.
        skeleton: lay it out without its weights.

    Raises:
        UserError: it cannot be loaded, or is not the one the emulator was made from.
    """
    if skeleton:
        return load_skeleton(model, trained_whole, longest)
    base = load_model(model, trained_whole, longest)
    if facts is not None:
        emulator.check_base(facts, base.module, model.name)
    return base


def check_meant(facts: Facts, offsite: OffsiteConfig, where: Path) -> None:
    """Whether a folder holds the emulator a recipe means.

    Raises:
        UserError: it stands for other blocks, or was made another way.
    """
    meant = plan(offsite, facts.plan.blocks)
    if facts.plan != meant:
        raise UserError(
            f"offsite.emulator={where} was built for {_words(facts.plan)}, and this recipe's offsite section means "
            f"{_words(meant)}; put head_layers, tail_layers, drop_ratio and rule back to what it was built with, or "
            "build another one with `fedloom emulator build`"
        )
    if facts.method != offsite.method:
        raise UserError(
            f"offsite.emulator={where} was built with offsite.method={facts.method}, and this recipe says "
            f"{offsite.method}; set offsite.method={facts.method}, or build another one with `fedloom emulator build`"
        )


def _words(plan: Plan) -> str:
    kept = ", ".join(map(str, plan.kept))
    return f"blocks {kept} of {plan.blocks} between head_layers={plan.head} and tail_layers={plan.tail}"
