"""Runs a program that a model wrote, apart from everything it need not touch.

It runs in a user, process and network namespace of its own (`unshare`): no network, no other process in sight of its
signals, nothing of it left when the time is up. Limits hold it to little processor time, memory, file size and few open
files; its environment is empty and its folder a temporary one. It passes when the line that stands after its tests is
reached, which prints a word drawn for this run: leaving early with a good exit code is no pass.

What it still can do is read any file its user can read, since the file system is the machine's own, and look for the
word by walking up the interpreter's frames. It is a fence around careless programs, not a prison for hostile ones; that
is why nothing is run without `--allow-code`.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from fedloom.errors import UserError

SECONDS: Final = 10.0
"""Wall time of one program."""
_MEMORY: Final = 1 << 30
_FILE: Final = 1 << 20
_FENCE: Final = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child=KILL")
_RUNNER: Final = """
import resource, sys
for what, most in {limits}:
    resource.setrlimit(getattr(resource, what), (most, most))
def run():
    word = sys.stdin.readline()
    program = sys.stdin.read()
    exec(compile(program, "program", "exec"), {{"__name__": "__main__"}})
    sys.__stdout__.write("\\n" + word)
    sys.__stdout__.flush()
run()
"""


@dataclass(frozen=True)
class Verdict:
    """How a program ended."""

    passed: bool
    reason: str
    """passed, timed out, or the last line it complained with."""


def run(program: str, seconds: float = SECONDS) -> Verdict:
    """Run a program with its tests.

    Args:
        program: Python; a failed test raises.
        seconds: wall time it may take.
    """
    word = secrets.token_hex(16)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaint:
        with tempfile.TemporaryDirectory(prefix="fedloom-program-") as folder:
            process = _start(folder, seconds, out, complaint)
            try:
                process.communicate(f"{word}\n{program}".encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                return Verdict(False, "timed out")
            finally:
                _end(process)
        said, complained = _text(out), _text(complaint)
    if process.returncode == 0 and said.endswith(f"\n{word}\n"):
        return Verdict(True, "passed")
    lines = complained.strip().splitlines()
    return Verdict(False, lines[-1][:200] if lines else f"ended with {process.returncode} before its tests were done")


def require() -> None:
    """See that programs can be fenced in here.

    Raises:
        UserError: they cannot, so none is run.
    """
    try:
        verdict = run("pass")
    except FileNotFoundError:
        verdict = Verdict(False, "there is no program `unshare`, which is part of Linux (util-linux)")
    if not verdict.passed:
        raise UserError(
            f"--allow-code: programs cannot be run apart from this machine here ({verdict.reason}), so none is run. "
            "Use a Linux machine or container that permits user namespaces (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or leave out tasks that "
            "run programs"
        )


class Passed:
    """Stands where lm-eval's tasks expect the metric `code_eval`: the share of programs that pass."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> tuple[dict[str, float], None]:
        """pass@k of one program for each problem.

        Args:
            references: the tests of each problem.
            predictions: programs of each problem.
            k: how many of them count; only 1 is known here.

        Raises:
            ValueError: more than one program for each problem is asked for.
        """
        if list(k) != [1] or any(len(some) != 1 for some in predictions):
            raise ValueError(f"only pass@1 of one program for each problem is scored here, not k={list(k)}")
        passed = [run(f"{some[0]}\n{tests}").passed for some, tests in zip(predictions, references, strict=True)]
        return {"pass@1": sum(passed) / len(passed)}, None


def _start(folder: str, seconds: float, out: IO[bytes], complaint: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start the program; what it prints goes into files, which the limit on their size holds."""
    limits = [
        ("RLIMIT_CPU", int(seconds) + 1),
        ("RLIMIT_AS", _MEMORY),
        ("RLIMIT_FSIZE", _FILE),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_NPROC", 64),
        ("RLIMIT_CORE", 0),
    ]
    code = _RUNNER.format(limits=limits)
    command = [*_FENCE, str(Path(sys.executable).resolve()), "-I", "-S", "-c", code]
    path = {"PATH": os.environ["PATH"]} if "PATH" in os.environ else {}
    return subprocess.Popen(
        ["env", "-i", *(f"{name}={value}" for name, value in path.items()), *command],
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=complaint,
        cwd=folder,
        start_new_session=True,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of it; the first process of a namespace takes all others with it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
