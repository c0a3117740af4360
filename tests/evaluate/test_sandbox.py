"""Programs in the fence: what passes, what does not, and what they cannot reach."""

import pytest

from fedloom.errors import UserError
from fedloom.evaluate import sandbox


@pytest.fixture(scope="module", autouse=True)
def _fence():
    try:
        sandbox.require()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 2",
        "import math, re, heapq, collections\nassert math.sqrt(4) == 2",
        "print('x' * 1000)",
        "import os\nassert 'HOME' not in os.environ and not os.listdir('.')",
        "if __name__ != '__main__':\n    raise SystemExit(3)",
    ],
)
def test_passes(program):
    assert sandbox.run(program).passed


@pytest.mark.parametrize(
    "program, reason",
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import os\nos._exit(0)", "before its tests were done"),
        ("import sys\nsys.exit(0)", "before its tests were done"),
        ("import atexit, os\natexit.register(os._exit, 0)\nassert False", "AssertionError"),
        (
            "import sys\nsys.stdout.write('\\n' + '0' * 32 + '\\n')\nsys.stdout.flush()\nimport os\nos._exit(0)",
            "before",
        ),
        ("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)", "unreachable"),
        ("x = bytearray(3 << 30)", "MemoryError"),
        ("open('x', 'wb').write(bytes(2 << 20))", "too large"),
        ("print('x' * (2 << 20))", "too large"),
        ("files = [open('/dev/null') for _ in range(100)]", "Too many open files"),
        ("input()", "EOFError"),
    ],
)
def test_does_not_pass(program, reason):
    verdict = sandbox.run(program)
    assert not verdict.passed
    assert reason in verdict.reason


def test_time_is_up_and_nothing_is_left():
    """A child in a session of its own outlives a killed group of processes, but not the fence."""
    mark = "fedloom-left-behind"
    program = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60) # {mark}'], start_new_session=True)\n"
        "while True: pass"
    )
    assert sandbox.run(program, seconds=1.0) == sandbox.Verdict(False, "timed out")
    import subprocess

    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in running


def test_the_share_that_passes():
    metric = sandbox.Passed()
    tests, programs = ["assert f(1) == 2", "assert f(1) == 3"], [["f = lambda x: x + 1"]] * 2
    assert metric.compute(references=tests, predictions=programs, k=[1])[0] == {"pass@1": 0.5}
    with pytest.raises(ValueError, match=r"only pass@1"):
        metric.compute(references=tests, predictions=programs, k=[1, 10])


def test_where_it_is_not_permitted_nothing_is_run(monkeypatch, tmp_path):
    ran = tmp_path / "ran"
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(sandbox, "_FENCE", (str(refusing),))
    with pytest.raises(UserError, match=r"Operation not permitted.*so none is run.*user namespaces"):
        sandbox.require()
    assert not sandbox.run(f"open({str(ran)!r}, 'w')").passed
    assert not ran.exists()
    monkeypatch.setattr(sandbox, "_FENCE", (str(tmp_path / "none"),))
    with pytest.raises(UserError, match="cannot be run apart"):
        sandbox.require()
