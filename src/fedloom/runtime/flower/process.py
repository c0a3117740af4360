"""Starts the mailroom's process, and ends it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from fedloom.errors import RunStopped, UserError
from fedloom.runtime.flower.mailroom import Settings

LAST = 5
"""Lines of the log that are quoted when the process ends."""


class Mailroom:
    """The process that holds the mailboxes; it ends with this one, however this one ends."""

    def __init__(self, settings: Settings, log: Path) -> None:
        """Start it.

        Args:
            settings: where it listens, and how.
            log: file to which it writes.

        Raises:
            UserError: the port is taken.
        """
        _check_free(settings.host, settings.port)
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedloom.runtime.flower.mailroom"],
                stdin=subprocess.PIPE, stdout=sink, stderr=sink, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._process.stdin is not None
        self._input = self._process.stdin
        self._input.write(settings.line())
        self._input.flush()

    def check(self) -> None:
        """Raise RunStopped if it has ended."""
        code = self._process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-LAST:]
            raise RunStopped(
                f"the mailroom (Flower) ended with code {code}; start the server again with the same command, it goes "
                f"on from the last checkpoint. The end of {self.log}:\n" + "\n".join(lines)
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def stop(self) -> None:
        """End it and wait for that."""
        self._input.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {host} cannot be used ({error.strerror}); stop what uses it, or name another: --port"
            ) from None
