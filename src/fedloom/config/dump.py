"""A configuration as YAML that loads back to an equal one, in YAML 1.1 and 1.2 readers alike."""

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from fedloom.config.shape import tag
from fedloom.config.tree import SCALARS
from fedloom.settings import Strict

_WIDTH = 100


class _Dumper(yaml.SafeDumper):
    """Quotes text that any YAML version would read as something else; lists on one line."""


for _tag, _pattern, _first in SCALARS:
    _Dumper.add_implicit_resolver(_tag, _pattern, ["" if c == "\0" else c for c in _first])
_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def dump(config: Strict, comments: bool = False) -> str:
    """YAML of every setting, defaults included; of single clients only what was set.

    Args:
        config: the whole configuration or one section.
        comments: put each key's description above it.
    """
    return "".join(f"{line}\n" for line in _lines(config, "", comments))


def _lines(section: Strict, indent: str, comments: bool) -> Iterator[str]:
    fields = type(section).model_fields
    first = tag(type(section))
    for key in sorted(fields, key=lambda key: key != first):  # what a section is comes before its settings
        field = fields[key]
        value = getattr(section, key)
        if comments and field.description:
            yield from _comment(field.description, indent)
        if isinstance(value, Strict):
            if comments and value.__doc__:
                yield from _comment(value.__doc__.strip().splitlines()[0], indent)
            yield f"{indent}{key}:"
            yield from _lines(value, f"{indent}  ", comments)
        elif isinstance(value, dict) and any(isinstance(one, Strict) for one in value.values()):
            yield f"{indent}{key}:"
            for name, one in value.items():
                # what was not said of a client stays unsaid: it comes from `local`, or from another entry
                given = {
                    inner: getattr(one, inner) for inner in type(one).model_fields if inner in one.model_fields_set
                }
                yield from (f"{indent}  {line}" for line in _yaml({name: given}))
        else:
            yield from (f"{indent}{line}" for line in _yaml({key: value}))


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _yaml(value: dict[str, Any]) -> list[str]:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=_WIDTH)
    return text.splitlines()
