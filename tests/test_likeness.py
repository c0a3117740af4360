"""What an emulator gives away: numbers that must come out of models one can score by hand."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from fedloom import emulating, experiment, likeness
from fedloom.cli.main import app
from fedloom.config import Config, dump, load
from fedloom.engine.apart import apart
from fedloom.errors import RunStopped, UserError
from fedloom.folder import RunFolder
from fedloom.metrics.likeness import Measured, closed
from fedloom.models import emulator
from fedloom.models.load import load_model, load_tokenizer
from fedloom.objectives.sft import Sft
from fedloom.sides import Both

NANO = [
    "data.playground.rows=20", "data.playground.test_rows=2", "data.public=0.2", "data.max_length=96",
    "evaluate.forgetting=false", "evaluate.metrics=[exact_match]", "evaluate.best=exact_match",
    "evaluate.max_new_tokens=4", "offsite.drop_ratio=0.5",
]  # fmt: skip


def config(*overrides: str) -> Config:
    return load("quickstart", [*NANO, *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulator") / "out"
    emulating.build(config(), folder)
    return folder


def clients_rows(recipe: Config) -> list[Any]:
    data = Both().data(recipe, load_tokenizer(recipe.model))
    return [one for client in data.clients for one in client.get("test")]


def by_hand(module: Any, rows: list[Any]) -> tuple[float, torch.Tensor]:
    """Loss over all learned tokens, one text at a time, and log-probabilities [tokens, vocabulary] there."""
    found = []
    targets = []
    with torch.no_grad():
        for one in rows:
            logs = F.log_softmax(module(torch.tensor([one.ids])).logits[0].double(), -1)
            places = [i for i, label in enumerate(one.labels[1:]) if label != -100]
            found.append(logs[places])
            targets += [one.labels[i + 1] for i in places]
    logs = torch.cat(found)
    return -logs[torch.arange(len(targets)), torch.tensor(targets)].mean().item(), logs


def test_numbers_of_both_models(made: Path) -> None:
    recipe = config("model.dtype=float32")
    found = likeness.report(recipe, made, attack_steps=0)
    rows = clients_rows(recipe)
    (whole, p), (small, q) = (
        by_hand(module, rows) for module in (load_model(recipe.model).module, emulator.load(made, recipe.model).module)
    )
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item())
    assert (found.rows, found.tokens) == (len(rows), len(p))
    assert [(one.moment, one.model) for one in found.scores] == [
        ("before tuning", "owner"),
        ("before tuning", "emulator"),
    ]
    assert [one.metrics["loss"] for one in found.scores] == pytest.approx([whole, small], rel=1e-4)
    assert list(found.scores[0].metrics) == ["loss", "exact_match"]
    assert found.attack is None
    assert found.emulator == emulator.read(made).fingerprint


def test_a_model_is_like_itself() -> None:
    module = load_model(config("model.dtype=float32").model).module
    kl, same, tokens = apart(module, module, Sft(), clients_rows(config()), 0)
    assert (kl, same) == (0, 1)
    assert tokens > 0


def test_the_attacker_tunes_all_of_the_emulator(made: Path) -> None:
    """On rows of nobody, like the clients', for long enough to matter; the artefact stays what it is."""
    before = emulator.read(made).fingerprint
    recipe = config("offsite.align={batch_size: 8, lr: 2.0e-3}")
    found, again = (likeness.report(recipe, made, attack_steps=25) for _ in range(2))
    assert found == again
    attacked = found.scores[-1]
    assert (attacked.moment, attacked.model) == ("attacked", "emulator")
    assert attacked.metrics["loss"] < found.scores[1].metrics["loss"]
    assert found.attack is not None
    assert (found.attack.steps, found.attack.rows) == (25, 36)
    assert found.attack.source == "data.public=0.2 of playground"
    assert emulator.read(made).fingerprint == before
    with pytest.raises(RunStopped, match=r"lower offsite\.align\.lr"):
        likeness.report(
            config("offsite.align={lr: 1.0e+30, max_grad_norm: null, optimizer: sgd}"), made, attack_steps=3
        )


