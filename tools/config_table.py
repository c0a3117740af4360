"""Writes docs/configuration.md from the schema: every key, its type, its default, what it means.

python tools/config_table.py            # writes the file
python tools/config_table.py --check    # exits with 1 when the file is not up to date
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fedloom.config import shape
from fedloom.config.presets import PRESETS
from fedloom.config.schema import Config
from fedloom.settings import Strict

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"

HEAD = """# Configuration

A recipe is a YAML file with the sections below; each key has the default shown, so a recipe holds only what differs.
`fedloom show RECIPE --comments` prints a recipe with every key; `fedloom validate RECIPE` names all its mistakes.

This page is made by `python tools/config_table.py`; do not edit it.

- Any key can be changed on the command line: `fedloom run my.yaml local.lr=1e-3 evaluate.metrics=[loss,rouge_l]`.
  The value is YAML; where the key takes text, it is taken as it stands. Mappings are merged, lists are replaced.
- `null` means off. Unknown keys, keys given twice, and values of another type are errors. YAML is read as version 1.2:
  `1e-3` is a number; `yes`, `no`, `on` and `off` are text.
- Where a section has variants, one key says which (`algorithm.name`, `adapter.kind`, `partition.method`, ...). A plain
  word in place of the section means the same: `partition: iid`, `adapter=full`. When an override exchanges the variant,
  the file's keys of the former variant no longer count; the same holds for `local.steps` and `local.epochs`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Presets\n", "A method's name given as `algorithm` may fill several sections:\n"]
    parts.append(table([("`algorithm`", "fills", "method"), *presets()]))
    parts.append("## Top level\n")
    parts.append(table([HEADER, *rows(Config, "", sections=False)]))
    for key, field in Config.model_fields.items():
        parts += section(key, field)
    return "\n".join(parts)


HEADER = ("key", "type", "default", "meaning")


def presets() -> Iterator[tuple[str, ...]]:
    """One row for each preset."""
    for name, preset in PRESETS.items():
        given = {**preset.fixed, **preset.start}
        filled = ", ".join(f"`{key}={plainly(value)}`" for key, value in given.items())
        yield f"`{name}`", filled, preset.summary


def section(key: str, field: FieldInfo) -> Iterator[str]:
    """Heading, purpose and table of one top-level section, one table for each variant."""
    named = shape.named_sections(field.annotation)
    choices = (named,) if named else shape.variants(field.annotation)
    if not choices:
        return
    yield f"## {key}\n"
    if named:
        yield f"{field.description}\n"
    default = None if named else shape.default_variant(field)
    for one in choices:
        if len(choices) > 1:
            mark = " (default)" if one is default else ""
            yield f"### {key}.{shape.tag(one)}: {shape.tag_values(one)[0]}{mark}\n"
        yield f"{shape.purpose(one)}\n"
        lines = list(rows(one, f"{key}.NAME." if named else f"{key}."))
        if lines:
            yield table([HEADER, *lines])


def rows(section: type[Strict], prefix: str, sections: bool = True) -> Iterator[tuple[str, ...]]:
    """One row for each key; the keys of inner sections follow in their place."""
    only = len(shape.tag_values(section)) == 1
    for key, field in section.model_fields.items():
        inner = shape.variants(field.annotation)
        if inner and sections:
            yield from inner_rows(f"{prefix}{key}", field, inner)
        elif not inner and not shape.named_sections(field.annotation) and not (only and key == shape.tag(section)):
            yield f"`{prefix}{key}`", kind(field), default_of(field), field.description or ""


def inner_rows(path: str, field: FieldInfo, choices: tuple[type[Strict], ...]) -> Iterator[tuple[str, ...]]:
    """A section inside a section: what it is for, then its keys."""
    off = field.default is None
    for one in choices:
        key, values = shape.tag(one), shape.tag_values(one)
        if key and len(values) == 1:
            default = values[0] if one is shape.default_variant(field) else ""
            yield f"`{path}.{key}`", f"`{values[0]}`", f"`{default}`" if default else "", shape.purpose(one)
        elif off:
            yield f"`{path}`", "section", "`null`", shape.purpose(one)
        yield from rows(one, f"{path}.")


def kind(field: FieldInfo) -> str:
    """The type in words, with its limits."""
    names = [word(one) for one in shape.plain(field.annotation)]
    text = " or ".join(dict.fromkeys(names))
    limits = [limit for limit in map(limit_of, field.metadata) if limit]
    text += f" {', '.join(limits)}" if limits else ""
    return f"{text} or `null`" if shape.optional(field.annotation) else text


def limit_of(constraint: Any) -> str:
    """`>= 1`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return next((f"{sign} {getattr(constraint, k):g}" for k, sign in signs.items() if hasattr(constraint, k)), "")


def word(one: Any) -> str:
    """A type as a person says it."""
    origin = get_origin(one)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(one))
    if origin is Annotated:
        return word(get_args(one)[0])
    if origin is list:
        return f"list of {word(get_args(one)[0])}"
    if origin is dict:
        return "mapping"
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[one]


def plainly(value: Any) -> str:
    """The value as YAML writes it on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(repr(one) for one in value)}]" if isinstance(value, list) else str(value)


def default_of(field: FieldInfo) -> str:
    """The default as YAML writes it."""
    if field.is_required():
        return "to be given"
    value = field.default
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def table(lines: list[tuple[str, ...]]) -> str:
    """A Markdown table; the first line is its head."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head, *body = escaped
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *body))


def main() -> int:
    """Write or check."""
    made = page()
    if "--check" in sys.argv[1:]:
        fresh = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == made
        print(f"{TARGET} is {'up to date' if fresh else 'not up to date; run: python tools/config_table.py'}")
        return 0 if fresh else 1
    TARGET.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
