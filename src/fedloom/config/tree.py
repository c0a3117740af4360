"""YAML text as plain values with the line of every key.

The scalars are those of YAML 1.2 (core schema), not of PyYAML's 1.1: `1e-3` is a number, `on`, `off`, `yes` and `no`
are text, `012` is twelve, `1:30` and `1_000` are text. Keys are always text. A key that stands twice is an error, and
so are tags such as `!!python/object`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import yaml

KeyPath: TypeAlias = tuple[str | int, ...]
"""From the root to a value; numbers count items of a list from 0."""

_NULL: Final = "tag:yaml.org,2002:null"
_BOOL: Final = "tag:yaml.org,2002:bool"
_INT: Final = "tag:yaml.org,2002:int"
_FLOAT: Final = "tag:yaml.org,2002:float"
_STR: Final = "tag:yaml.org,2002:str"

SCALARS: Final[tuple[tuple[str, re.Pattern[str], str], ...]] = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), "~nN\0"),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    (_INT, re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    (
        _FLOAT,
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
)
"""YAML 1.2 core: tag, what it looks like, and its possible first characters (NUL stands for no character)."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, ["" if c == "\0" else c for c in _first])


@dataclass(frozen=True)
class Parsed:
    """A document: its value, the line (from 1) of each key path, and what is wrong with it as (line, message)."""

    value: Any
    lines: dict[KeyPath, int]
    problems: tuple[tuple[int, str], ...]


def parse(text: str) -> Parsed:
    """Read one YAML document; mistakes are collected, never raised."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return Parsed(None, {}, ((mark.line + 1 if mark else 1, f"cannot be read as YAML: {_reason(error)}"),))
    except yaml.YAMLError as error:  # characters YAML does not allow; these carry no mark
        return Parsed(None, {}, ((1, f"cannot be read as YAML: {str(error).splitlines()[0]}"),))
    if node is None:
        return Parsed(None, {}, ())
    builder = _Builder()
    value = builder.build(node, ())
    return Parsed(value, builder.lines, tuple(builder.problems))


def _reason(error: yaml.MarkedYAMLError) -> str:
    said = ", ".join(part for part in (error.context, error.problem) if part)
    if "scanning an alias" in said:
        return f"{said} (text that begins with * needs quotes)"
    if "'\\t'" in said:
        return f"{said} (indent with spaces, not tabs)"
    if "mapping values are not allowed" in said:
        return f"{said} (text with `: ` in it needs quotes; check the indentation)"
    return said


_LEFT_OUT: Final = object()


class _Builder:
    """Turns a node tree into values, noting lines and mistakes on the way."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[tuple[int, str]] = []
        self._open: list[yaml.Node] = []  # ancestors, to notice an alias inside its own anchor

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if any(node is ancestor for ancestor in self._open):
            self.problems.append((line, f"{dotted(path)} contains itself through an alias"))
            return _LEFT_OUT
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return dict(self._pairs(node, path))
            if isinstance(node, yaml.SequenceNode):
                items = [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
                return [item for item in items if item is not _LEFT_OUT]
            return self._scalar(node, path)
        finally:
            self._open.pop()

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, Any]]:
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append((line, "a key must be plain text, not a list or mapping"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in first:
                self.problems.append((line, f"{dotted(here)} is given twice, first on line {first[key]}. Keep one."))
                continue
            first[key] = line
            self.lines[here] = line
            value = self.build(value_node, here)
            if value is not _LEFT_OUT:
                yield key, value

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        text = str(node.value)
        match node.tag:
            case "tag:yaml.org,2002:str":
                return text
            case "tag:yaml.org,2002:null":
                return None
            case "tag:yaml.org,2002:bool":
                return text.lower() == "true"
            case "tag:yaml.org,2002:int":
                return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
            case "tag:yaml.org,2002:float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        self.problems.append(
            (node.start_mark.line + 1, f"{dotted(path)} has the tag {node.tag}; only plain values work")
        )
        return _LEFT_OUT


def dotted(path: KeyPath) -> str:
    """`a.b[0]`; the root is called `the file`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the file"
