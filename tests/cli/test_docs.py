"""docs/cli.md names every command, and its examples are valid."""

import re
import shlex
from pathlib import Path

from fedloom.cli.main import COMMANDS, GROUPS
from fedloom.config import load

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_every_command_has_its_row():
    words = "|".join(GROUPS)
    assert re.findall(rf"^\| `fedloom ((?:(?:{words}) )?[\w-]+)", PAGE, flags=re.MULTILINE) == list(COMMANDS)


def test_the_settings_of_the_examples_are_valid():
    examples = re.findall(r"^    fedloom run my\.yaml (.*)$", PAGE, flags=re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        load("my-data", shlex.split(example))
