"""Whole runs on the embedded model: the files they leave, and that breaking them changes nothing."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from fedloom import experiment
from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms.fedavg import FedAvg
from fedloom.assembly import Parts
from fedloom.config import Config, load
from fedloom.contracts import Needs
from fedloom.engine import choice
from fedloom.engine.slots import Slots
from fedloom.errors import RunStopped, UserError
from fedloom.events import ClientTrained, EarlyStopped, Evaluated, Event, ReplyMissing, RoundFinished
from fedloom.folder import RunFolder
from fedloom.spaces.factors import Factors

TINY = [
    "data.playground.rows=8", "data.playground.test_rows=2", "local.steps=2", "local.batch_size=4", "adapter.rank=2",
    "adapter.dropout=0.1", "adapter.targets=auto", "federation.rounds=3", "federation.cohort=3", "evaluate.every=1",
    "evaluate.forgetting=false", "evaluate.metrics=[loss, exact_match]", "evaluate.max_new_tokens=4", "local.lr=0.01",
    "model.dtype=float32",
]  # fmt: skip


def config(tmp_path: Path, *overrides: str) -> Config:
    return load("quickstart", [*TINY, f"run.folder={tmp_path / 'runs'}", *overrides])


def weights(folder: Path) -> dict[str, bytes]:
    """Every adapter file of a run, tensor by tensor."""
    found = {}
    for file in sorted((folder / "adapters").rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[f"{file.relative_to(folder)}:{name}"] = tensor.numpy().tobytes()
    return found


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    """A CSV of the run without its times."""
    from fedloom.recorder import read_csv

    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_csv(folder / name)]


def same(one: Path, other: Path) -> None:
    assert weights(one) == weights(other)
    assert weights(one)
    for name in ("metrics.csv", "clients.csv", "rounds.csv"):
        assert table(one, name) == table(other, name)


def forked(work: Callable[[], Any]) -> int:
    """Do the work in a child process; its exit code (negative: the signal that ended it)."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


FINAL = "adapters/final/adapter_model.safetensors"


def killed_at(cfg: Config, when: Callable[[Sequence[Event]], bool]) -> Path:
    """Run until the events so far satisfy `when`, then kill -9; the run folder."""
    seen: list[Event] = []

    def sink(event: Event) -> None:
        seen.append(event)
        if when(seen):
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(lambda: experiment.run(cfg, [sink])) == -signal.SIGKILL
    (folder,) = Path(cfg.run.folder).iterdir()
    return folder


@pytest.mark.parametrize("algorithm", ["fedavg", "local", "centralized"])
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, algorithm: str) -> None:
    """kill -9 in round 3 after a client's reply counted; checkpoints every second round."""
    choice = [f"algorithm={algorithm}", "checkpoint.every=2"]
    whole = experiment.run(config(tmp_path / "whole", *choice))

    def in_round_three(events: Sequence[Event]) -> bool:
        return sum(isinstance(e, ClientTrained) and e.round == 3 for e in events) == 1

    folder = killed_at(config(tmp_path / "killed", *choice), in_round_three)
    assert RunFolder(folder).status == "unfinished"
    again = experiment.resume(folder)
    assert again.status == "finished"
    assert again.metrics == whole.metrics
    same(whole.folder, folder)


def test_killed_between_last_checkpoint_and_export_still_ends_well(tmp_path: Path) -> None:
    folder = killed_at(
        config(tmp_path), lambda seen: type(seen[-1]).__name__ == "CheckpointSaved" and seen[-1].round == 3
    )  # type: ignore[union-attr]
    whole = experiment.run(config(tmp_path / "whole"))
    same(experiment.resume(folder).folder, whole.folder)


def test_resume_from_an_older_checkpoint_finds_the_clients_memories_of_that_time(tmp_path: Path) -> None:
    """The newest checkpoint is damaged; the one before it still leads to the same bits."""
    whole = experiment.run(config(tmp_path / "whole", "algorithm=local", "federation.rounds=4"))
    cfg = config(tmp_path / "killed", "algorithm=local", "federation.rounds=4")
    folder = killed_at(cfg, lambda seen: isinstance(seen[-1], ClientTrained) and seen[-1].round == 4)
    newest = folder / "checkpoints" / "round-0003"
    (newest / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="remove that folder"):
        experiment.resume(folder)
    shutil.rmtree(newest)
    same(experiment.resume(folder).folder, whole.folder)


