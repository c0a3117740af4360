"""FedBiOT with real models: which numbers are whose, in every runtime and on both sides of a deployment."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

import test_experiment as runs
import test_plugging as offsite
import tiny
from fedloom import experiment
from fedloom.assembly import Parts
from fedloom.config import Config, dump
from fedloom.engine.distil import Tutoring
from fedloom.errors import UserError
from fedloom.events import ClientTrained, Event
from fedloom.likeness import report
from fedloom.metrics.likeness import AFTER, BOTH
from fedloom.models.config import ModelConfig
from fedloom.models.identity import kin
from fedloom.models.load import load_model
from fedloom.recorder import read_csv
from fedloom.runtime.store import InMemory, Store
from fedloom.sides import Leading, Taking

BIOT = "algorithm={name: fedbiot, prealign_steps: 2, align_steps: 2, batch_size: 4, lr: 0.01, lam: 0.001}"
STILL = "algorithm={name: fedbiot, prealign_steps: 0, align_steps: 0, lam: 0}"
ROWS = '{"instruction": "say", "output": "it"}\n' * 8


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tmp_path_factory.mktemp("owner"), "llama", num_hidden_layers=6)


@pytest.fixture(scope="module")
def folder(owner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact, as `fedloom emulator build` writes it."""
    return offsite.artefact(owner, tmp_path_factory.mktemp("artefact") / "emulator")


def config(tmp_path: Path, owner: Path, *more: str) -> Config:
    return offsite.config(tmp_path, owner, "data.public=0.2", BIOT, *more)


def vector(run: Path) -> torch.Tensor:
    """The last state's x."""
    found = load_file(sorted((run / "checkpoints").glob("round-*"))[-1] / "state.safetensors")
    return found[min(found, key=lambda name: (-found[name].numel(), name))]


def blocks(names: Sequence[str]) -> set[int]:
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


def test_the_owner_s_model_gets_the_clients_blocks_alone(owner: Path, tmp_path: Path) -> None:
    parts = Parts(config(tmp_path, owner))
    assert parts.plug is not None
    shared, own = parts.adapted.layout, parts.plug.whole.layout
    assert blocks(shared.names) == {0, 1, 2, 3}
    assert blocks(own.names) == {0, 3}  # by the emulator's names
    assert blocks([name for name, _ in parts.plug.whole.module.named_modules() if name.endswith("lora_A")]) == {0, 5}
    assert torch.equal(parts.plug.vector(parts.adapted.start), parts.plug.whole.start)
    x = torch.arange(float(shared.size))
    for name, tensor in own.views(parts.plug.vector(x)).items():
        assert torch.equal(tensor, shared.views(x)[name])


def test_before_tuning_the_owner_s_model_scores_as_it_is(owner: Path, tmp_path: Path) -> None:
    more = ["federation.rounds=1", "evaluate.metrics=[loss, exact_match]", "evaluate.max_new_tokens=4"]
    run = experiment.run(config(tmp_path / "a", owner, *more)).folder
    plain = offsite.config(tmp_path / "b", owner, "data.public=0.2", "offsite=null", *more)
    whole = experiment.run(plain).folder
    assert offsite.scores(run, "test")[0] == offsite.scores(whole, "test")[0]


def test_still_it_is_fedavg_to_the_bit(owner: Path, tmp_path: Path) -> None:
    """FedOT: no alignment and no penalty. (The gradient's norm is a sum in another order, so none is clipped.)"""
    more = ["data.public=0.2", "local.max_grad_norm=null", "adapter.dropout=0.1"]
    one = experiment.run(offsite.config(tmp_path / "one", owner, *more, STILL)).folder
    other = experiment.run(offsite.config(tmp_path / "other", owner, *more)).folder
    assert runs.weights(one) != runs.weights(other), "it has factors in more blocks"
    for part in ("adapters/final", "checkpoints/best"):
        mine, its = (load_file(run / part / "adapter_model.safetensors") for run in (one, other))
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in its)
    for split in ("test", "emulator"):
        assert offsite.scores(one, split) == offsite.scores(other, split)


def test_what_is_left_at_the_end(owner: Path, folder: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path, owner, f"offsite.emulator={folder}")
    run = experiment.run(cfg).folder
    files = {part: load_file(run / "adapters" / part / "adapter_model.safetensors") for part in ("final", "emulator")}
    assert blocks(list(files["final"])) == {0, 5}
    assert blocks(list(files["emulator"])) == {0, 1, 2, 3}
    assert all(tensor.any() for tensor in files["emulator"].values()), "both levels have moved"
    parts, x = Parts(cfg), vector(run)
    assert parts.plug is not None
    for adapted, at, base, part in (
        (parts.plug.whole, parts.plug.vector(x), owner, "final"), (parts.adapted, x, folder, "emulator"),
    ):  # fmt: skip
        loaded = peft.PeftModel.from_pretrained(tiny.plain(base), str(run / "adapters" / part))
        assert loaded.peft_config["default"].base_model_name_or_path == str(base)
        adapted.load(at)
        assert (offsite.logits(adapted.module) - offsite.logits(loaded)).abs().max() < 1e-5
    rows = [row for row in read_csv(run / "rounds.csv") if row.get("emulator_distance") is not None]
    assert len(rows) == 3
    assert all(row["emulator_divergence"] > 0 for row in rows)


