"""The program as a process: quick commands stay light, and exit codes reach the shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedloom

HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib")
SRC = str(Path(fedloom.__file__).parents[1])
CODE = """
import sys
try:
    from fedloom.cli.main import entry
    entry()
finally:
    print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


def program(*arguments, cwd, code=None):
    command = [sys.executable, *(["-c", code] if code else ["-m", "fedloom"]), *arguments]
    environment = {**os.environ, "PYTHONPATH": SRC, "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120)


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["validate", "typo.yaml"], 2),
        (["validate", "quickstart"], 0),
        (["run", "typo.yaml"], 2),
        (["show", "quickstart", "--comments"], 0),
        (["list", "sources"], 0),
        (["recipes"], 0),
        (["version"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_heavy_is_imported(tmp_path, arguments, code):
    (tmp_path / "typo.yaml").write_text("federation:\n  rouns: 3\n")
    done = program(*arguments, cwd=tmp_path, code=CODE.format(heavy=HEAVY))
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_typo_is_two_lines_of_shell(tmp_path):
    (tmp_path / "typo.yaml").write_text("federation:\n  rouns: 3\n")
    done = program("run", "typo.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "typo.yaml:2  federation.rouns is not a setting of federation. Did you mean federation.rounds?\n"
    )
