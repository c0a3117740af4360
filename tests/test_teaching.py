"""Runs that distil: broken ones end as whole ones do, and a teacher trained before is the teacher of the run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import test_experiment as runs
from fedloom import experiment, teaching
from fedloom.adapters.classifiers import load_classifier
from fedloom.algorithms.fedkd import BASE, TEACHER
from fedloom.assembly import Parts
from fedloom.channel.codec import decode
from fedloom.cli.main import app
from fedloom.config import Config, parse
from fedloom.contracts import HOME
from fedloom.engine.distil import Tutoring
from fedloom.errors import RunStopped, UserError
from fedloom.events import Event, RoundFinished
from fedloom.models.heads import Classifier
from fedloom.models.load import load_model
from fedloom.runtime.store import Memory
from fedloom.sides import Leading, Taking
from models import tiny_classifiers as small

NANO = [
    "algorithm={name: fedkd, teacher: {name: nano}, batch_size: 8, lr: 1e-3}", "model.layers=[0, 2]",
    "data.public=0.2", "evaluate.metrics=[loss]",
]  # fmt: skip


def config(tmp_path: Path, *overrides: str) -> Config:
    return runs.config(tmp_path, *NANO, *overrides)


def taught(run: Path) -> dict[str, Any]:
    """What the server's own worker remembers at the end."""
    files = sorted((run / "clients" / f"{HOME:07d}").glob("*.safetensors"))
    return dict(decode(Memory, files[-1].read_bytes()).entries)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return small.saved(tmp_path / "bert", "bert")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    lines = [{"text": f"{'good' if i % 3 else 'bad'} {i}", "label": "yes" if i % 3 else "no"} for i in range(48)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "rows.jsonl"


def classes(encoder: Path, sentences: Path, *overrides: str) -> Config:
    recipe = f"""
algorithm: {{name: fedkd, teacher: {{name: "{encoder}"}}, batch_size: 8, lr: 1.0e-3}}
model: {{name: "{encoder}", layers: [0, 2], dtype: float32}}
objective: classify
data: {{source: "{sentences}", max_length: 32, test: 0.25, public: 0.25}}
partition: {{method: iid, clients: 3}}
adapter: {{rank: 2, targets: all-linear}}
local: {{steps: 2, batch_size: 4}}
federation: {{rounds: 2, cohort: 2}}
evaluate: {{metrics: [loss]}}
"""
    return parse(recipe, [f"run.folder={encoder.parent / 'runs'}", *overrides])


@pytest.mark.parametrize("moment", ["after the average", "after the distillation"])
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, moment: str) -> None:
    """kill -9 in round 3, checkpoints every second round: the teacher goes back to where round 2 left it."""
    whole = experiment.run(config(tmp_path / "whole", "checkpoint.every=2"))

    def now(events: Sequence[Event]) -> bool:
        last = events[-1]
        if moment == "after the distillation":
            return isinstance(last, RoundFinished) and last.round == 3
        return getattr(last, "round", 0) == 3 and type(last).__name__ == "ClientTrained"

    folder = runs.killed_at(config(tmp_path / "killed", "checkpoint.every=2"), now)
    again = experiment.resume(folder)
    assert again.metrics == whole.metrics
    runs.same(whole.folder, folder)
    one, other = taught(whole.folder), taught(folder)
    assert torch.equal(one[TEACHER], other[TEACHER])
    assert one[TEACHER].any()
    assert one[BASE] == other[BASE]


def test_in_a_second_process_it_is_the_same(tmp_path: Path) -> None:
    """The worker lives there with its teacher; what comes back is the student."""
    here = experiment.run(config(tmp_path / "here", "federation.rounds=2"))
    there = experiment.run(config(tmp_path / "there", "federation.rounds=2", "runtime=loopback"))
    runs.same(here.folder, there.folder)


def test_what_is_written_for_the_server_holds_no_teacher(tmp_path: Path) -> None:
    """Not one number of it in any checkpoint, nor in the exported model."""
    run = experiment.run(config(tmp_path))
    teacher = taught(run.folder)[TEACHER]
    largest = teacher.abs().argsort(descending=True)[:200]
    numbers = {teacher[i].numpy().tobytes() for i in largest}
    files = [path for part in ("checkpoints", "adapters") for path in (run.folder / part).rglob("*") if path.is_file()]
    assert len(files) > 3
    texts = [path.read_bytes() for path in files]
    assert not [n for n in numbers for text in texts if n in text]
    assert max(map(len, texts)) < 4 * teacher.numel()


def test_clients_bytes_are_those_of_fedavg(tmp_path: Path) -> None:
    def bytes_up(seen: list[Event]) -> list[int]:
        return [e.bytes_up for e in seen if isinstance(e, RoundFinished)]

    distilled, plain = list[Event](), list[Event]()
    experiment.run(config(tmp_path / "one", "federation.rounds=1"), [distilled.append])
    experiment.run(runs.config(tmp_path / "two", *NANO[1:], "federation.rounds=1"), [plain.append])
    assert bytes_up(distilled) == bytes_up(plain)  # what the server's own worker says travels nowhere
    assert bytes_up(plain)[0] > 0
    figures = next(e.figures for e in distilled if isinstance(e, RoundFinished))
    assert {"student_loss", "teacher_loss"} <= set(figures)


