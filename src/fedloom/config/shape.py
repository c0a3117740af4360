"""What the schema looks like from outside: sections, variants, tags, and where a key is legal.

A *section* is a Strict class. Where several are possible (`partition`), each is a *variant* and its *tag* (`method`)
says which. Nothing here knows a single setting by name; all is read from the annotations.
"""

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fedloom.config.schema import Config
from fedloom.settings import Strict

TAGS: Final = ("name", "kind", "method")
"""Keys that say which variant a section is; a plain string in a section's place is the value of its tag."""


@dataclass(frozen=True)
class Entry:
    """One legal key: its dotted path (`*` for a client's name), the field, and the section it stands in."""

    path: tuple[str, ...]
    field: FieldInfo
    section: type[Strict]


def plain(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation, without Annotated and None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return plain(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(one for part in get_args(annotation) for one in plain(part))
    return () if annotation is type(None) else (annotation,)


def optional(annotation: Any) -> bool:
    """Whether null is allowed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return optional(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return any(optional(part) for part in get_args(annotation))
    return annotation is type(None)


def variants(annotation: Any) -> tuple[type[Strict], ...]:
    """The sections that may stand there; empty for a plain value."""
    return tuple(one for one in plain(annotation) if isinstance(one, type) and issubclass(one, Strict))


def named_sections(annotation: Any) -> type[Strict] | None:
    """The section behind `dict[str, Section]`, such as `clients`."""
    for one in plain(annotation):
        if get_origin(one) is dict:
            inside = variants(get_args(one)[1])
            return inside[0] if inside else None
    return None


def is_text(annotation: Any) -> bool:
    """Whether the value is text and nothing else, so that no quotes are needed on the command line."""
    return plain(annotation) == (str,)


def tag(section: type[Strict]) -> str | None:
    """The key that names the variant."""
    return next((key for key in TAGS if key in section.model_fields), None)


def tag_values(section: type[Strict]) -> tuple[str, ...]:
    """What the tag may be in this section; empty when it is free text."""
    key = tag(section)
    if key is None:
        return ()
    (one,) = plain(section.model_fields[key].annotation)
    return tuple(str(value) for value in get_args(one)) if get_origin(one) is Literal else ()


def variant(choices: tuple[type[Strict], ...], value: object) -> type[Strict] | None:
    """The variant of that tag value; a single section needs none."""
    if len(choices) == 1:
        return choices[0]
    return next((one for one in choices if value in tag_values(one)), None)


def default_variant(field: FieldInfo) -> type[Strict]:
    """The section that stands there when nothing is said."""
    return type(field.default) if isinstance(field.default, Strict) else variants(field.annotation)[0]


def fields_at(path: tuple[str | int, ...]) -> list[FieldInfo]:
    """Every field a path may mean, over all variants on the way; empty when it means none."""
    here: list[Any] = [Config]
    found: list[FieldInfo] = []
    for part in path:
        found, named = [], []
        for annotation in here:
            inside = named_sections(annotation)
            if inside is not None:
                named.append(inside)
            found += [s.model_fields[str(part)] for s in variants(annotation) if part in s.model_fields]
        here = [field.annotation for field in found] + named
    return found


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every legal key of the configuration, in the schema's order; sections themselves included."""
    return tuple(_entries(Config, ()))


def _entries(section: type[Strict], prefix: tuple[str, ...]) -> Iterator[Entry]:
    for key, field in section.model_fields.items():
        path = (*prefix, key)
        yield Entry(path, field, section)
        named = named_sections(field.annotation)
        if named is not None:
            yield from _entries(named, (*path, "*"))
        for one in variants(field.annotation):
            yield from _entries(one, path)


def belongs_to(choices: tuple[type[Strict], ...], key: str) -> list[str]:
    """Tag values of the variants that have this key."""
    return [tag_values(one)[0] for one in choices if key in one.model_fields and tag_values(one)]


def purpose(section: type[Strict]) -> str:
    """First line of the docstring."""
    return (section.__doc__ or "").strip().splitlines()[0]
