"""Tuning with an emulator: what is trained goes back into the owner's model, number by number, in every runtime."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import test_experiment as runs
import tiny
from fedloom import experiment
from fedloom.assembly import Parts
from fedloom.config import Config, parse
from fedloom.contracts import Model
from fedloom.errors import ConfigError, UserError
from fedloom.events import BestModel, ClientTrained, EarlyStopped, Event
from fedloom.finish import Chat, export
from fedloom.models import emulator
from fedloom.models.config import ModelConfig
from fedloom.models.emulator import Facts
from fedloom.models.identity import kin
from fedloom.models.load import load_model, load_tokenizer
from fedloom.models.offsite import Plan
from fedloom.params import Layout
from fedloom.plugging import check_fit, renamed
from fedloom.sides import Leading, Taking

PLAN = Plan(6, 1, 1, (1, 4))
IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
FULL = ("adapter.kind=full", "local.lr=0.003")
SGD = ("local.optimizer.name=sgd", "local.lr=0.5")
METHODS: dict[str, Sequence[str]] = {
    "fedavg": ("algorithm=fedavg",),
    "scaffold": ("algorithm=scaffold", *SGD),
    "ditto": ("algorithm=ditto",),
}
LORA_ALONE: dict[str, Sequence[str]] = {
    "flexlora": ("algorithm=flexlora", "clients.0.rank=2", "clients.1.rank=3"),
    "ffa": ("adapter.freeze=A",),
    "flora": ("aggregate.space=stacked",),
    "fedkseed": ("algorithm=fedkseed",),
}


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tmp_path_factory.mktemp("owner"), "llama", num_hidden_layers=6)


@pytest.fixture(scope="module")
def folder(owner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact, as `fedloom emulator build` writes it."""
    return artefact(owner, tmp_path_factory.mktemp("artefact") / "emulator")


def artefact(owner: Path, out: Path, plan: Plan = PLAN, method: str = "drop") -> Path:
    base = load_model(ModelConfig(name=str(owner), dtype="float32", device="cpu"))
    known = kin(base.module), base.parameters
    emulator.cut_out(base.module, plan)
    count = sum(p.numel() for p in base.module.parameters())
    facts = Facts(str(owner), known[0], plan, method, kin(base.module), count, known[1])
    emulator.write(base.module, load_tokenizer(ModelConfig(name=str(owner))), facts, out)
    return out


def config(tmp_path: Path, owner: Path, *overrides: str) -> Config:
    recipe = f"""
run: {{name: offsite, folder: {tmp_path / "runs"}}}
seed: 5
model: {{name: "{owner}", dtype: float32}}
offsite: {{head_layers: 1, tail_layers: 1, drop_ratio: 0.5}}
adapter: {{rank: 3, targets: all-linear}}
data: {{max_length: 96, playground: {{rows: 12, test_rows: 4}}}}
partition: {{method: iid, clients: 3}}
local: {{steps: 2, batch_size: 4, lr: 0.02}}
federation: {{rounds: 3}}
evaluate: {{metrics: [loss], every: 1}}
engine: {{name: reference, threads: 1}}
"""
    return parse(recipe, overrides)


def adapters_of(kind: str) -> Sequence[str]:
    return FULL if kind == "full" else ()


def scores(run: Path, split: str) -> list[dict[str, Any]]:
    return [row for row in runs.table(run, "metrics.csv") if row["split"] == split]


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


# -- the name map


