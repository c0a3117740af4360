"""What does not fit the schema: unknown keys, unknown variants, and values where sections belong.

`structure` walks the tree beside the schema and hands back the part that fits. What remains to judge are values, which
is pydantic's work; `fedloom.config.words` says its findings in sentences.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from fedloom.config import shape
from fedloom.config.hints import elsewhere
from fedloom.config.presets import PRESETS
from fedloom.config.schema import Config
from fedloom.config.tree import KeyPath, dotted
from fedloom.config.words import Problem, shown
from fedloom.errors import nearest
from fedloom.settings import Strict


def structure(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The part of the tree that has the schema's shape, every union section with its tag, and what was left out."""
    problems: list[Problem] = []
    return _section(Config, tree, (), problems), problems


def _section(section: type[Strict], tree: Mapping[str, Any], path: KeyPath, found: list[Problem]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        field = section.model_fields.get(key)
        here = (*path, key)
        if field is None:
            found.append(Problem(here, _unknown_key(section, here)))
        elif (choices := shape.variants(field.annotation)) and not (value is None and shape.optional(field.annotation)):
            inner = _variant(field, choices, value, here, found)
            if inner is not None:
                kept[key] = inner
        elif named := shape.named_sections(field.annotation):
            kept[key] = _named(named, value, here, found)
        else:
            kept[key] = value
    return kept


def _named(section: type[Strict], value: Any, path: KeyPath, found: list[Problem]) -> dict[str, Any]:
    if not isinstance(value, dict):
        found.append(Problem(path, f"{dotted(path)} is {shown(value)}, but a mapping of names to settings is needed."))
        return {}
    kept = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            kept[name] = _section(section, inner, (*path, name), found)
        else:
            found.append(Problem((*path, name), _needs_section(section, inner, (*path, name))))
    return kept


def _variant(
    field: FieldInfo, choices: tuple[type[Strict], ...], value: Any, path: KeyPath, found: list[Problem]
) -> dict[str, Any] | None:
    default = shape.default_variant(field)
    if not isinstance(value, dict):
        found.append(Problem(path, _needs_section(default, value, path)))
        return None
    if len(choices) == 1:
        return _section(choices[0], value, path, found)
    key = str(shape.tag(default))
    given = value.get(key, shape.tag_values(default)[0])
    chosen = shape.variant(choices, given)
    if chosen is not None:
        before = len(found)
        kept = _section(chosen, {key: given, **value}, path, found)
        for i in range(before, len(found)):
            found[i] = _of_another_variant(found[i], choices, chosen, path, stated=key in value)
        return kept
    known = [tag for one in choices for tag in shape.tag_values(one)]
    if path == ("algorithm",):
        known += PRESETS
    found.append(
        Problem(
            (*path, key),
            f"{dotted((*path, key))} is {shown(given)}, which is none of ours.{nearest(str(given), known)}",
        )
    )
    guess = difflib.get_close_matches(str(given), known, n=1)
    nearby = shape.variant(choices, guess[0]) if guess else None
    if nearby is None:
        return None
    # the rest of the section is checked as if the nearest variant had been meant, so that one run shows all mistakes
    keys = {k: v for k, v in value.items() if k in nearby.model_fields}
    return _section(nearby, {**keys, key: guess[0]}, path, found)


def _of_another_variant(
    problem: Problem, choices: tuple[type[Strict], ...], chosen: type[Strict], path: KeyPath, stated: bool
) -> Problem:
    """The same problem, said better when the key belongs to a sibling of the chosen variant."""
    if len(problem.path) != len(path) + 1 or problem.path[-1] in chosen.model_fields:
        return problem
    owners = shape.belongs_to(choices, str(problem.path[-1]))
    if not owners:
        return problem
    tag_key = dotted((*path, str(shape.tag(chosen))))
    now = shape.tag_values(chosen)[0]
    text = (
        f"{dotted(problem.path)} is a setting of {' and '.join(owners)}, but {tag_key} is {now}"
        f"{'' if stated else ' (the default)'}. Remove it, or set {tag_key}={owners[0]}."
    )
    return Problem(problem.path, text)


def _unknown_key(section: type[Strict], path: KeyPath) -> str:
    key = str(path[-1])
    owner = _owner(section, path)
    siblings = list(section.model_fields)
    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if close:
        return f"{dotted(path)} is not a setting{owner}. Did you mean {dotted((*path[:-1], close[0]))}?"
    other = elsewhere(key) or _similar(key)
    if other:
        also = f" or {other[1]}" if len(other) > 1 else ""
        return f"{dotted(path)} is not a setting{owner}. Did you mean {other[0]}{also}?"
    return f"{dotted(path)} is not a setting{owner}. Possible here: {', '.join(siblings)}."


def _owner(section: type[Strict], path: KeyPath) -> str:
    values = shape.tag_values(section)
    if len(values) == 1:
        return f" of {dotted(path[:-1])} {values[0]}"
    return f" of {dotted(path[:-1])}" if len(path) > 1 else ""


def _similar(key: str) -> list[str]:
    """Full keys whose last part is spelled much like `key`."""
    names = {e.path[-1] for e in shape.entries() if "*" not in e.path}
    close = difflib.get_close_matches(key, sorted(names), n=1, cutoff=0.75)
    return elsewhere(close[0]) if close else []


def _needs_section(section: type[Strict], value: Any, path: KeyPath) -> str:
    keys = ", ".join(section.model_fields)
    if value is None:
        return f"{dotted(path)} is empty. Give it keys ({keys}) or remove it."
    return f"{dotted(path)} is {shown(value)}, but a section is needed, with keys such as {keys}."


def drop(tree: dict[str, Any], paths: Iterable[KeyPath]) -> None:
    """Take the values at these paths out of the tree, in place.

    A path into a list takes the whole list; one to a setting that is missing takes the section that lacks it.
    """
    for path in paths:
        keys = [part for part in path if isinstance(part, str)]
        while keys and not _dropped(tree, keys):
            keys.pop()


def _dropped(tree: dict[str, Any], keys: Sequence[str]) -> bool:
    here: Any = tree
    for key in keys[:-1]:
        here = here.get(key, {}) if isinstance(here, dict) else {}
    return isinstance(here, dict) and here.pop(keys[-1], _dropped) is not _dropped
