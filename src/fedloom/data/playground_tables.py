"""The embedded source `playground` as a table: its skills, and rows of the kind an objective learns from."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedloom.data import playground, playground_preferences
from fedloom.data.config import ColumnsConfig, DataConfig, PlaygroundConfig
from fedloom.data.rows import SPLITS, Kind, Row, Split
from fedloom.data.table import Table
from fedloom.errors import UserError, nearest


def playground_table(config: DataConfig, seed: int, kind: Kind) -> Table:
    """Rows of the chosen skills, split after split.

    Raises:
        UserError: a setting has no meaning for the playground, or it has no rows of this kind.
    """
    _check(config, kind)
    settings = config.playground
    skills = _skills(settings, sorted(playground.BASE), sorted(playground.HELD), playground.QUICKSTART)
    counts = dict(zip(SPLITS, (settings.rows, settings.validation_rows, settings.test_rows), strict=True))
    rows: list[Row] = []
    split_of: list[Split] = []
    for split, count in counts.items():
        made = _rows(skills, count, split, seed, kind) if count else []
        rows += made
        split_of += [split] * len(made)
    return Table("playground", tuple(rows), tuple(split_of), None)


def _rows(skills: Sequence[str], count: int, split: Split, seed: int, kind: Kind) -> list[Row]:
    if kind == "pairs":
        return [_pair(record) for record in playground_preferences.pairs(skills, count, split, seed)]
    if kind == "judged":
        return [_judged(record) for record in playground_preferences.judged(skills, count, split, seed)]
    return [
        Row(record["instruction"], record["input"], record["output"], record["category"])
        for record in playground.rows(skills, count, split, seed)
    ]


def _pair(record: Mapping[str, str]) -> Row:
    return Row(
        record["instruction"], record["input"], record["chosen"], record["category"], rejected=record["rejected"]
    )


def _judged(record: Mapping[str, Any]) -> Row:
    return Row(record["instruction"], record["input"], record["output"], record["category"], good=record["good"])


def _check(config: DataConfig, kind: Kind) -> None:
    if kind == "labels":
        raise UserError(
            "the playground has instructions with answers (objective=sft), pairs of answers (dpo) and judged answers "
            "(kto), and no texts with classes; use another data.source with objective=classify"
        )
    usual: dict[str, Any] = {"subset": None, "split": "train", "test_split": None, "columns": ColumnsConfig()}
    for name, default in usual.items():
        if getattr(config, name) != default:
            raise UserError(f"data.{name} is for files and hub data sets; the playground has its own (data.playground)")
    for name in ("validation", "test"):
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise UserError(
                f"data.{name}={getattr(config, name)} divides sources that come in one piece; the playground's rows of "
                f"each split are set by data.playground.{name}_rows"
            )


def _skills(settings: PlaygroundConfig, base: Sequence[str], held: Sequence[str], quick: Sequence[str]) -> list[str]:
    groups = {"base": base, "held": held, "quickstart": quick}
    if isinstance(settings.skills, str):
        return list(groups[settings.skills])
    if not settings.skills:
        raise UserError("data.playground.skills is an empty list; name at least one skill, or quickstart, held or base")
    for skill in settings.skills:
        if skill not in base and skill not in held:
            raise UserError(f"data.playground.skills: {skill!r} is no skill.{nearest(skill, [*base, *held])}")
    twice = sorted({skill for skill in settings.skills if settings.skills.count(skill) > 1})
    if twice:
        raise UserError(f"data.playground.skills names {', '.join(twice)} more than once")
    return list(settings.skills)