def test_alignment_brings_the_emulator_nearer(owner: Path, tmp_path: Path) -> None:
    """More of it, lower figures; and the owner's weights stay what they are."""
    many = "algorithm={name: fedbiot, prealign_steps: 60, align_steps: 10, batch_size: 8, lr: 0.01}"
    run = experiment.run(config(tmp_path, owner, many)).folder
    few = experiment.run(config(tmp_path, owner)).folder
    last = [read_csv(one / "rounds.csv")[-1] for one in (run, few)]
    for key in ("emulator_distance", "emulator_divergence"):
        assert last[0][key] < 0.9 * last[1][key]
    before = kin(load_model(ModelConfig(name=str(owner), dtype="float32", device="cpu")).module)
    assert before == kin(tiny.plain(owner))


def test_the_report_counts_what_the_server_said(owner: Path, folder: Path, tmp_path: Path) -> None:
    """The tuned emulator is the one clients end with, its middle included."""
    cfg = config(tmp_path, owner, f"offsite.emulator={folder}", "offsite.align.batch_size=4")
    run = experiment.run(cfg).folder
    found = {(one.moment, one.model): one.metrics["loss"] for one in report(cfg, folder, run, attack_steps=2).scores}
    assert found[AFTER, "owner"] == pytest.approx(offsite.scores(run, "test")[-1]["loss"], rel=1e-4)
    assert found[AFTER, "emulator"] == pytest.approx(offsite.scores(run, "emulator")[-1]["loss"], rel=1e-4)
    assert (BOTH, "emulator") in found


# -- everywhere and however often


def test_memory_is_wire(owner: Path, folder: Path, tmp_path: Path) -> None:
    more = ["federation.rounds=2", f"offsite.emulator={folder}"]
    here = experiment.run(config(tmp_path / "here", owner, *more)).folder
    there = experiment.run(config(tmp_path / "there", owner, "runtime=loopback", *more)).folder
    runs.same(here, there)


def test_resumed_is_unbroken(owner: Path, tmp_path: Path) -> None:
    whole = experiment.run(config(tmp_path / "whole", owner, "checkpoint.every=2"))

    def in_round_three(events: Sequence[Event]) -> bool:
        return isinstance(events[-1], ClientTrained) and events[-1].round == 3

    killed = runs.killed_at(config(tmp_path / "killed", owner, "checkpoint.every=2"), in_round_three)
    again = experiment.resume(killed)
    assert again.metrics == whole.metrics
    runs.same(whole.folder, killed)


def test_several_processes_have_the_bits_of_one(owner: Path, tmp_path: Path) -> None:
    one = experiment.run(config(tmp_path / "one", owner, "federation.rounds=2")).folder
    recipe = tmp_path / "two.yaml"
    recipe.write_text(dump(config(tmp_path / "two", owner, "federation.rounds=2", "runtime.workers=2")))
    command = [sys.executable, "-m", "fedloom", "run", str(recipe), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    (two,) = (tmp_path / "two" / "runs").iterdir()
    runs.same(one, two)


def test_clients_side_by_side_train_the_same_to_rounding(owner: Path, tmp_path: Path) -> None:
    """Plain SGD: Adam would make whole steps of rounding."""
    sgd = ["local.optimizer.name=sgd", "local.lr=0.3", "federation.rounds=1"]
    one = experiment.run(config(tmp_path / "one", owner, *sgd)).folder
    many = experiment.run(config(tmp_path / "many", owner, *sgd, "engine.name=slots", "engine.slots=2")).folder
    mine, its = (load_file(run / "adapters" / "final" / "adapter_model.safetensors") for run in (one, many))
    assert all(torch.allclose(mine[name], its[name], atol=1e-5) for name in mine)


# -- sides of a deployment


def sides(owner: Path, folder: Path, tmp_path: Path) -> Config:
    rows = tmp_path / "public.jsonl"
    rows.write_text(ROWS)
    more = [BIOT, "data.source=x", "evaluate.every=0", f"data.public_source={rows}"]
    return offsite.sides(owner, folder, tmp_path, *more)


def test_the_server_has_model_and_rows_and_a_client_neither(owner: Path, folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "rows.jsonl"
    own.write_text(ROWS)
    server = Parts(sides(owner, folder, tmp_path), side=Leading(["a", "b"]))
    client = Parts(sides(Path("/nowhere/owner"), folder, tmp_path), side=Taking(2, {1: ("b", own)}))
    assert server.plug is not None and server.plug.engine is not None and not server.base.skeleton
    assert isinstance(server.site(Store(InMemory())).engine.engines[0], Tutoring)  # type: ignore[attr-defined]
    assert len(server.home.get("train")) == 8
    assert client.plug is None and client.tutor is None
    assert client.home.train is None
    assert server.adapted.layout == client.adapted.layout
    assert vars(server.algorithm) == vars(client.algorithm)
    still = offsite.sides(owner, folder, tmp_path, STILL, "data.source=x")
    assert Parts(still, side=Leading(["a", "b"])).base.skeleton, "nothing is computed there"


def test_an_adapter_that_leaves_the_middle_out_is_refused(owner: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"let adapter.targets name layers of all blocks"):
        Parts(config(tmp_path, owner, "adapter.targets=[model.layers.0.mlp.up_proj]"))