def test_evaluating_changes_nothing(tmp_path: Path) -> None:
    often = experiment.run(config(tmp_path / "often", "evaluate.every=1"))
    never = experiment.run(config(tmp_path / "never", "evaluate.every=0"))
    assert weights(often.folder) == weights(never.folder)


class SgdOnly(FedAvg):
    needs = Needs(sgd_only=True)


def factors(tmp_path: Path) -> Factors:
    """The plain space of the tiny run's adapter."""
    return Factors(Parts(config(tmp_path)).adapted.layout)


def test_an_algorithm_of_ones_own_is_run_and_asked_for_again(tmp_path: Path) -> None:
    page = FedAvg(factors(tmp_path), ServerSgd(1.0, 0.9))
    whole = experiment.run(config(tmp_path / "whole"), algorithm=page)

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(config(tmp_path / "cut"), [stop], algorithm=page)
    (folder,) = (tmp_path / "cut" / "runs").iterdir()
    with pytest.raises(UserError, match=r"momentum=0\.9"):
        experiment.resume(folder)
    same(experiment.resume(folder, algorithm=page).folder, whole.folder)


def test_an_algorithm_that_is_right_for_sgd_only_is_refused_under_adamw(tmp_path: Path) -> None:
    page = SgdOnly(factors(tmp_path))
    with pytest.raises(UserError, match="plain SGD"):
        experiment.run(config(tmp_path), algorithm=page)
    experiment.run(config(tmp_path, "local.optimizer=sgd", "federation.rounds=1"), algorithm=page)


def test_a_run_is_not_resumed_on_other_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = [f"data.source={tmp_path / 'mine.jsonl'}", "partition={method: iid, clients: 4}"]
    folder = killed_at(config(tmp_path, *own), lambda seen: isinstance(seen[-1], RoundFinished))
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows[::-1])))
    with pytest.raises(UserError, match="not those"):
        experiment.resume(folder)


def test_second_process_gives_the_same_bits(tmp_path: Path) -> None:
    here = experiment.run(config(tmp_path / "here"))
    there = experiment.run(config(tmp_path / "there", "runtime=loopback"))
    same(here.folder, there.folder)


def test_a_resumed_run_keeps_the_engine_s_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run's beginning, whatever a later version or another machine would choose."""
    monkeypatch.setattr(choice, "SLOTS", 3)
    monkeypatch.setitem(choice.TOKENS, "cpu", 200)
    folder = experiment.run(config(tmp_path)).folder
    monkeypatch.undo()
    written = load(folder / "config.yaml")
    engine = Parts(written).chosen.engine
    assert isinstance(engine, Slots)
    assert (engine.room(), engine.budget) == (6, 200)


def test_engines_and_their_numbers_change_a_run_by_rounding_only(tmp_path: Path) -> None:
    exact = ["model.dtype=float32", "local.optimizer=sgd", "local.lr=0.05"]
    wide = experiment.run(config(tmp_path / "wide", *exact))
    narrow = experiment.run(config(tmp_path / "narrow", *exact, "engine.slots=2", "engine.tokens_per_step=50"))
    plain = experiment.run(config(tmp_path / "plain", *exact, "engine.name=reference"))
    ours, same_bits, theirs = (load_file(run.folder / FINAL) for run in (wide, narrow, plain))
    for name, value in ours.items():
        assert torch.equal(value, same_bits[name]), name
        assert torch.allclose(value, theirs[name], atol=1e-5), name
    assert json.loads((plain.folder / "env.json").read_text())["engine"].startswith("reference")