def test_names_go_to_the_emulator_s_places() -> None:
    called = renamed(PLAN, "model.layers")
    assert called("model.layers.0.self_attn.q_proj") == "model.layers.0.self_attn.q_proj"
    assert called("model.layers.5.mlp.up_proj.weight") == "model.layers.3.mlp.up_proj.weight"
    assert called("model.embed_tokens.weight") == "model.embed_tokens.weight"
    assert called("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_every_leaf_has_its_place_in_both(owner: Path, tmp_path: Path, kind: str) -> None:
    parts = Parts(config(tmp_path, owner, *adapters_of(kind)))
    assert parts.plug is not None
    assert parts.plug.whole.layout == parts.adapted.layout
    assert torch.equal(parts.plug.whole.start, parts.adapted.start)
    blocks = {int(name.split(".")[2]) for name in parts.adapted.layout.names}
    assert blocks == {0, 3}
    x = parts.adapted.start + 0.05 * torch.randn(parts.adapted.layout.size, generator=torch.Generator().manual_seed(1))
    parts.adapted.load(x)
    parts.plug.whole.load(x)
    mine: Any = dict(parts.adapted.module.named_parameters())
    its: Any = dict(parts.plug.whole.module.named_parameters())
    compared = 0
    for name, tensor in mine.items():
        for block, home in ((0, 0), (3, 5)):
            if f".layers.{block}." in name:
                assert torch.equal(tensor, its[name.replace(f".layers.{block}.", f".layers.{home}.")])
                compared += 1
    assert compared > 10


def test_the_first_leaf_that_does_not_fit_is_named(owner: Path, tmp_path: Path) -> None:
    layout = Parts(config(tmp_path, owner)).adapted.layout
    check_fit(layout, layout)
    leaves = list(layout.leaves)
    for change in ({"shape": (7, 7)}, {"scale": 9.0}, {"factor": "plain"}, {"name": "elsewhere"}):
        wrong = Layout.of([*leaves[:2], replace(leaves[2], **change), *leaves[3:]])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=leaves[2].name.replace(".", r"\.")):
            check_fit(layout, wrong)
    with pytest.raises(ValueError, match="in the owner's model"):
        check_fit(layout, Layout.of(leaves[:-1]))
    with pytest.raises(ValueError, match="in the emulator"):
        check_fit(Layout.of(leaves[:-1]), layout)


# -- scores


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("made", ["in memory", "as a folder"])
def test_before_tuning_both_score_as_they_are(owner: Path, folder: Path, tmp_path: Path, kind: str, made: str) -> None:
    given = [f"offsite.emulator={folder}"] if made == "as a folder" else []
    more = [*adapters_of(kind), "evaluate.metrics=[loss, exact_match]", "evaluate.max_new_tokens=4"]
    run = experiment.run(config(tmp_path / "a", owner, "federation.rounds=1", *more, *given)).folder
    whole = experiment.run(config(tmp_path / "b", owner, "federation.rounds=1", "offsite=null", *more)).folder
    cut = experiment.run(
        config(tmp_path / "c", owner, "federation.rounds=1", "offsite=null", "model.layers=[0, 1, 4, 5]", *more)
    ).folder
    assert scores(run, "test")[0] == scores(whole, "test")[0]
    assert scores(run, "emulator")[0] | {"split": "test"} == scores(cut, "test")[0]
    assert scores(run, "test")[0]["loss"] != scores(run, "emulator")[0]["loss"]


def test_what_is_scored_is_chosen_and_the_owner_s_model_decides(owner: Path, tmp_path: Path) -> None:
    seen = dict[str, list[Event]]()
    found = {}
    for one in ("both", "full", "emulator"):
        seen[one] = []
        found[one] = experiment.run(config(tmp_path / one, owner, f"offsite.evaluate={one}"), [seen[one].append])
    splits = {one: {row["split"] for row in runs.table(run.folder, "metrics.csv")} for one, run in found.items()}
    assert splits == {"both": {"test", "emulator"}, "full": {"test"}, "emulator": {"test"}}
    assert scores(found["both"].folder, "test") == scores(found["full"].folder, "test")
    both = [row | {"split": "test"} for row in scores(found["both"].folder, "emulator")]
    assert both == scores(found["emulator"].folder, "test")
    assert runs.weights(found["both"].folder) == runs.weights(found["emulator"].folder)
    for one, run in found.items():
        best = min(row["loss"] for row in scores(run.folder, "test"))
        values = [event.value for event in seen[one] if isinstance(event, BestModel)]
        assert values[-1] == best
        assert run.metrics["loss"] == scores(run.folder, "test")[-1]["loss"]


def test_early_stopping_looks_at_the_owner_s_model(owner: Path, tmp_path: Path) -> None:
    seen = list[Event]()
    stop = ["evaluate.early_stop={metric: loss, patience: 1, min_delta: 100}"]
    run = experiment.run(config(tmp_path, owner, *stop), [seen.append])
    assert run.status == "early_stopped"
    assert any(isinstance(event, EarlyStopped) for event in seen)


def test_rows_of_the_server_are_scored_by_the_owner_s_model(owner: Path, tmp_path: Path) -> None:
    run = experiment.run(config(tmp_path, owner, "federation.rounds=1", "evaluate.forgetting=true")).folder
    whole = config(tmp_path / "w", owner, "federation.rounds=1", "evaluate.forgetting=true", "offsite=null")
    assert scores(run, "global")[0] == scores(experiment.run(whole).folder, "global")[0]


# -- what is left at the end


