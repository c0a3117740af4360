"""Offsite-tuning between real processes: clients whose machines have the emulator alone, and the owner's server.

Clients reach the server through a wire that writes down every byte, without TLS.
"""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

import fedloom
import hidden_blocks
import test_plugging as offsite
import tiny
from deployment.processes import FEDLOOM, Federation, free_port, write_rows
from fedloom.deployment.home import Home
from fedloom.recorder import read_csv

NAMES = ("site-a", "site-b")
ROUNDS = 2
DROPPED = [2, 3]
RECIPE = """
run: {{name: deployed, folder: runs}}
seed: 3
model: {{name: "{owner}", dtype: float32}}
offsite: {{drop_ratio: 0.5, emulator: "{emulator}"}}
adapter: {{rank: 3, targets: all-linear}}
data: {{source: data, test: 0.2, max_length: 96}}
partition: {{method: natural}}
local: {{steps: 2, batch_size: 4, lr: 0.02}}
federation: {{rounds: {rounds}}}
evaluate: {{every: 1, metrics: [loss]}}
engine: {{name: reference, threads: 1}}
deploy: {{clients: 2}}
"""


class Wire:
    """Hands every byte on, and keeps it."""

    def __init__(self, to: int) -> None:
        self.to, self.streams = to, list[bytearray]()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listening.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            for one, other in ((near, far), (far, near)):
                stream = bytearray()
                self.streams.append(stream)
                threading.Thread(target=self._pass, args=(one, other, stream), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket, stream: bytearray) -> None:
        try:
            while data := one.recv(1 << 16):
                stream += data
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            other.close()


class Offsite(Federation):
    """The owner's model and its own copy of the artefact with the server, another copy with each client."""

    def prepare(self) -> None:
        self.owner = tiny.saved(self.root / "owner", "llama", num_hidden_layers=6)
        self.emulator = offsite.artefact(self.owner, self.root / "emulator")
        recipe = RECIPE.format(owner=self.owner, emulator=self.emulator, rounds=ROUNDS)
        (self.root / "my.yaml").write_text(recipe)
        write_rows(self.root / "data", self.names, 30)
        self.wire = Wire(self.port)
        home = Home.create(self.home, [f"127.0.0.1:{self.wire.port}"], "127.0.0.1", self.port, insecure=True)
        for name in self.names:
            (self.root / f"{name}.join").write_text(home.invite(name).text)
            place = self.root / f"at-{name}"
            place.mkdir()
            shutil.copytree(self.emulator, place / "emulator")

    def start_apart(self, name: str, emulator: str = "emulator") -> None:
        """A client in a folder of its own; it is told where its emulator lies, and nothing else."""
        place, env = self.root / f"at-{name}", {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        join, data = self.root / f"{name}.join", self.root / "data" / f"{name}.jsonl"
        command = (*FEDLOOM, "client", str(join), "--data", str(data), "--set", f"offsite.emulator={emulator}")
        with (self.root / f"{name}.out").open("ab") as out:
            self.clients[name] = subprocess.Popen(
                command, cwd=place, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env
            )


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Offsite]:
    made = Offsite(tmp_path, NAMES, port=free_port())
    made.prepare()
    yield made
    made.end()
    made.wire.listening.close()


def simulated(federation: Offsite, *more: str) -> Path:
    root = federation.root
    changes = [*federation.settings, *more, f"data.source={root / 'data'}", f"run.folder={root / 'simulated'}"]
    return fedloom.run(fedloom.load(root / "my.yaml", changes)).folder