def test_the_folder_holds_what_it_promises(tmp_path: Path) -> None:
    seen: list[Event] = []
    run = experiment.run(config(tmp_path), [seen.append])
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "env.json", "events.jsonl", "metrics.csv", "rounds.csv", "clients.csv", "partition.json",
            "checkpoints", "adapters"} <= names  # fmt: skip
    written = load(run.folder / "config.yaml")  # with the engine as it was chosen
    assert written.model_copy(update={"engine": config(tmp_path).engine}) == config(tmp_path)
    assert (written.engine.name, written.engine.slots, written.engine.tokens_per_step) == ("slots", 8, 1024)
    assert [row["round"] for row in table(run.folder, "metrics.csv")] == [0, 1, 2, 3]
    assert run.metrics["exact_match"] <= 1
    assert len(list((run.folder / "checkpoints").glob("round-*"))) == 2
    kinds = [json.loads(line)["event"] for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunFinished"
    rounds = [e for e in seen if isinstance(e, RoundFinished)]
    assert all(e.bytes_down > 0 and e.bytes_up > 0 and e.clients == 3 and e.steps == 6 for e in rounds)


def test_bytes_are_those_of_the_wire(tmp_path: Path) -> None:
    """Three clients, one float32 adapter each way, and a header."""
    seen: list[Event] = []
    run = experiment.run(config(tmp_path, "federation.rounds=1"), [seen.append])
    (file,) = (run.folder / "adapters" / "final").glob("*.safetensors")
    numbers = sum(tensor.numel() for tensor in load_file(file).values())
    (event,) = [e for e in seen if isinstance(e, RoundFinished)]
    for measured in (event.bytes_down, event.bytes_up):
        assert 3 * 4 * numbers < measured < 3 * (4 * numbers + 400)


def test_final_adapter_loads_in_plain_peft_with_the_same_loss(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedloom.models.load import NANO

    run = experiment.run(config(tmp_path, "adapter.dropout=0"))
    parts = Parts(config(tmp_path, "adapter.dropout=0"))
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32), run.folder / "adapters" / "final"
    ).eval()
    nll, count = 0.0, 0
    with torch.no_grad():
        for client in parts.data.clients:
            losses = tiny.sft_losses(model, client.get("test"))
            nll, count = nll + float(losses.double().sum()), count + len(losses)
    assert nll / count == pytest.approx(run.metrics["loss"], abs=1e-6)


def test_local_baseline_writes_every_clients_own_adapter(tmp_path: Path) -> None:
    run = experiment.run(config(tmp_path, "algorithm=local"))
    assert len(list((run.folder / "adapters" / "clients").iterdir())) == 10
    assert not (run.folder / "adapters" / "final").exists()


def factor(folder: Path, letter: str) -> torch.Tensor:
    """One of the factors of the final adapter, all modules in one vector."""
    (file,) = (folder / "adapters" / "final").glob("*.safetensors")
    tensors = sorted((name, t) for name, t in load_file(file).items() if f"lora_{letter}" in name)
    return torch.cat([t.reshape(-1) for _, t in tensors])


def test_a_recipe_s_attackers_turn_their_updates_round(tmp_path: Path) -> None:
    """All of them: after one round B, which starts at zero, is the honest one's opposite."""
    one = ["federation.rounds=1", "local.optimizer=sgd", "aggregate.server_optimizer.momentum=0"]
    honest = experiment.run(config(tmp_path / "honest", *one)).folder
    turned = experiment.run(
        config(tmp_path / "turned", *one, "attack={name: sign_flip, clients: 100%, scale: 2.0}")
    ).folder
    b = factor(honest, "B")
    assert b.abs().max() > 1e-5
    assert torch.allclose(factor(turned, "B"), -2 * b, rtol=1e-4, atol=1e-8)


def test_held_out_clients_are_evaluated_and_never_train(tmp_path: Path) -> None:
    seen: list[Event] = []
    held = ["federation.holdout=[2, 7]", "federation.cohort=100%", "federation.rounds=2"]
    experiment.run(config(tmp_path, *held), [seen.append])
    assert {e.client for e in seen if isinstance(e, ClientTrained)} == {0, 1, 3, 4, 5, 6, 8, 9}
    assert all(len(e.clients) == 10 for e in seen if isinstance(e, Evaluated))
    assert [e.clients for e in seen if isinstance(e, RoundFinished)] == [8, 8]


