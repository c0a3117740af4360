"""A deployment over a bad line: latency, and a line that is cut.

Latency is made by a relay between client and server that hands every piece on later; for the cuts the clients live in
a Linux network namespace behind a virtual cable, which is taken down and up again in the middle of the run (no packet
and no farewell gets through, as on a real line). A short cut must cost nothing but time: the final state is compared
with a simulation's. The cuts need root (ip); loss of single packets was not simulated.

    sudo python benchmarks/network.py
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from machine import median, say, table, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "deployment"))
from processes import FEDLOOM, Federation, free_port, write_rows

SPACE, NEAR, FAR = "fedloom-far", "10.77.0.1", "10.77.0.2"
NAMES = ("site-a", "site-b")
ROUNDS = 12
RECIPE = f"""
run: {{name: network, folder: runs}}
seed: 5
data: {{source: data, test: 0.1, max_length: 96}}
partition: {{method: natural}}
algorithm: {{name: scaffold}}
local: {{steps: 2, batch_size: 2, lr: 0.05, optimizer: {{name: sgd}}}}
federation: {{rounds: {ROUNDS}}}
evaluate: {{every: 0, metrics: [loss], rows_per_client: 2}}
checkpoint: {{keep: 99}}
engine: {{name: slots, slots: 1, threads: 1}}
model: {{dtype: float32}}
deploy: {{clients: 2, silence_timeout: 60}}
"""
DELAYS = (0.0, 0.05, 0.15)
"""Seconds each way."""
CUTS = (15.0, 45.0)
"""Seconds."""


class Relay:
    """Hands every piece of a connection on after a delay."""

    def __init__(self, to: int, delay: float) -> None:
        self.to, self.delay, self.port = to, delay, free_port()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait(5)

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
            ready.set()
            await server.serve_forever()

        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(serve())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def close(self) -> None:
        """End every connection."""

        def end() -> None:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()

        self._loop.call_soon_threadsafe(end)
        self._thread.join(5)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(2 * self.delay)  # the handshake of the connection itself
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        sender = asyncio.create_task(send())
        try:
            while True:
                data = await reader.read(1 << 16)
                queue.put_nowait((time.monotonic() + self.delay, data))
                if not data:
                    break
            await sender
        except OSError:
            sender.cancel()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def cable() -> Iterator[None]:
    """The far namespace, joined to this one."""
    subprocess.run(["ip", "netns", "del", SPACE], stderr=subprocess.DEVNULL)
    ip("netns", "add", SPACE)
    try:
        ip("link", "add", "fl-near", "type", "veth", "peer", "name", "fl-far", "netns", SPACE)
        ip("addr", "add", f"{NEAR}/24", "dev", "fl-near")
        ip("link", "set", "fl-near", "up")
        ip("-n", SPACE, "addr", "add", f"{FAR}/24", "dev", "fl-far")
        ip("-n", SPACE, "link", "set", "fl-far", "up")
        ip("-n", SPACE, "link", "set", "lo", "up")
        yield
    finally:
        ip("netns", "del", SPACE)


def prepared(root: Path, address: str, port: int) -> Federation:
    """Everything but the processes; clients reach the server at `address`, and it listens at `port`."""
    from fedloom.deployment.home import Home

    federation = Federation(root, NAMES, port=port)
    (root / "my.yaml").write_text(RECIPE)
    write_rows(root / "data", NAMES, 20)
    home = Home.create(federation.home, [address], "0.0.0.0", port)
    for name in NAMES:
        (root / f"{name}.join").write_text(home.invite(name).text)
    return federation


def delayed(root: Path, delay: float) -> dict[str, Any]:
    """One run through a relay."""
    port = free_port()
    relay = Relay(port, delay)
    federation = prepared(root, f"127.0.0.1:{relay.port}", port)
    try:
        federation.start_server()
        federation.start_clients()
        assert federation.wait(600) == 0, federation.said()
    finally:
        federation.end()
        relay.close()
    return {"seconds": round_seconds(root), **compared(federation)}


def cut(root: Path, seconds: float) -> dict[str, Any]:
    """One run behind a cable that is out for so long after round 3."""
    port = free_port()
    federation = prepared(root, f"{NEAR}:{port}", port)
    with cable():
        try:
            federation.start_server()
            start_far(federation)
            federation.until(3, 200)
            ip("link", "set", "fl-near", "down")
            time.sleep(seconds)
            ip("link", "set", "fl-near", "up")
            assert federation.wait(600) == 0, federation.said()
        finally:
            federation.end()
    return {"seconds": round_seconds(root), **compared(federation)}


def start_far(federation: Federation) -> None:
    """Both clients, as one process each, behind the cable."""
    for name in NAMES:
        command = ["ip", "netns", "exec", SPACE, *FEDLOOM, "client", f"{name}.join", "--data", f"data/{name}.jsonl"]
        with (federation.root / f"{name}.out").open("ab") as out:
            env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            federation.clients[name] = subprocess.Popen(command, cwd=federation.root, stdout=out, stderr=out, env=env)


def round_seconds(root: Path) -> float:
    """Median over all rounds after the second."""
    import csv

    rows = list(csv.DictReader(next(root.glob("runs/*/rounds.csv")).open()))
    return median([float(row["seconds"]) for row in rows[2:]])


def compared(federation: Federation) -> dict[str, Any]:
    """Replies that were missing, and whether the bits are those of a simulation."""
    import json

    import fedloom

    root, found = federation.root, federation.run()
    events = [json.loads(text) for text in (found / "events.jsonl").read_text().splitlines()]
    missing = sum(event["event"] == "ReplyMissing" for event in events)
    changes = [f"data.source={root / 'data'}", f"run.folder={root / 'simulated'}"]
    wanted = fedloom.run(fedloom.load(root / "my.yaml", changes)).folder
    name = f"checkpoints/round-{ROUNDS:04d}/state.safetensors"
    return {"missing": missing, "same": (found / name).read_bytes() == (wanted / name).read_bytes()}


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("this makes network namespaces and needs root: sudo python benchmarks/network.py")
    rows = []
    trials = [(f"{1000 * delay:.0f} ms each way", partial(delayed, delay=delay)) for delay in DELAYS]
    trials += [(f"cut for {seconds:.0f} s", partial(cut, seconds=seconds)) for seconds in CUTS]
    for name, trial in trials:
        with tempfile.TemporaryDirectory() as folder:
            got = trial(Path(folder))
        bits = "yes" if got["same"] else "no"
        rows.append({"line": name, "s a round": f"{got['seconds']:.2f}", "missing": got["missing"], "same bits": bits})
        say(str(rows[-1]))
    say(table(rows))
    write("network", "sudo python benchmarks/network.py", {"rows": rows, "rounds": ROUNDS})


if __name__ == "__main__":
    main()
