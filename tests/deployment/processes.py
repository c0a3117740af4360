"""A server and clients as real processes on loopback, for tests and for the benchmarks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.data import playground
from fedloom.deployment.home import Home

FEDLOOM = (sys.executable, "-m", "fedloom")


def free_port() -> int:
    """A port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_rows(folder: Path, names: Sequence[str], rows: int) -> None:
    """A file of rows for every client, each of another skill."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, skill) in enumerate(zip(names, playground.QUICKSTART, strict=False)):
        made = playground.rows((skill,), rows, "train", number)
        lines = [json.dumps({k: r[k] for k in ("instruction", "input", "output", "category")}) for r in made]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@dataclass
class Federation:
    """Processes in one folder: `my.yaml`, `data/NAME.jsonl`, the server's and the clients' own folders."""

    root: Path
    names: Sequence[str]
    settings: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    server: "subprocess.Popen[bytes] | None" = None
    clients: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The server's own folder."""
        return self.root / "fedloom-server"

    def invite(self, insecure: bool = False) -> None:
        """Make the server's folder and a join file for everybody."""
        home = Home.create(self.home, ["127.0.0.1"], "127.0.0.1", self.port, insecure=insecure)
        for name in self.names:
            (self.root / f"{name}.join").write_text(home.invite(name).text)

    def start_server(self, *more: str) -> None:
        """As a person would, and again after it ended."""
        command = ("server", "my.yaml", *self.settings, "--json", "--no-report", *more)
        self.server = self._start("server", *command)

    def start_clients(self, *groups: Sequence[str]) -> None:
        """One process for each group of names; each alone by default."""
        for group in groups or [[name] for name in self.names]:
            joins = [f"{name}.join" for name in group]
            data = [part for name in group for part in ("--data", f"data/{name}.jsonl")]
            self.clients[group[0]] = self._start(group[0], "client", *joins, *data)

    def wait(self, seconds: float = 240) -> int:
        """Until the server has ended; its exit code."""
        assert self.server is not None
        return self.server.wait(timeout=seconds)

    def rounds(self) -> int:
        """Rounds the server has a checkpoint of."""
        found = [int(p.name[6:]) for p in self.root.glob("runs/*/checkpoints/round-*") if p.name[6:].isdigit()]
        return max(found, default=-1)

    def until(self, round: int, seconds: float = 120) -> None:
        """Wait for the checkpoint of a round."""
        end = time.monotonic() + seconds
        while self.rounds() < round:
            assert time.monotonic() < end, f"round {round} did not come:\n{self.said()}"
            time.sleep(0.05)

    def run(self) -> Path:
        """The run folder."""
        return next(iter(sorted((self.root / "runs").iterdir())))

    def said(self) -> str:
        """What all of them wrote, for a failed test."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.root.glob("*.out")))

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """As a power cut would."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """Whatever still runs."""
        for process in [self.server, *self.clients.values()]:
            if process is not None and process.poll() is None:
                self.kill(process)

    def _start(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (self.root / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                [*FEDLOOM, *arguments], cwd=self.root, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env
            )