def state(run: Path) -> bytes:
    return (run / "checkpoints" / f"round-{ROUNDS:04d}" / "state.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_clients_with_the_artefact_alone_train_what_a_simulation_trains(federation: Offsite, kind: str) -> None:
    """And the server, which has rows of its own, scores the owner's model there."""
    root = federation.root
    write_rows(root / "own", ["rows"], 12)
    federation.settings = (f"evaluate.global_source={root / 'own' / 'rows.jsonl'}",)
    if kind == "full":
        federation.settings += ("adapter.kind=full", "local.lr=0.002")
        recipe = (root / "my.yaml").read_text().replace("adapter: {rank: 3, targets: all-linear}\n", "")
        (root / "my.yaml").write_text(recipe)
    wanted = simulated(federation)
    federation.start_server()
    for name in NAMES:
        federation.start_apart(name)
    assert federation.wait() == 0, federation.said()
    for process in federation.clients.values():
        assert process.wait(60) == 0, federation.said()
    run = federation.run()
    assert state(run) == state(wanted), federation.said()

    def rows(folder: Path, split: str) -> list[dict[str, object]]:
        found = [row for row in read_csv(folder / "metrics.csv") if row["split"] == split]
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found]

    assert {str(row["split"]) for row in read_csv(run / "metrics.csv")} == {"global", "emulator"}
    for split in ("global", "emulator"):
        assert rows(run, split) == rows(wanted, split)
    name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    for part in ("adapters/final", "adapters/emulator", "checkpoints/best"):
        assert (run / part / name).exists(), part
    for part in ("adapters/final", "adapters/emulator"):
        ours, theirs = load_file(run / part / name), load_file(wanted / part / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    _nothing_hidden_was_said(federation)
    if kind == "lora":
        home = next((root / "at-site-a").rglob("adapter_config.json")).parent
        taken = peft.PeftModel.from_pretrained(tiny.plain(federation.emulator), str(home))
        there = peft.PeftModel.from_pretrained(tiny.plain(federation.emulator), str(run / "adapters" / "emulator"))
        assert torch.equal(offsite.logits(taken), offsite.logits(there))


def _nothing_hidden_was_said(federation: Offsite) -> None:
    """Every byte on the wire, and every file clients were left with."""
    said = [bytes(stream) for stream in federation.wire.streams]
    left = [path for name in NAMES for path in (federation.root / f"at-{name}").rglob("*")]
    files = [path.read_bytes() for path in left if path.is_file()]
    assert sum(map(len, said)) > 50_000
    assert hidden_blocks.seen(hidden_blocks.kept_back(federation.owner, DROPPED), [*said, *files]) == []
    assert not any(str(federation.owner).encode() in one for one in said), "not even where it lies"
    vector = max(
        load_file(federation.run() / "checkpoints" / f"round-{ROUNDS - 1:04d}" / "state.safetensors").values(),
        key=lambda one: one.numel(),
    )
    assert hidden_blocks.seen({"trained": vector.numpy().tobytes()[:256]}, said), "the search finds what is there"


@pytest.mark.slow
def test_a_server_without_rows_needs_no_weights_and_a_client_with_another_emulator_is_refused(
    federation: Offsite,
) -> None:
    other = federation.root / "at-site-b" / "other"
    offsite.artefact(tiny.saved(federation.root / "stranger", "llama", num_hidden_layers=6, rms_norm_eps=1e-3), other)
    weights = federation.owner / "model.safetensors"
    weights.rename(federation.root / "elsewhere.safetensors")
    federation.start_server()
    federation.start_apart("site-a")
    federation.start_apart("site-b", emulator="other")
    assert federation.clients["site-b"].wait(120) != 0, federation.said()
    assert "base model" in (federation.root / "site-b.out").read_text(), federation.said()
    federation.start_apart("site-b")
    assert federation.wait() == 0, federation.said()
    (federation.root / "elsewhere.safetensors").rename(weights)
    run = federation.run()
    assert {str(row["split"]) for row in read_csv(run / "metrics.csv")} == {"test"}
    final = peft.PeftModel.from_pretrained(tiny.plain(federation.owner), str(run / "adapters" / "final"))
    assert (offsite.logits(final) - offsite.logits(tiny.plain(federation.owner))).abs().max() > 1e-4
