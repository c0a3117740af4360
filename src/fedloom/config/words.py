"""Pydantic's findings about values, as sentences to act on: what was given, what is needed, what it is for."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedloom.config import shape
from fedloom.config.schema import Config
from fedloom.config.tree import KeyPath, dotted
from fedloom.errors import nearest


@dataclass(frozen=True)
class Problem:
    """One mistake: where in the configuration, and a sentence that begins with the key."""

    path: KeyPath
    text: str


def values(error: ValidationError) -> list[Problem]:
    """Pydantic's findings as sentences, one for each path."""
    grouped: dict[KeyPath, list[tuple[ErrorDetails, FieldInfo | None]]] = {}
    for detail in error.errors(include_url=False):
        path, field = _locate(detail["loc"])
        if detail["type"] == "value_error":
            path = (*path, *_named_first(field, detail["msg"]))
        grouped.setdefault(path, []).append((detail, field))
    return [Problem(path, _sentence(path, group)) for path, group in grouped.items()]


def _named_first(field: FieldInfo | None, message: str) -> list[str]:
    """The first key a section's own check speaks of; that is where the mistake is shown."""
    keys = {key for section in shape.variants(field.annotation) for key in section.model_fields} if field else set()
    return [word for word in re.findall(r"\w+", message) if word in keys][:1]


def _locate(loc: tuple[int | str, ...]) -> tuple[KeyPath, FieldInfo | None]:
    """Pydantic's location without the names of union members, and the field it lies in."""
    path: KeyPath = ()
    field: FieldInfo | None = None
    here: Any = Config
    rest = list(loc)
    while rest:
        choices = shape.variants(here)
        if len(choices) > 1:
            chosen = shape.variant(choices, rest.pop(0))
            choices = (chosen,) if chosen else ()
        if choices and rest:
            key = str(rest.pop(0))
            path, field = (*path, key), choices[0].model_fields[key]
            here = field.annotation
        elif named := shape.named_sections(here):
            path, here = (*path, str(rest.pop(0))), named
        else:
            items = [part for part in rest if isinstance(part, int)]
            return (*path, *items[:1]), field
    return path, field


def _sentence(path: KeyPath, group: list[tuple[ErrorDetails, FieldInfo | None]]) -> str:
    # of a union's members, the one that finds fault with the value tells more than those that find fault with its type
    detail, field = min(group, key=lambda pair: (pair[0]["type"].endswith("_type"), pair[0]["type"] == "literal_error"))
    if detail["type"] == "value_error":
        return f"{dotted(_locate(detail['loc'])[0])}: {detail['msg'].removeprefix('Value error, ')}."
    if detail["type"] == "missing":
        wanted = f" ({field.description.rstrip('.')}.)" if field and field.description else ""
        return f"{dotted(path)} is not given, but it is needed.{wanted}"
    what = f"{dotted(path)} is {shown(detail['input'])}, but "
    purpose = f" ({field.description.rstrip('.')}.)" if field and field.description else ""
    if len(group) > 1 and field is not None and detail["type"].endswith(("_type", "literal_error")):
        return f"{what}{kinds(field.annotation)} is needed.{_number_hint(detail)}{purpose}"
    said = _WORDS.get(detail["type"])
    return f"{what}{said(detail) if said else detail['msg']}{_number_hint(detail)}{purpose}"


def kinds(annotation: Any) -> str:
    """`text or a list of text`, `a whole number or null`."""
    names = [_kind(one) for one in shape.plain(annotation)]
    if shape.optional(annotation):
        names.append("null")
    return " or ".join(dict.fromkeys(names))


def _kind(one: Any) -> str:
    origin = get_origin(one)
    if origin is Literal:
        return ", ".join(str(value) for value in get_args(one))
    if origin is list:
        inside = _kind(get_args(one)[0])
        return f"a list of {inside}"
    if origin is dict:
        return "a mapping"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(one, "a value")


def _limit(sign: str, key: str) -> Callable[[ErrorDetails], str]:
    return lambda detail: f"must be {sign} {detail['ctx'][key]:g}."


def _text(detail: ErrorDetails) -> str:
    return f"text is needed{'; put it in quotes' if isinstance(detail['input'], int | float) else ''}."


def _literal(detail: ErrorDetails) -> str:
    choices = [word.strip(" '") for word in detail["ctx"]["expected"].replace(" or ", ",").split(",")]
    hint = nearest(str(detail["input"]), choices)
    if len(choices) == 1:
        return f"only {choices[0]} is possible."
    return f"must be one of {', '.join(choices)}.{hint if hint.startswith(' Did') else ''}"


def _pattern(detail: ErrorDetails) -> str:
    if "%" in detail["ctx"]["pattern"]:
        return "a number of clients or a share from 0% to 100%, such as 10%, is needed."
    return "only letters, digits, dot, dash and underscore are allowed, and at least one of them."


_WORDS: Mapping[str, Callable[[ErrorDetails], str]] = {
    "int_type": lambda _: "a whole number is needed.",
    "int_from_float": lambda _: "a whole number is needed.",
    "float_type": lambda _: "a number is needed.",
    "bool_type": lambda _: "true or false is needed.",
    "string_type": _text,
    "list_type": lambda _: "a list such as [a, b] is needed.",
    "dict_type": lambda _: "a mapping such as {key: value} is needed.",
    "finite_number": lambda _: "must be finite.",
    "greater_than": _limit("greater than", "gt"),
    "greater_than_equal": _limit("at least", "ge"),
    "less_than": _limit("less than", "lt"),
    "less_than_equal": _limit("at most", "le"),
    "literal_error": _literal,
    "string_pattern_mismatch": _pattern,
}


def _number_hint(detail: ErrorDetails) -> str:
    """For text that is nearly a number: what to write."""
    value = detail["input"]
    if detail["type"] not in ("int_type", "float_type", "bool_type") or not isinstance(value, str):
        return ""
    if detail["type"] == "bool_type":
        word = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower(), value.lower())
        return f" Write {word}." if word in ("true", "false") else ""
    try:
        number = float(value.replace("_", "").replace(",", ""))
    except ValueError:
        return ""
    return f" Write {number:.12g} without quotes."


def shown(value: Any) -> str:
    """A value as the user wrote it, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {_short(repr(value))}"
    if isinstance(value, list):
        return f"the list {_short(repr(value))}"
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    return str(value)


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
