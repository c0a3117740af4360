"""From a recipe and overrides to a checked configuration, or to every mistake in it at once."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedloom import recipes
from fedloom.config import errors, tree, words
from fedloom.config.checks import check
from fedloom.config.overrides import Layers, Setting, flatten, parse_override
from fedloom.config.schema import Config
from fedloom.config.tree import KeyPath
from fedloom.config.words import Problem
from fedloom.errors import ConfigError, UserError


def load(recipe: str | Path, overrides: Sequence[str] = (), flags: Sequence[str] = ()) -> Config:
    """The configuration of a recipe with overrides.

    Args:
        recipe: name of a shipped recipe (`quickstart`) or path of a YAML file.
        overrides: `key.sub=value`, the value as YAML; they win over the file.
        flags: options of the calling command, named when an override looks like a mistyped one.

    Raises:
        ConfigError: all mistakes of the file and of the overrides, each with its line.
        UserError: there is no such recipe or file.
    """
    name, text = read(recipe)
    return parse(text, overrides, name, flags)


def parse(text: str, overrides: Sequence[str] = (), name: str = "recipe", flags: Sequence[str] = ()) -> Config:
    """The configuration a recipe's text describes; `name` stands before the line numbers of messages.

    Raises:
        ConfigError: all mistakes of the text and of the overrides.
    """
    found = _Found(name)
    parsed = tree.parse(text)
    for line, message in parsed.problems:
        found.add(f"{name}:{line}", message, line)
    if parsed.problems and parsed.value is None:
        raise ConfigError(found.messages())
    found.lines = parsed.lines
    layers = Layers()
    if isinstance(parsed.value, dict):
        layers.add(Setting(path, value, found.place(path)) for path, value in flatten(parsed.value) if path)
    else:
        given = "is empty" if parsed.value is None else "is no mapping"
        found.add(
            f"{name}:1",
            f"{given}. A recipe is made of sections such as `data:`; `fedloom copy` gives one to start from.",
        )
    _add_overrides(layers, overrides, flags, found)
    for place, message in layers.problems:
        found.add(place, message)
    found.settings = layers.settings
    config = _checked(layers.tree(), found)
    if found.problems or config is None:
        raise ConfigError(found.messages())
    return config


def read(recipe: str | Path) -> tuple[str, str]:
    """Name for messages and text of a shipped recipe or a file.

    Raises:
        UserError: it does not exist, is a folder, or is not text.
    """
    shipped = recipes.names()
    if isinstance(recipe, str) and recipe in shipped:
        return f"{recipe} (shipped)", recipes.text(recipe)
    path = Path(recipe)
    if path.is_dir():
        inside = path / "config.yaml"
        hint = f" Did you mean {inside}?" if inside.is_file() else ""
        raise UserError(f"{recipe} is a folder, not a recipe.{hint}")
    if not path.is_file():
        raise UserError(_no_such(recipe, path, shipped))
    try:
        return str(recipe), path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{recipe} is not a text file in UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{recipe} cannot be read: {error.strerror}.") from error


def _no_such(recipe: str | Path, path: Path, shipped: Sequence[str]) -> str:
    folder = path.parent
    files = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")) if folder.is_dir() else []
    if not folder.is_dir():
        return f"{recipe} does not exist: there is no folder {folder}."
    near_recipe = difflib.get_close_matches(path.stem, shipped, n=1, cutoff=0.6)
    near_file = difflib.get_close_matches(path.name, files, n=1, cutoff=0.6)
    likely = [str(folder / name) for name in near_file] + [f"{name} (a shipped recipe)" for name in near_recipe]
    hint = f" Did you mean {' or '.join(likely)}?" if likely else f" Shipped recipes: {', '.join(shipped)}."
    return f"{recipe} is neither a file nor a shipped recipe.{hint}"


@dataclass
class _Found:
    """The mistakes so far, and where things were said."""

    name: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    settings: dict[tuple[str, ...], Setting] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)
    """Place of each override on the command line."""
    problems: list[tuple[int, str]] = field(default_factory=list)

    def add(self, place: str, message: str, line: int | None = None) -> None:
        """Note one mistake; those with a line come first."""
        after_the_file = (1 << 30) + self.order.get(place, 0)
        self.problems.append((after_the_file if line is None else line, f"{place}  {message}"))

    def at(self, problem: Problem) -> None:
        """Note a mistake at the place where its key, or the nearest section around it, was given."""
        elsewhere = self._not_from_file(problem.path)
        if elsewhere is not None:
            self.add(elsewhere.place, problem.text)
        else:
            self.add(self.place(problem.path), problem.text, self._line(problem.path))

    def _not_from_file(self, path: KeyPath) -> Setting | None:
        """What was said about this key, or within it, by an override or a preset."""
        keys = tuple(part for part in path if isinstance(part, str))
        within = [s for p, s in self.settings.items() if p[: len(keys)] == keys]
        around = [self.settings[keys[:-1]]] if keys[:-1] in self.settings else []
        return next((s for s in within or around if s.place != self.place(s.path)), None)

    def _line(self, path: KeyPath) -> int | None:
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return None

    def place(self, path: KeyPath) -> str:
        """`file:line`, or the file when the key is not in it."""
        line = self._line(path)
        return self.name if line is None else f"{self.name}:{line}"

    def messages(self) -> list[str]:
        """In the order of the file, then of the command line."""
        return list(dict.fromkeys(text for _, text in sorted(self.problems, key=lambda pair: pair[0])))


def _add_overrides(layers: Layers, overrides: Sequence[str], flags: Sequence[str], found: _Found) -> None:
    given: list[Setting] = []
    for number, text in enumerate(_joined(overrides)):
        place = text if text.startswith("-") else f"override {text}"
        found.order[place] = number
        settings, problem = parse_override(text, flags)
        if problem:
            found.add(place, problem)
        given += settings
    layers.add(given)


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--key value` as one argument, so that it is answered once."""
    joined: list[str] = []
    for text in arguments:
        after_flag = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if after_flag and "=" not in text and not text.startswith("-"):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


def _checked(given: dict[str, Any], found: _Found) -> Config | None:
    """Judge the settings; what is wrong is noted and left out until the rest is valid, so nothing hides behind it."""
    kept, problems = errors.structure(given)
    bad = [p.path for p in problems]
    for problem in problems:
        found.at(problem)
    config = None
    while config is None:
        try:
            config = Config.model_validate(kept)
        except ValidationError as error:
            wrong = words.values(error)
            for problem in wrong:
                found.at(problem)
            bad += [p.path for p in wrong]
            errors.drop(kept, [p.path for p in wrong])
    for problem in check(config):
        if not any(_related(one, other) for one in problem.reads for other in bad):
            found.at(problem)
    return config


def _related(one: KeyPath, other: KeyPath) -> bool:
    """Whether one path lies inside the other."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]
