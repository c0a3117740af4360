"""A server and clients as real processes on this machine: seconds, memory, CPU, and bytes on the clients' link."""

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "deployment"))
from processes import Federation, free_port

MAILROOM = "fedloom.runtime.flower.mailroom"
LOOK = 0.1
"""Seconds between two looks at the processes."""
NANO_NUMBERS = 3072
"""Numbers of an adapter of rank 1 on the embedded model."""
RECIPE = """\
run: {name: deployed}
local: {steps: 1, batch_size: 1, lr: 1e-6}
evaluate: {every: 0, metrics: [loss], forgetting: false, rows_per_client: 1}
"""


@dataclass(frozen=True)
class Look:
    """At the two processes of the server."""

    time: float
    server: int
    """Bytes of resident memory."""
    mailroom: int
    server_cpu: float
    """Seconds, system and user."""
    mailroom_cpu: float


@dataclass
class Trial:
    """One run, and what was seen of it."""

    names: Sequence[str]
    settings: Sequence[str]
    together: bool = False
    """All clients in one process."""
    looks: list[Look] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    checkpoint: int = 0
    """Bytes of the last one on disk."""

    def go(self, seconds: float, count: bool = False) -> "Trial":
        """Run it to its end, with the clients' link through a counting proxy if asked for."""
        with prepared(self.names, self.settings) as federation, counting(federation.port, count) as proxy:
            if count:
                redirect(federation, proxy.port)
            federation.start_server()
            federation.start_clients(*([self.names] if self.together else []))
            try:
                with watching(federation, self.looks):
                    code = federation.wait(seconds)
                assert code == 0, federation.said()
            finally:
                federation.end()
            self.events = events(federation)
            self.bytes_up, self.bytes_down = proxy.up, proxy.down
            last = max(federation.run().glob("checkpoints/round-*"))
            self.checkpoint = sum(file.stat().st_size for file in last.iterdir())
        return self

    def rounds(self, warm: int = 2) -> list[float]:
        """Seconds from the beginning of a round to that of the next, without the first ones."""
        begun = [event["time"] for event in self.events if event["event"] == "RoundStarted"]
        ended = [event["time"] for event in self.events if event["event"] == "CheckpointSaved"]
        return [b - a for a, b in zip(begun, [*begun[1:], ended[-1]], strict=True)][warm:]

    def at(self, when: float) -> Look:
        """The look nearest to a time."""
        return min(self.looks, key=lambda look: abs(look.time - when))

    def after(self, round: int) -> Look:
        """The look when a round had ended."""
        return self.at(next(e["time"] for e in self.events if e["event"] == "RoundFinished" and e["round"] == round))

    def payload(self) -> float:
        """Encoded bytes of one reply."""
        last = [event for event in self.events if event["event"] == "RoundFinished"][-1]
        return float(last["bytes_up"]) / int(last["clients"])


def idle(count: int, seconds: float) -> tuple[Look, Look]:
    """Two looks so many seconds apart at a server that waits for one client more than are there."""
    looks: list[Look] = []
    with prepared(names(count), settings(count, 1, 8, f"deploy.clients={count + 1}")) as federation:
        federation.start_server()
        federation.start_clients(names(count))
        try:
            with watching(federation, looks):
                time.sleep(30 + count / 2 + seconds)
        finally:
            federation.end()
    return min(looks, key=lambda look: abs(look.time - (looks[-1].time - seconds))), looks[-1]


def settings(count: int, rounds: int, rank: int, *more: str) -> list[str]:
    """Overrides of the recipe: every client each round."""
    return [
        f"deploy.clients={count}", f"federation.min_replies={count}", f"federation.rounds={rounds}",
        f"partition.clients={count}", f"adapter.rank={rank}", *more,
    ]  # fmt: skip


def names(count: int) -> list[str]:
    return [f"site-{i:03d}" for i in range(count)]


@contextmanager
def prepared(names: Sequence[str], overrides: Sequence[str]) -> Iterator[Federation]:
    """A folder with recipe, rows and join files."""
    with tempfile.TemporaryDirectory(prefix="fedloom-deployed-") as folder:
        root = Path(folder)
        (root / "my.yaml").write_text(RECIPE)
        (root / "data").mkdir()
        for number, name in enumerate(names):
            lines = [{"instruction": f"w{number + 2} w{i + 2}", "output": f"w{i + 3}"} for i in range(20)]
            (root / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        federation = Federation(root, names, overrides)
        federation.invite()
        yield federation


def redirect(federation: Federation, port: int) -> None:
    """Let join files name another port of this machine."""
    for name in federation.names:
        path = federation.root / f"{name}.join"
        path.write_text(path.read_text().replace(f"127.0.0.1:{federation.port}", f"127.0.0.1:{port}"))


def events(federation: Federation) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (federation.run() / "events.jsonl").read_text().splitlines()]


@contextmanager
def watching(federation: Federation, looks: list[Look]) -> Iterator[None]:
    """Look at the server's processes until the block ends."""
    assert federation.server is not None
    server, over = psutil.Process(federation.server.pid), threading.Event()

    def watch() -> None:
        mailroom: psutil.Process | None = None
        while not over.wait(LOOK):
            with suppress(psutil.Error, StopIteration):
                if mailroom is None:
                    mailroom = next(one for one in server.children() if MAILROOM in one.cmdline())
                looks.append(look(server, mailroom))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def look(server: psutil.Process, mailroom: psutil.Process) -> Look:
    here, there = server.cpu_times(), mailroom.cpu_times()
    return Look(
        time.time(), server.memory_info().rss, mailroom.memory_info().rss, here.user + here.system,
        there.user + there.system,
    )  # fmt: skip


@dataclass
class Counter:
    """A TCP proxy in front of a port of this machine; counts what passes, TLS included."""

    target: int
    port: int = field(default_factory=free_port)
    up: int = 0
    down: int = 0

    def serve(self) -> None:
        """Accept until the process ends."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the server is not up yet; the client tries again
                near.close()
                continue
            threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def counting(target: int, wanted: bool) -> Iterator[Counter]:
    """A counter, at work if wanted."""
    counter = Counter(target)
    if wanted:
        threading.Thread(target=counter.serve, daemon=True).start()
    yield counter