def test_the_way_to_the_owners_model() -> None:
    """From 3.0 down to 2.0 it went 0.25 of the way to 1.0; the tuned model is the aim where there is one."""
    first = [Measured("", "owner", {"loss": 1.0}), Measured("", "emulator", {"loss": 3.0})]
    assert closed(first, 2.5) == pytest.approx(0.25)
    assert closed([*first, Measured("", "owner", {"loss": 2.0})], 2.5) == pytest.approx(0.5)
    assert closed(first[::-1], 3.5) == pytest.approx(-0.25)
    assert closed([Measured("", "owner", {"loss": 3.0}), first[1]], 2.0) is None


# -- after a run


def run_folder(path: Path, recipe: Config) -> Path:
    (path / "adapters").mkdir(parents=True)
    (path / "config.yaml").write_text(dump(recipe))
    (path / "env.json").write_text('{"format": 1}')
    return path


def tuned_by_hand(recipe: Config, made: Path, run: Path, kind: str) -> list[Any]:
    """Both models with something in the clients' last block, written as a run writes it; the models themselves."""
    found = []
    for name, block, module in (
        ("final", 3, load_model(recipe.model).module),
        ("emulator", 2, emulator.load(made, recipe.model).module),
    ):
        torch.manual_seed(1)
        if kind == "lora":
            settings = peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[block], init_lora_weights=False)
            module = peft.get_peft_model(module, settings)
        else:
            module.model.layers[block].mlp.up_proj.weight += 0.05
            load_tokenizer(recipe.model).save_pretrained(run / "adapters" / name)
        module.save_pretrained(run / "adapters" / name)
        found.append(module.eval())
    return found


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_a_run_tuned(made: Path, tmp_path: Path, kind: str) -> None:
    recipe = config("model.dtype=float32")
    run = run_folder(tmp_path / "run", recipe)
    models = tuned_by_hand(recipe, made, run, kind)
    rows = clients_rows(recipe)
    found = likeness.report(recipe, made, run, attack_steps=2)
    names = [(one.moment, one.model) for one in found.scores]
    assert names[2:] == [
        ("after tuning", "owner"), ("after tuning", "emulator"), ("attacked", "emulator"),
        ("tuned, then attacked", "emulator"),
    ]  # fmt: skip
    wanted = [by_hand(module, rows)[0] for module in models]
    assert [one.metrics["loss"] for one in found.scores[2:4]] == pytest.approx(wanted, rel=1e-4)
    assert wanted[0] != pytest.approx(found.scores[0].metrics["loss"], rel=1e-3)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_after_a_real_run(made: Path, tmp_path: Path, kind: str) -> None:
    """What the run measured at its end is what is found here: of the owner's model and of the emulator."""
    recipe = config(
        "model.dtype=float32", f"offsite.emulator={made}", f"adapter={{kind: {kind}}}", "federation.rounds=2",
        "federation.cohort=2", "local={steps: 3, batch_size: 4, lr: 1.0e-3}", "evaluate.metrics=[loss]",
        "evaluate.best=loss", f"run.folder={tmp_path}", "aggregate.server_optimizer=sgd",
    )  # fmt: skip
    done = experiment.run(recipe)
    found = likeness.report(recipe, made, done.folder, attack_steps=0)
    last = {str(row["split"]): row["loss"] for row in RunFolder(done.folder).metrics()}
    assert [one.metrics["loss"] for one in found.scores[2:]] == pytest.approx(
        [last["test"], last["emulator"]], rel=1e-4
    )
    assert found.scores[0].metrics["loss"] != pytest.approx(last["test"], rel=1e-3)


