"""Settings in layers: file, presets, `key=value` from the command line; later layers win.

A layer is a flat list of settings, so merging is assignment. Two things a later layer takes away from an earlier one,
because they no longer mean anything: keys of a variant that was exchanged (`partition.method=iid` over a file with
`per_client`), and the other of a pair of alternatives (`local.epochs=1` over a file with `steps`). Within one layer
both stay, and are reported as the contradictions they are.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fedloom.config import shape
from fedloom.config.hints import resolve_key
from fedloom.config.presets import PRESETS
from fedloom.config.tree import KeyPath, parse

Path = tuple[str, ...]

ALTERNATIVES: Final[tuple[tuple[Path, Path], ...]] = ((("local", "steps"), ("local", "epochs")),)
_KEY: Final = re.compile(r"^[A-Za-z_][\w-]*(\.[\w-]+)*$")


@dataclass(frozen=True)
class Setting:
    """One value, and where it was given: `a.yaml:14`, `override local.lr=1`, `preset fedit`."""

    path: Path
    value: Any
    place: str


class Layers:
    """The settings so far; `problems` holds what could not be merged, as (place, message)."""

    def __init__(self) -> None:
        self.settings: dict[Path, Setting] = {}
        self.problems: list[tuple[str, str]] = []

    def add(self, layer: Iterable[Setting]) -> None:
        """Lay settings over the ones so far; a preset named among them is laid just beneath them."""
        given = [_expand(setting) for setting in layer]
        names = [s for s in given if s.path == ("algorithm", "name") and s.value in PRESETS]
        if names:
            self._add_preset(names[-1], given)
            given = [s for s in given if s not in names]
        self._merge(given)

    def _add_preset(self, named: Setting, given: Sequence[Setting]) -> None:
        preset = PRESETS[named.value]
        for setting in given:
            key = ".".join(setting.path)
            wanted = preset.fixed.get(key)
            if wanted is not None and setting is not named and setting.value not in (wanted, named.value):
                message = (
                    f"{key} is {setting.value}, but {named.value} means {key}={wanted}. "
                    f"Leave one out; algorithm={preset.fixed['algorithm.name']} lets you choose."
                )
                self.problems.append((setting.place, message))
        place = f"{named.place} (preset {named.value})"
        values = {**preset.fixed, **preset.start}
        self._merge([Setting(tuple(key.split(".")), value, place) for key, value in values.items()])

    def _merge(self, given: Sequence[Setting]) -> None:
        for setting in given:
            self._drop_exchanged(setting)
            self._drop_alternative(setting)
        for setting in given:
            self._assign(setting)

    def _assign(self, new: Setting) -> None:
        """Set one path; a value takes the place of a whole section and the other way round."""
        inside = [p for p in self.settings if len(p) > len(new.path) and p[: len(new.path)] == new.path]
        if inside and new.value == {}:
            return
        above = [new.path[:i] for i in range(1, len(new.path)) if new.path[:i] in self.settings]
        for path in (*inside, *above):
            del self.settings[path]
        self.settings[new.path] = new

    def _drop_exchanged(self, new: Setting) -> None:
        """Forget earlier settings that only the section's former variant had."""
        section, key = new.path[:-1], new.path[-1]
        fields = shape.fields_at(section) if section else []
        if len(fields) != 1:
            return
        choices = shape.variants(fields[0].annotation)
        if len(choices) < 2 or key != shape.tag(choices[0]):
            return
        earlier = self.settings.get(new.path)
        default = shape.default_variant(fields[0])
        before = shape.variant(choices, earlier.value) if earlier else default
        after = shape.variant(choices, new.value)
        if before is None or after is None or before is after:
            return
        gone = set(before.model_fields) - set(after.model_fields)
        for path in [p for p in self.settings if p[: len(section)] == section and len(p) > len(section)]:
            if path[len(section)] in gone:
                del self.settings[path]

    def _drop_alternative(self, new: Setting) -> None:
        for pair in ALTERNATIVES:
            if new.path in pair and new.value is not None:
                self.settings.pop(pair[1 - pair.index(new.path)], None)

    def tree(self) -> dict[str, Any]:
        """The settings as nested mappings."""
        root: dict[str, Any] = {}
        for path, setting in self.settings.items():
            here = root
            for part in path[:-1]:
                here = here.setdefault(part, {})
            here[path[-1]] = {} if setting.value == {} else setting.value
        return root


def flatten(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, value) of every value that is not a filled mapping."""
    if isinstance(value, dict) and (value or not path):
        for key, inner in value.items():
            yield from flatten(inner, (*path, key))
    else:
        yield path, value


def parse_override(text: str, flags: Sequence[str] = ()) -> tuple[list[Setting], str | None]:
    """`key.sub=value` as settings, or what is wrong with it.

    Args:
        text: one argument of the command line. The value is YAML, so `[1, 2]`, `null` and `{a: 1}` work; where the
            setting is text it is taken as it stands, quotes or not.
        flags: options the command has, to name the nearest when `text` looks like an option.
    """
    if text.startswith("-"):
        return [], _flag(text, flags)
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals:
        return [], f"has no value. Settings are given as key=value{_example(key)}."
    if not _KEY.match(key):
        return [], f"{key!r} is no key. Write it with dots, such as federation.rounds=20."
    path = tuple(key.split("."))
    value, problem = _value(path, raw)
    if problem:
        return [], f"{key}: {problem}"
    place = f"override {text}"
    return _settings(path, value, place), None


def _settings(path: Path, value: Any, place: str) -> list[Setting]:
    if isinstance(value, dict) and value:
        return [Setting((*path, *inner), v, place) for inner, v in flatten(value)]
    return [Setting(path, value, place)]


def _value(path: KeyPath, raw: str) -> tuple[Any, str | None]:
    fields = shape.fields_at(path)
    text_only = bool(fields) and all(shape.is_text(field.annotation) for field in fields)
    quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\""
    if text_only and not quoted and raw not in ("", "null", "~"):
        return raw, None
    parsed = parse(raw)
    if parsed.problems:
        return None, f"the value {raw!r} {parsed.problems[0][1]}"
    return parsed.value, None


def _flag(text: str, flags: Sequence[str]) -> str:
    name, _, value = text.lstrip("-").partition("=")
    close = difflib.get_close_matches(f"--{name}", flags, n=1, cutoff=0.75)
    if close:
        return f"is no option. Did you mean {close[0]}?"
    known = resolve_key(name.replace("-", "_") if "." not in name else name)
    example = f"{known or name}={value or 'VALUE'}"
    return f"is no option. Settings are given without dashes; use key=value: {example}"


def _example(key: str) -> str:
    known = resolve_key(key)
    return f": {known or 'federation.rounds'}=VALUE" if known or not _KEY.match(key) else f", such as {key}=VALUE"


def _expand(setting: Setting) -> Setting:
    """A plain string in a section's place becomes the value of its tag: `algorithm: fedavg`."""
    fields = shape.fields_at(setting.path)
    if not isinstance(setting.value, str) or not fields:
        return setting
    choices = shape.variants(fields[0].annotation)
    key = shape.tag(choices[0]) if choices else None
    return replace(setting, path=(*setting.path, key)) if key else setting
