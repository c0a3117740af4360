"""The recipes that ship with fedloom: one YAML file each, its first comment line says what it is."""

from importlib.resources import files
from pathlib import Path


def names() -> list[str]:
    """Names of the shipped recipes, as `fedloom run` takes them."""
    return sorted(Path(entry.name).stem for entry in files(__name__).iterdir() if entry.name.endswith(".yaml"))


def text(name: str) -> str:
    """The recipe's YAML.

    Raises:
        FileNotFoundError: no such recipe.
    """
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """What the recipe is, from its first comment line."""
    return text(name).splitlines()[0].lstrip("# ")