def test_what_a_client_carries_and_its_rank_survive_a_kill(tmp_path: Path) -> None:
    """FLoRA with two sizes of clients: memories, carry and checkpoint, to the same bits; the export loads in peft."""
    choice = [
        "algorithm=flora",
        "clients={'0-4': {rank: 1}}",
        "adapter.rank=2",
        "aggregate.server_optimizer.momentum=0",
    ]
    whole = experiment.run(config(tmp_path / "whole", *choice))

    def in_round_three(events: Sequence[Event]) -> bool:
        return sum(isinstance(e, ClientTrained) and e.round == 3 for e in events) == 1

    folder = killed_at(config(tmp_path / "killed", *choice), in_round_three)
    again = experiment.resume(folder)
    assert again.metrics == whole.metrics
    same(whole.folder, folder)


@pytest.mark.parametrize(
    "choice",
    [
        ["clients={'0-9': {lr: 0.02}, '4': {steps: 3}}"],  # client 4 has both
        ["algorithm=flora", "aggregate.server_optimizer.momentum=0", "clients={'0-4': {rank: 1}}"],
        ["algorithm=slora", "aggregate.server_optimizer.momentum=0", "aggregate.space.rounds=1"],
        ["attack=gaussian", "federation.holdout=2"],
    ],
    ids=lambda choice: choice[0],
)
def test_a_second_process_builds_the_same_from_the_recipe(tmp_path: Path, choice: list[str]) -> None:
    """Overrides of single clients, ranks, carries, masks, attackers and held-out clients."""
    more = ["federation.rounds=2", "federation.cohort=100%", *choice]
    here = experiment.run(config(tmp_path / "here", *more))
    there = experiment.run(config(tmp_path / "there", *more, "runtime=loopback"))
    same(here.folder, there.folder)