def test_runs_that_do_not_fit(made: Path, tmp_path: Path) -> None:
    recipe = config()
    other = tmp_path / "other"
    emulating.build(config("offsite.method=distill", "offsite.align={steps: 1, batch_size: 2}"), other)
    cases = {
        "tuned no emulator": config("offsite=null"),
        "of another model": config("model.name=/elsewhere"),
        "tuned other blocks": config("offsite.tail_layers=0", "offsite.head_layers=2"),
        "was tuned on another emulator": config(f"offsite.emulator={other}"),
        "not there; finish the run": recipe,
    }
    for i, (words, said) in enumerate(cases.items()):
        run = run_folder(tmp_path / str(i), said)
        with pytest.raises(UserError, match=words):
            likeness.report(recipe, made, run, attack_steps=0)
    with pytest.raises(UserError, match="blocks dropped in memory"):
        likeness.report(recipe, other, run_folder(tmp_path / "memory", recipe), attack_steps=0)


# -- rows


def test_which_rows_are_scored(made: Path, tmp_path: Path) -> None:
    lines = [{"instruction": f"word {i}", "output": f"{i}."} for i in range(30)]
    mine, theirs = tmp_path / "mine.jsonl", tmp_path / "theirs.jsonl"
    for path in (mine, theirs):
        path.write_text("\n".join(map(json.dumps, lines)))
    own, away = f"offsite.align.source={mine}", f"evaluate.global_source={theirs}"
    nowhere = ["data.source=/nowhere", "data.public=0", "partition.method=iid", own]
    found = likeness.report(config(*nowhere), made, attack_steps=0, rows="own")  # clients' rows are not even opened
    assert (found.rows, found.source) == (3, f"held back of offsite.align.source={mine}")
    found = likeness.report(config(*nowhere, away), made, attack_steps=1)
    assert (found.rows, found.source) == (30, f"evaluate.global_source={theirs}")
    with pytest.raises(UserError, match="is what the attacker learns from"):
        likeness.report(config(*nowhere, f"evaluate.global_source={mine}"), made, attack_steps=1)
    with pytest.raises(UserError, match=r"evaluate\.global_source is not set"):
        likeness.report(config(), made, attack_steps=0, rows="global")


def test_mistakes(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="measures a model by a reference"):
        likeness.report(config("objective=dpo", "evaluate.metrics=null", "evaluate.best=loss"), made)
    with pytest.raises(UserError, match="no rows to align the emulator on"):
        likeness.report(config("data.public=0"), made)
    with pytest.raises(UserError, match="holds no emulator"):
        likeness.report(config(), tmp_path)


def test_another_owners_model(made: Path, tmp_path: Path) -> None:
    base = load_model(config().model)
    base.module.model.layers[0].mlp.up_proj.weight.add_(1.0)  # type: ignore[union-attr, operator]
    base.module.save_pretrained(tmp_path / "other")  # type: ignore[operator]
    load_tokenizer(config().model).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="is another model"):
        likeness.report(config(f"model.name={tmp_path / 'other'}"), made, attack_steps=0)


def test_the_command(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    given = [
        "emulator",
        "report",
        "quickstart",
        *NANO,
        "--emulator",
        str(made),
        "--attack-steps",
        "2",
        "--out",
        str(out),
    ]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    said = json.loads(out.read_text())
    assert said["format"] == 1
    assert [one["moment"] for one in said["scores"]] == ["before tuning", "before tuning", "attacked"]
    assert "attacker: 2 steps on 36 rows" in done.output
    which = CliRunner().invoke(app, ["emulator", "report", "quickstart", *NANO])
    assert (which.exit_code, "which emulator?" in which.output) == (2, True)
    again = CliRunner().invoke(app, given)
    assert again.exit_code == 2
    assert "exists, and is not overwritten" in again.output
    wrong = CliRunner().invoke(app, [*given[:-1], str(tmp_path / "other"), "--rows", "mine"])
    assert wrong.exit_code == 2
    assert "choose one of auto, global, clients, own" in wrong.output