@pytest.mark.parametrize("method", [*METHODS, *LORA_ALONE])
def test_the_final_adapter_is_for_the_owner_s_model(owner: Path, folder: Path, tmp_path: Path, method: str) -> None:
    more = {**METHODS, **LORA_ALONE}[method]
    cfg = config(tmp_path, owner, "federation.rounds=2", f"offsite.emulator={folder}", *more)
    run = experiment.run(cfg).folder
    final = peft.PeftModel.from_pretrained(tiny.plain(owner), str(run / "adapters" / "final"))
    own = peft.PeftModel.from_pretrained(tiny.plain(folder), str(run / "adapters" / "emulator"))
    assert final.peft_config["default"].base_model_name_or_path == str(owner)
    assert own.peft_config["default"].base_model_name_or_path == str(folder)
    parts = Parts(cfg)
    model = last_model(run, parts)
    assert parts.plug is not None
    for adapted, loaded in ((parts.plug.whole, final), (parts.adapted, own)):
        if model.drift is not None:
            adapted.stand(model.drift, adapted.layout)
        else:
            adapted.load(model.x, adapted.layout, model.carry)
        assert (logits(adapted.module) - logits(loaded)).abs().max() < 1e-5
    assert (logits(final) - logits(tiny.plain(owner))).abs().max() > 1e-4
    best = peft.PeftModel.from_pretrained(tiny.plain(owner), str(run / "checkpoints" / "best"))
    assert best.peft_config["default"].base_model_name_or_path == str(owner)


def last_model(run: Path, parts: Parts) -> Model:
    from fedloom import checkpoint

    kind = type(parts.algorithm.init(parts.adapted.start))
    return parts.algorithm.model(checkpoint.load(checkpoint.found(run / "checkpoints")[-1], kind).state)


@pytest.mark.parametrize(
    "more", [(), ("offsite.embeddings=true",), ("algorithm=fedkseed",)], ids=["blocks", "embeddings", "by seeds"]
)
def test_the_final_model_is_the_owner_s_with_its_ends_tuned(owner: Path, tmp_path: Path, more: Sequence[str]) -> None:
    run = experiment.run(config(tmp_path, owner, *FULL, *more)).folder
    final, base = (dict(tiny.plain(one).named_parameters()) for one in (run / "adapters" / "final", owner))
    moved = {name for name, tensor in final.items() if not torch.equal(tensor, base[name])}
    ends = {name for name in base if name.startswith(("model.layers.0.", "model.layers.5."))}
    outside = {name for name in base if not name.startswith("model.layers.")}
    assert moved == (ends | outside if "offsite.embeddings=true" in more else ends)
    small = dict(tiny.plain(run / "adapters" / "emulator").named_parameters())
    for name, tensor in small.items():
        home = {0: 0, 1: 1, 2: 4, 3: 5}
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(home[int(parts[2])])
        assert torch.equal(tensor, final[".".join(parts)]), name


def test_the_tuned_model_is_talked_to_and_exported_as_the_owner_s(owner: Path, tmp_path: Path) -> None:
    run = experiment.run(config(tmp_path, owner, "federation.rounds=1")).folder
    assert isinstance(Chat(run, max_new_tokens=3).reply([{"role": "user", "content": "hello"}]), str)
    merged = export(run, tmp_path / "merged", merge=True)
    tuned = peft.PeftModel.from_pretrained(tiny.plain(owner), str(run / "adapters" / "final"))
    assert (logits(tiny.plain(merged)) - logits(tuned)).abs().max() < 1e-4


# -- everywhere and however often


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_memory_is_wire(owner: Path, folder: Path, tmp_path: Path, method: str, kind: str) -> None:
    more = [*METHODS[method], "federation.rounds=2", *([FULL[0]] if kind == "full" else [])]
    more += [f"offsite.emulator={folder}"]
    here = experiment.run(config(tmp_path / "here", owner, *more)).folder
    there = experiment.run(config(tmp_path / "there", owner, "runtime=loopback", *more)).folder
    runs.same(here, there)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_is_unbroken(owner: Path, tmp_path: Path, method: str, kind: str) -> None:
    """Killed in the last round, after the first reply."""
    more = [*METHODS[method], *([FULL[0]] if kind == "full" else []), "checkpoint.every=2"]
    whole = experiment.run(config(tmp_path / "whole", owner, *more))

    def in_round_three(events: Sequence[Event]) -> bool:
        return isinstance(events[-1], ClientTrained) and events[-1].round == 3

    killed = runs.killed_at(config(tmp_path / "killed", owner, *more), in_round_three)
    again = experiment.resume(killed)
    assert again.metrics == whole.metrics
    runs.same(whole.folder, killed)