def test_a_teacher_trained_before(encoder: Path, sentences: Path, tmp_path: Path) -> None:
    """It says in the run what it said when it was written; its head came with it."""
    cfg, out = classes(encoder, sentences, "algorithm.pretrain_epochs=5"), tmp_path / "teacher"
    steps, loss = teaching.pretrain(cfg, out)
    assert steps == 10  # 9 public rows, 8 at a time, 5 times
    assert 0 < loss < 2
    assert (out / "tokenizer.json").exists()
    own = load_classifier(out)
    later = classes(encoder, sentences, f"algorithm.teacher.name={out}", "algorithm.pretrain_epochs=0")
    parts = Parts(later)
    assert parts.tutor is not None
    module, fresh = parts.tutor.teacher.adapted.module, Parts(cfg).tutor
    assert isinstance(module, Classifier)
    assert fresh is not None
    with torch.no_grad():
        ids, mask = small.batch(small.TEXTS)
        assert torch.allclose(module(ids, mask), own(ids, mask), atol=1e-6)  # attention is written out in one of them
        assert not torch.allclose(fresh.teacher.adapted.module(ids, mask), own(ids, mask))
    run = experiment.run(later)
    assert run.status == "finished"
    with pytest.raises(UserError, match=r"tells apart no, yes, and this run's classes are yes, no"):
        Parts(classes(encoder, sentences, f"algorithm.teacher.name={out}", "objective.labels=[yes, no]"))
    with pytest.raises(UserError, match="all of whose layers"):
        Parts(classes(encoder, sentences, f"algorithm.teacher.name={out}", "algorithm.teacher.layers=[0]"))
    with pytest.raises(UserError, match="not empty"):
        teaching.pretrain(cfg, out)


def test_a_language_model_as_teacher(tmp_path: Path) -> None:
    """It is written as plain transformers loads it."""
    cfg, out = config(tmp_path), tmp_path / "teacher"
    teaching.pretrain(cfg, out)
    found = load_model(cfg.model.model_copy(update={"name": str(out), "layers": None})).module
    before = load_model(cfg.model.model_copy(update={"layers": None})).module
    assert not torch.equal(found.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert Parts(config(tmp_path, f"algorithm.teacher.name={out}")).tutor is not None


def test_the_command(encoder: Path, sentences: Path, tmp_path: Path) -> None:
    from fedloom.config.dump import dump

    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    recipe.write_text(dump(classes(encoder, sentences)))
    done = CliRunner().invoke(app, ["pretrain-teacher", str(recipe), "algorithm.lr=1e-4", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"algorithm.teacher.name={out}" in done.output
    assert (out / "head.safetensors").exists()
    wrong = CliRunner().invoke(app, ["pretrain-teacher", "quickstart", "--out", str(tmp_path / "other")])
    assert wrong.exit_code == 2
    assert "has no teacher" in wrong.output
    assert not (tmp_path / "other").exists()


def test_only_the_servers_side_has_a_teacher(encoder: Path, sentences: Path) -> None:
    """A client does not even look for it; a server learns from a file of its own."""
    shared = ["objective.labels=[no, yes]", "partition={method: natural}", "data.public=0"]
    elsewhere = [*shared, "algorithm.teacher.name=/nowhere/teacher", "data.public_source=/nowhere/rows.jsonl"]
    client = Parts(classes(encoder, sentences, *elsewhere), side=Taking(2, {0: ("a", sentences)}))
    assert client.tutor is None
    own = f"data.public_source={sentences}"
    server = Parts(classes(encoder, sentences, *shared, own), side=Leading(["a", "b"]))
    assert server.tutor is not None
    assert len(server.rows(HOME).get("train")) == 48
    assert isinstance(server.site(teaching_store()).engine, Tutoring)
    with pytest.raises(UserError, match=r"data\.public=0\.25 is a share"):
        Parts(classes(encoder, sentences, *shared[:2]), side=Leading(["a", "b"]))


def teaching_store() -> Any:
    from fedloom.assembly import shelved

    return shelved(None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.public=0", r"Set data\.public"),
        ("algorithm.teacher.name=/nowhere", r"algorithm\.teacher\.name=/nowhere: there is no such folder"),
        ("algorithm.teacher.layers=[7]", r"algorithm\.teacher\.layers: 7 is no layer"),
        ("algorithm.attention=1.0", r"model\.attention=eager"),
        ("local.accumulate=2", "cannot be computed in parts"),
        ("objective=dpo", "objective=classify or objective=sft"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(tmp_path: Path, override: str, said: str) -> None:
    more = ["model.attention=sdpa"]
    if override.startswith("local"):
        more = ["algorithm={name: fedkd, teacher: {name: nano}, kl: raw_logits}"]
    with pytest.raises(UserError, match=said):
        Parts(config(tmp_path, *more, override))


def test_another_familys_teacher(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different tokenizers"):
        Parts(config(tmp_path, f"algorithm.teacher.name={encoder}"))


def test_a_teacher_that_diverges_ends_the_run(encoder: Path, sentences: Path, tmp_path: Path) -> None:
    wild = classes(encoder, sentences, "algorithm.lr=1e30", "federation.retries=0", "algorithm.max_grad_norm=null")
    with pytest.raises(RunStopped, match="the teacher alone: loss or gradient not finite"):
        experiment.run(wild)
    with pytest.raises(RunStopped, match="not finite"):
        teaching.pretrain(wild, tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
