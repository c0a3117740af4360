"""Kinds of adapters besides LoRA keep what every row promises, in whole runs on the embedded model.

Here a window of one client is "one at a time": this engine never trains two in one pass.
"""

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from fedloom import checkpoint, experiment
from fedloom.adapters import others_saved
from fedloom.adapters.config import virtual_tokens
from fedloom.algorithms.ditto import Ditto
from fedloom.assembly import Parts
from fedloom.config import Config, load
from fedloom.contracts import Client
from fedloom.errors import UserError
from fedloom.events import ClientTrained, Event
from fedloom.finish import Chat, export
from fedloom.models.load import NANO
from fedloom.sides import Leading

TINY = [
    "data.playground.rows=6", "data.playground.test_rows=1", "local.steps=2", "local.batch_size=4", "local.lr=0.01",
    "federation.rounds=3", "federation.cohort=2", "partition.clients=3", "evaluate.every=3", "evaluate.metrics=[loss]",
    "evaluate.forgetting=false", "model.dtype=float32", "model.device=cpu", "data.max_length=64",
]  # fmt: skip
KINDS = {
    "prefix": "{kind: prefix, tokens: 4}",
    "prefix-projection": "{kind: prefix, tokens: 4, projection: true, hidden: 8}",
    "prompt": "{kind: prompt, tokens: 4}",
    "prompt-text": "{kind: prompt, tokens: 6, start: text, text: 'Answer:'}",
    "p_tuning": "{kind: p_tuning, tokens: 4, hidden: 8}",
    "ia3": "{kind: ia3}",
    "vera": "{kind: vera, rank: 16, dropout: 0.1}",
    "dora": "{kind: dora, rank: 2, dropout: 0.1}",
}
ALGORITHMS = ("fedavg", "ditto")
ROWS = [(kind, algorithm) for kind in KINDS for algorithm in ALGORITHMS] + [("adalora", "local")]

WIRED = [
    *((kind, "fedavg") for kind in ("prefix", "prompt-text", "p_tuning", "ia3", "vera")),
    ("dora", "ditto"),
    ("adalora", "local"),
]
"""A second process takes seconds to start, so not every row has one."""


def config(folder: Path, row: tuple[str, str], *overrides: str) -> Config:
    kind, algorithm = row
    adapter = KINDS.get(kind, "{kind: adalora, rank: 4, target_rank: 2, steps: 6, warmup: 1, final: 1, dropout: 0.1}")
    chosen = "{name: local, keep_inner: true}" if algorithm == "local" else algorithm
    return load(
        "quickstart",
        [*TINY, f"adapter={adapter}", f"algorithm={chosen}", "aggregate.server_optimizer.momentum=0.5",
         f"run.folder={folder}", *overrides],
    )  # fmt: skip


def traces(folder: Path) -> dict[str, Any]:
    """All that must be the same: adapters, memories, states, tables but their times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(path)
        found[str(path.relative_to(folder))] = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    for name in ("metrics.csv", "clients.csv", "rounds.csv"):
        with (folder / name).open() as file:
            found[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The unbroken run of a row, made once."""
    made: dict[tuple[str, str], Path] = {}

    def run(row: tuple[str, str]) -> Path:
        if row not in made:
            made[row] = experiment.run(config(tmp_path_factory.mktemp("-".join(row)), row)).folder
        return made[row]

    return run


rows = pytest.mark.parametrize("row", ROWS, ids="-".join)


@rows
def test_together_is_one_at_a_time(whole, row, tmp_path):
    alone = experiment.run(config(tmp_path, row, "runtime.window=1"))
    assert traces(alone.folder) == traces(whole(row))


@pytest.mark.parametrize("row", WIRED, ids="-".join)
def test_memory_is_wire(whole, row, tmp_path):
    there = experiment.run(config(tmp_path, row, "runtime=loopback"))
    assert traces(there.folder) == traces(whole(row))


@rows
def test_killed_and_resumed_is_unbroken(whole, row, tmp_path):
    cfg = config(tmp_path, row, "checkpoint.every=1")
    child = os.fork()
    if child == 0:
        seen: list[Event] = []

        def sink(event: Event) -> None:
            seen.append(event)
            if sum(isinstance(one, ClientTrained) and one.round == 3 for one in seen) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        experiment.run(cfg, [sink])
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    experiment.resume(folder)
    assert traces(folder) == traces(whole(row))


@rows
def test_it_learns_and_says_which_engine_runs(whole, row):
    """Losses of training fall, or at least move; `auto` chose the plain loop and says why."""
    folder = whole(row)
    with (folder / "rounds.csv").open() as file:
        losses = [float(one["loss"]) for one in csv.DictReader(file)]
    assert len(set(losses)) == 3
    assert all(0 < loss < 50 for loss in losses)
    events = (folder / "events.jsonl").read_text()
    kind = row[0].split("-")[0]
    assert f"one client at a time, since adapters of kind {kind} are trained one client at a time" in events


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_gives_the_run_s_own_loss(whole, kind):
    folder = whole((kind, "fedavg"))
    base = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder / "adapters" / "final").eval()
    nll, count = 0.0, 0
    with torch.no_grad():
        for client in Parts(config(folder.parent, (kind, "fedavg"))).data.clients:
            losses = tiny.sft_losses(model, client.get("test"))
            nll, count = nll + float(losses.double().sum()), count + len(losses)
    with (folder / "metrics.csv").open() as file:
        said = [float(one["loss"]) for one in csv.DictReader(file)][-1]
    assert nll / count == pytest.approx(said, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_and_answers(whole, kind, tmp_path):
    folder = whole((kind, "fedavg"))
    export(folder, tmp_path / "out", merge=False)
    assert (tmp_path / "out" / "adapter_config.json").exists()
    assert isinstance(Chat(folder, max_new_tokens=4).reply([{"role": "user", "content": "reverse: abc"}]), str)
    if virtual_tokens(config(tmp_path, (kind, "fedavg")).adapter):
        with pytest.raises(UserError, match="there is nothing to merge"):
            export(folder, tmp_path / "merged", merge=True)
        return
    export(folder, tmp_path / "merged", merge=True)
    base = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(base, folder / "adapters" / "final").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 60, 200, 33, 9, 120, 77]])
    with torch.no_grad():
        assert (merged(input_ids=ids).logits - tuned(input_ids=ids).logits).abs().max() < 1e-4