@pytest.mark.parametrize(
    "choice",
    [
        ["algorithm=flora"],
        ["algorithm=flora", "clients={'0-4': {rank: 1}}"],
        ["algorithm=flexlora", "clients={'0-4': {rank: 1}}", "adapter.rslora=true"],
        ["algorithm=ffa"],
        ["algorithm=fedex"],
        ["algorithm=slora", "adapter.sparse=0.02", "aggregate.space.rounds=1", "aggregate.space.residual=carry"],
    ],
    ids=" ".join,
)
def test_what_is_exported_is_what_was_evaluated(tmp_path: Path, choice: list[str]) -> None:
    """Plain peft over the plain base gives the run's own loss."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedloom.models.load import NANO

    more = ["adapter.dropout=0", "aggregate.server_optimizer.momentum=0", "federation.rounds=2", *choice]
    run = experiment.run(config(tmp_path, *more))
    parts = Parts(config(tmp_path, *more))
    base = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run.folder / "adapters" / "final").eval()
    nll, count = 0.0, 0
    with torch.no_grad():
        for client in parts.data.clients:
            losses = tiny.sft_losses(model, client.get("test"))
            nll, count = nll + float(losses.double().sum()), count + len(losses)
    if any("rank: 1" in words for words in choice) and "flora" not in choice[0]:
        assert 0 < nll / count < 20  # clients of smaller ranks were scored with their own, truncated model
    else:
        assert nll / count == pytest.approx(run.metrics["loss"], abs=1e-5)


def test_a_refusal_to_resume_stays_readable(tmp_path: Path) -> None:
    """The page's settings tell it apart; every tensor of the model does not belong in a message."""

    def stop(event: Event) -> None:
        if isinstance(event, RoundFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(config(tmp_path), [stop], algorithm=FedAvg(factors(tmp_path), ServerSgd(1.0, 0.9)))
    (folder,) = (tmp_path / "runs").iterdir()
    with pytest.raises(UserError) as caught:
        experiment.resume(folder, algorithm=FedAvg(factors(tmp_path), ServerSgd(1.0, 0.5)))
    assert "momentum=0.9" in str(caught.value)
    assert "momentum=0.5" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_early_stop_counts_evaluations_without_improvement(tmp_path: Path) -> None:
    """With a step of almost nothing the loss never improves by a whole nat."""
    seen: list[Event] = []
    stop = "evaluate.early_stop={metric: loss, patience: 2, min_delta: 1.0}"
    run = experiment.run(config(tmp_path, "local.lr=1e-9", "federation.rounds=9", stop), [seen.append])
    assert run.status == "early_stopped"
    assert [e.round for e in seen if isinstance(e, EarlyStopped)] == [2]
    assert max(e.round for e in seen if isinstance(e, RoundFinished)) == 2
    with pytest.raises(UserError, match="nothing to resume"):
        experiment.resume(run.folder)


def test_best_checkpoint_is_an_adapter_folder(tmp_path: Path) -> None:
    run = experiment.run(config(tmp_path))
    assert (run.folder / "checkpoints" / "best" / "adapter_model.safetensors").is_file()


def test_ctrl_c_leaves_a_resumable_run(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, ClientTrained) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(config(tmp_path / "a"), [interrupt])
    (folder,) = (tmp_path / "a" / "runs").iterdir()
    assert RunFolder(folder).status == "interrupted"
    experiment.resume(folder)
    same(folder, experiment.run(config(tmp_path / "b")).folder)


def test_client_whose_every_reply_is_nan_is_counted_and_harmless(tmp_path: Path) -> None:
    """An absurd rate for one client makes its weights overflow; the others go on."""
    seen: list[Event] = []
    run = experiment.run(
        config(tmp_path, "clients={'0-9': {lr: 0.01}, '4': {lr: 1e39}}", "federation.cohort=10", "local.optimizer=sgd",
               "local.max_grad_norm=null", "local.steps=6"), [seen.append],
    )  # fmt: skip
    missing = [e for e in seen if isinstance(e, ReplyMissing)]
    skipped = [e for e in seen if isinstance(e, ClientTrained) and e.skipped]
    assert {e.client for e in missing} | {e.client for e in skipped} == {4}
    assert all(
        torch.isfinite(t).all()
        for f in (run.folder / "adapters" / "final").glob("*.safetensors")
        for t in load_file(f).values()
    )


def test_too_few_replies_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match="round 1 failed 2 times"):
        experiment.run(
            config(tmp_path, "clients={'0-9': {lr: 1e39}}", "federation.min_replies=3", "federation.retries=1",
                   "local.optimizer=sgd", "local.max_grad_norm=null", "local.steps=6")
        )  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "checkpoints" / "round-0000").is_dir()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["federation.cohort=11"], "there are 10 clients"),
        (["clients={north: {lr: 0.1}}"], "no client has this name"),
        (["clients={'9-12': {lr: 0.1}}"], "0 to 9"),
        (["data.max_length=100000"], "built for"),
        (["adapter.rank=500"], "too large"),
        (["local.optimizer=adamww"], "Did you mean adamw"),
        (["model.device=cuda:7"], "CUDA"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_round(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        experiment.run(config(tmp_path, *overrides))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.yaml").write_text("local: {lr: 0.5}\n"), "changed since"),
        (
            lambda folder: [
                (p / "state.safetensors").write_bytes(b"x") for p in (folder / "checkpoints").glob("round*")
            ],
            "damaged",
        ),
        (lambda folder: [p.rename(folder / p.name) for p in (folder / "checkpoints").glob("round*")], "no checkpoint"),
        (lambda folder: (folder / "env.json").write_text('{"format": 1, "fedloom": "0.0.9"}'), "0.0.9"),
    ],
)
def test_what_cannot_be_resumed_is_said(tmp_path: Path, damage: Callable[[Path], Any], words: str) -> None:
    folder = killed_at(config(tmp_path), lambda seen: isinstance(seen[-1], RoundFinished))
    damage(folder)
    with pytest.raises(UserError, match=words):
        experiment.resume(folder)


def test_evaluated_clients_are_those_asked_for(tmp_path: Path) -> None:
    seen: list[Event] = []
    experiment.run(config(tmp_path, "evaluate.clients=4", "federation.rounds=2"), [seen.append])
    asked = [sorted(e.clients) for e in seen if isinstance(e, Evaluated)]
    assert all(len(names) == 4 for names in asked)
    assert len({tuple(names) for names in asked}) == 1