def test_with_clients_side_by_side_the_scores_are_the_same_to_rounding(owner: Path, tmp_path: Path) -> None:
    one = experiment.run(config(tmp_path / "one", owner)).folder
    many = experiment.run(config(tmp_path / "many", owner, "engine.name=slots", "engine.slots=2")).folder
    for split in ("test", "emulator"):
        for mine, its in zip(scores(one, split), scores(many, split), strict=True):
            assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)


def test_several_processes_have_the_bits_of_one(owner: Path, tmp_path: Path) -> None:
    one = experiment.run(config(tmp_path / "one", owner)).folder
    two = experiment.run(config(tmp_path / "two", owner, "runtime.workers=2")).folder
    runs.same(one, two)


def test_a_changed_owner_s_model_is_not_resumed(owner: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(owner, tmp_path / "copy")
    killed = runs.killed_at(
        config(tmp_path, copy), lambda events: isinstance(events[-1], ClientTrained) and events[-1].round == 2
    )
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] += 1  # in no block that the emulator has
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="base model"):
        experiment.resume(killed)


# -- sides of a deployment


def sides(owner: Path, folder: Path, tmp_path: Path, *more: str) -> Config:
    return config(tmp_path, owner, f"offsite.emulator={folder}", "partition={method: natural}", *more)


def test_a_client_opens_the_emulator_alone(owner: Path, folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "say", "output": "it"}\n' * 8)
    there = sides(Path("/nowhere/owner"), folder, tmp_path, "data.source=x")
    client = Parts(there, side=Taking(2, {1: ("b", rows)}))
    assert client.plug is None
    assert client.base_name == str(folder)
    with pytest.raises(ValueError, match="score_plugged"):
        client.tasks.get("score_plugged")
    server = Parts(sides(owner, folder, tmp_path, "data.source=x"), side=Leading(["a", "b"]))
    assert server.base.skeleton
    assert server.adapted.layout == client.adapted.layout
    assert server.base_kin == client.base_kin
    assert server.plug is not None and server.plug.engine is None
    assert {look.split for look in server.looks(True)} == {"test"}
    assert "the emulator alone is scored" in server.notes[0]


def test_a_server_with_rows_scores_its_own_model_there(owner: Path, folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "say", "output": "it"}\n' * 8)
    more = ["data.source=x", f"evaluate.global_source={rows}"]
    server = Parts(sides(owner, folder, tmp_path, *more), side=Leading(["a", "b"]))
    assert [(look.split, look.home, look.decides) for look in server.looks(True)] == [
        ("global", True, True),
        ("emulator", False, True),
    ]
    only = Parts(sides(owner, folder, tmp_path, *more, "offsite.evaluate=full"), side=Leading(["a", "b"]))
    assert [look.split for look in only.looks(True)] == ["global"]


def test_a_server_whose_clients_train_whole_parameters_holds_what_it_writes(
    owner: Path, folder: Path, tmp_path: Path
) -> None:
    server = Parts(sides(owner, folder, tmp_path, "data.source=x", *FULL), side=Leading(["a"]))
    assert server.plug is not None and not server.base.skeleton
    assert [look.split for look in server.looks(True)] == ["test"]
    assert "the emulator alone is scored" in server.notes[0]


# -- words


def test_an_emulator_of_another_model_is_refused(owner: Path, folder: Path, tmp_path: Path) -> None:
    other = tiny.saved(tmp_path / "other", "llama", num_hidden_layers=6, intermediate_size=40)
    with pytest.raises(UserError, match="is another model"):
        Parts(config(tmp_path, other, f"offsite.emulator={folder}"))


@pytest.mark.parametrize(
    "setting, words",
    [
        ("offsite.drop_ratio=0.25", "blocks 1, 4 of 6 between.*blocks 1, 3, 4 of 6 between"),
        ("offsite.head_layers=2", "built for .*head_layers=1.* means .*head_layers=2"),
        ("offsite.method=distill", "method=drop, and this recipe says distill"),
    ],
)
def test_an_emulator_of_another_plan_is_refused_with_both(
    owner: Path, folder: Path, tmp_path: Path, setting: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Parts(config(tmp_path, owner, f"offsite.emulator={folder}", setting))


@pytest.mark.parametrize(
    "setting, words",
    [
        ("adapter.layers=[0]", "adapter.layers"),
        ("offsite.embeddings=true", "no factors for embeddings"),
    ],
)
def test_what_contradicts_is_said_before_anything_loads(owner: Path, tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, Path("/nowhere"), setting)
