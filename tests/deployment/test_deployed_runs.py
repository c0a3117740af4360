"""Runs of real processes on loopback, over TLS and node keys, against the same recipe in simulation: the same bits."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fedloom
from deployment.processes import Federation, write_rows

NAMES = ("site-a", "site-b", "site-c")
ROUNDS = 3
RECIPE = f"""
run: {{name: deployed, folder: runs}}
seed: 3
data: {{source: data, test: 0.1, max_length: 96}}
partition: {{method: natural}}
local: {{steps: 3, batch_size: 4, lr: 0.002}}
federation: {{rounds: {ROUNDS}}}
evaluate: {{every: {ROUNDS}, max_new_tokens: 8, rows_per_client: 4, metrics: [loss]}}
checkpoint: {{keep: 9}}
engine: {{name: slots, slots: 1, threads: 1}}
model: {{dtype: float32}}
deploy: {{clients: 3}}
"""
SCAFFOLD = ("algorithm=scaffold", "local.optimizer.name=sgd", "local.lr=0.5")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, NAMES)
    (tmp_path / "my.yaml").write_text(RECIPE)
    write_rows(tmp_path / "data", NAMES, 30)
    yield made
    made.end()


def simulated(federation: Federation) -> Path:
    """The run folder of the same recipe in simulation."""
    root = federation.root
    changes = [*federation.settings, f"data.source={root / 'data'}", f"run.folder={root / 'simulated'}"]
    return fedloom.run(fedloom.load(root / "my.yaml", changes)).folder


def last(run: Path, rounds: int = ROUNDS) -> bytes:
    return (run / "checkpoints" / f"round-{rounds:04d}" / "state.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("algorithm=fedavg",),
        SCAFFOLD,
        ("algorithm=flexlora", "clients.site-a.rank=2", "clients.site-b.rank=4"),
        ("algorithm=ditto",),
    ],
    ids=lambda settings: settings[0].partition("=")[2],
)
def test_a_deployment_has_the_bits_of_the_simulation(federation: Federation, settings: Sequence[str]) -> None:
    federation.settings = settings
    wanted = simulated(federation)
    federation.invite()
    federation.start_server()
    federation.start_clients(["site-a"], ["site-b", "site-c"])
    assert federation.wait() == 0, federation.said()
    assert last(federation.run()) == last(wanted), federation.said()
    for process in federation.clients.values():
        assert process.wait(60) == 0, federation.said()
    for name in NAMES:
        taken_home = next((federation.root / "fedloom-client" / name).rglob("adapter_model.safetensors"))
        own = wanted / "adapters" / "clients" / name / "adapter_model.safetensors"
        if own.exists():
            ours, theirs = load_file(own), load_file(taken_home)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_a_server_that_teaches_has_the_bits_of_the_simulation(federation: Federation) -> None:
    """The teacher is where the public rows are: with the server; no client is told where it lies."""
    write_rows(federation.root / "public", ["rows"], 24)
    teacher = "algorithm={name: fedkd, teacher: {name: nano}, batch_size: 8, lr: 1e-3}"
    federation.settings = (
        teacher, "model.layers=[0, 2]", f"data.public_source={federation.root / 'public' / 'rows.jsonl'}"
    )  # fmt: skip
    wanted = simulated(federation)
    federation.invite()
    federation.start_server()
    federation.start_clients(["site-a"], ["site-b", "site-c"])
    assert federation.wait() == 0, federation.said()
    assert last(federation.run()) == last(wanted), federation.said()
    whole = 4 * 1_000_000  # bytes that only the teacher, of 1.8 million numbers, reaches
    kept = (federation.run() / "clients").rglob("*.safetensors")
    assert any(file.stat().st_size > whole for file in kept), "the server remembers what the teacher has learned"
    taken = [file for file in (federation.root / "fedloom-client").rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in taken) < whole


@pytest.mark.slow
def test_whoever_is_killed_comes_back_and_nothing_is_lost(federation: Federation) -> None:
    rounds = 6
    federation.settings = (*SCAFFOLD, f"federation.rounds={rounds}", "evaluate.every=0")
    wanted = simulated(federation)
    federation.invite()
    federation.start_server()
    federation.start_clients(["site-a"], ["site-b", "site-c"])
    federation.until(1)
    assert federation.server is not None
    federation.kill(federation.server)
    federation.start_server()
    federation.until(2)
    federation.kill(federation.clients["site-a"])
    time.sleep(0.5)
    federation.start_clients(["site-a"])
    federation.until(4)
    federation.kill(federation.server)
    federation.start_server()
    assert federation.wait() == 0, federation.said()
    assert last(federation.run(), rounds) == last(wanted, rounds), federation.said()


@pytest.mark.slow
def test_a_server_that_is_asked_to_stop_goes_on_later(federation: Federation) -> None:
    import subprocess

    from deployment.processes import FEDLOOM

    federation.settings = ("federation.rounds=40", "evaluate.every=0", "deploy.clients=1")
    federation.invite(insecure=True)
    federation.start_server()
    federation.start_clients(["site-a"])
    federation.until(2)
    stop = subprocess.run([*FEDLOOM, "stop"], cwd=federation.root, capture_output=True, text=True, timeout=120)
    assert stop.returncode == 0, stop.stderr + federation.said()
    assert federation.wait(60) == 0, federation.said()
    before = federation.rounds()
    assert 2 <= before < 40
    federation.start_server()
    federation.until(before + 2)
    assert len(list((federation.root / "runs").iterdir())) == 1