def test_bytes_are_four_for_each_trained_number(whole):
    """Nothing frozen travels: neither VeRA's factors nor lengths of the base."""
    for kind in KINDS:
        parts = Parts(config(whole((kind, "fedavg")).parent, (kind, "fedavg")))
        with (whole((kind, "fedavg")) / "rounds.csv").open() as file:
            sent = [int(one["bytes_up"]) for one in csv.DictReader(file)]
        assert all(abs(one / 2 - 4 * parts.adapted.layout.size) < 1500 for one in sent), kind


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p_tuning"])
def test_virtual_tokens_take_positions(kind, tmp_path):
    with pytest.raises(UserError, match=r"data.max_length=\d+ and adapter.tokens=4 \(virtual tokens stand before"):
        Parts(config(tmp_path, (kind, "fedavg"), "data.max_length=2045"))
    assert Parts(config(tmp_path, (kind, "fedavg"), "data.max_length=2044"))


def test_a_page_of_one_s_own_gets_the_same_numbers(whole, tmp_path):
    """A client's start is the layout's, by name."""
    seen = list[int]()

    class Looking(Ditto):
        async def local(self, down: Any, client: Client) -> Any:
            seen.append(client.layout.size)
            return await super().local(down, client)

    parts = Parts(config(tmp_path, ("ia3", "ditto")))
    page = Looking(parts.algorithm.space, parts.algorithm.server, parts.algorithm.guard, lam=parts.algorithm.lam)
    experiment.run(config(tmp_path, ("ia3", "ditto")), algorithm=page)
    assert set(seen) == {parts.adapted.layout.size}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_the_base_has_the_same_start(kind, tmp_path):
    cfg = config(tmp_path, (kind, "fedavg"))
    server, here = Parts(cfg, side=Leading(["a", "b", "c"])), Parts(cfg)
    assert server.base.skeleton
    assert server.adapted.layout.fingerprint == here.adapted.layout.fingerprint
    assert torch.equal(server.adapted.start, here.adapted.start)


def test_what_a_server_wrote_without_the_base_is_completed_by_export(whole, tmp_path):
    """DoRA's lengths are differences there; the export on a machine with the base is the run's own adapter."""
    folder = Path(shutil.copytree(whole(("dora", "fedavg")), tmp_path / "run"))
    cfg = config(tmp_path, ("dora", "fedavg"))
    parts = Parts(cfg, side=Leading(["a", "b", "c"]))
    kind, server = type(parts.algorithm.init(parts.adapted.start)), parts.adapted
    state = checkpoint.load(checkpoint.found(folder / "checkpoints")[-1], kind).state
    shutil.rmtree(folder / "adapters" / "final")
    others_saved.save(server, parts.algorithm.model(state), server.layout, str(NANO), folder / "adapters" / "final")
    assert not (folder / "adapters" / "final" / "adapter_config.json").exists()
    export(folder, tmp_path / "out", merge=False)
    wanted = load_file(whole(("dora", "fedavg")) / "adapters" / "final" / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "ia3", "dora"])
def test_preferences_are_compared_with_the_base_itself(kind, tmp_path):
    """Where an adapter begins at the base, nothing is preferred yet: margins are 0 but for rounding."""
    small = [one for one in TINY if not one.startswith("evaluate.metrics")]
    cfg = load(
        "playground-dpo",
        [*small, f"adapter={KINDS[kind]}", "evaluate.metrics=[loss, margin]", "federation.rounds=1", "evaluate.every=1",
         f"run.folder={tmp_path}"],
    )  # fmt: skip
    folder = experiment.run(cfg).folder
    with (folder / "metrics.csv").open() as file:
        margins = [float(one["margin"]) for one in csv.DictReader(file)]
    assert (abs(margins[0]) < 1e-5) is (kind in ("ia3", "dora"))
    assert margins[0] != margins[-1]


@pytest.mark.parametrize("kind", ["prompt-text", "dora", "ia3"])
@pytest.mark.parametrize("algorithm", ["fedkseed", "fedmezo"])
def test_training_without_gradients(kind, algorithm, tmp_path):
    """Seeds and scalars lead to one place in a second process too."""
    how = (kind, algorithm)
    more = ["federation.rounds=2", "local.lr=0.001", "aggregate.server_optimizer.momentum=0", "local.schedule=constant"]
    here = experiment.run(config(tmp_path / "here", how, *more))
    there = experiment.run(config(tmp_path / "there", how, *more, "runtime.window=1"))
    assert traces(here.folder) == traces(there.folder)
    assert any("adapters" in name for name in traces(here.folder))
