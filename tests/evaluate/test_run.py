"""`fedloom eval` from the command line to the table: processes, resumption, and scores equal to plain lm-eval's."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.main import app
from fedloom.errors import RunStopped, UserError
from fedloom.evaluate import run as room
from fedloom.evaluate.columns import entrants
from fedloom.evaluate.job import Settings
from fedloom.evaluate.run import evaluate
from fedloom.finish import export

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from evaluated import layout  # noqa: E402
from evaluated.made_up import FIXTURES  # noqa: E402
from fedloom.evaluate import harness  # noqa: E402
from fedloom.evaluate.tasks import find  # noqa: E402

SHORT = Settings(limit=4, max_new_tokens=8, device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Rows of three tasks: published ones where a copy is there, else our own."""
    made, data = tmp_path_factory.mktemp("root"), os.environ.get("FEDLOOM_DATA")
    if data is None:
        for name in ("natural_instructions", "mmlu_anatomy", "pubmedqa"):
            FIXTURES[name].make(made)
    else:
        layout.natural_instructions(Path(data), made, 50)
        layout.mmlu(Path(data), made, 50, "anatomy")
        layout.pubmedqa(Path(data), made, 3)
    return made


def called(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_a_table_of_clients_and_others(finished, root, tmp_path):
    """The same command again computes nothing."""
    run = finished("local")
    asked = (run, "--tasks", "mmlu_anatomy", "--limit", "4", "--columns", "personal", "--data-root", root)
    asked += ("--device", "cpu", "--out", tmp_path)
    done = called(*asked)
    assert done.exit_code == 0, done.output
    head, line = [x.split() for x in done.stdout.splitlines() if x.startswith(("task ", "mmlu_anatomy "))]
    assert head == ["task", "score", "rows", "guess", "personal", "mean", "personal", "worst"]
    assert line[:4] == ["mmlu_anatomy", "accuracy", "4", "25.0"]
    assert done.stdout.rstrip().endswith(str(tmp_path / "evaluation.json"))
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert [model["label"] for model in written["models"]] == ["personal/client-000", "personal/client-001"]
    again = called(*asked, "--beside", f"x={run}", "--json")
    assert again.stderr.count("(kept)") == 4
    assert len(json.loads(again.stdout)["table"]) == 2 * len(written["table"])


def test_scores_are_those_of_plain_lm_eval(finished, root, tmp_path, monkeypatch):
    """The merged run in a process of ours, and its export in lm-eval's own loader."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    run, names = finished("shared"), ("mmlu_anatomy", "natural_instructions")
    settings = Settings(limit=50, max_new_tokens=16, device="cpu", batch_size=16, merge=True)
    made = evaluate(entrants(str(run), ["final"], [], tmp_path), names, settings, tmp_path, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    merged = export(run, tmp_path / "merged", True)
    plain = HFLM(pretrained=str(merged), device="cpu", batch_size=16)
    manager = TaskManager(include_path=harness.definitions([find(n) for n in names]), include_defaults=False)
    theirs = lm_eval.simple_evaluate(
        plain, tasks=list(names), task_manager=manager, limit=50, gen_kwargs={"max_gen_toks": 16},
        log_samples=False,
    )  # fmt: skip
    assert len(made.cells) == 2
    for cell in made.cells:
        metric, kept = cell.score.key.split(",")
        row = theirs["results"][cell.task]
        assert cell.value == row[cell.score.key], cell
        assert cell.stderr == pytest.approx(row[f"{metric}_stderr,{kept}"])


def test_a_broken_off_evaluation_goes_on(finished, root, tmp_path):
    """The second task has no data at first; what the first reached is kept."""
    models = entrants(str(finished("shared")), ["before"], [], tmp_path)
    models = [one.model_copy(update={"home": str(tmp_path / "home")}) for one in models]
    damaged = tmp_path / "root"
    damaged.mkdir()
    (damaged / "cais").symlink_to(root / "cais")
    (damaged / "bigbio" / "pubmed_qa").mkdir(parents=True)
    heard = []

    def say(label, result, kept):
        heard.append((label, result.task, kept))

    names = ["mmlu_anatomy", "pubmedqa"]
    with pytest.raises(UserError, match="pubmedqa: its data set bigbio/pubmed_qa cannot be read"):
        evaluate(models, names, SHORT, tmp_path, damaged, say=say)
    assert heard == [("before", "mmlu_anatomy", False)]
    assert not (tmp_path / "evaluation.json").exists()
    (damaged / "bigbio" / "pubmed_qa").rmdir()
    (damaged / "bigbio").rmdir()
    (damaged / "bigbio").symlink_to(root / "bigbio")
    evaluate(models, names, SHORT, tmp_path, damaged, say=say)
    assert heard[1:] == [("before", "mmlu_anatomy", True), ("before", "pubmedqa", False)]


def test_a_process_that_dies_is_told_with_the_end_of_its_log(finished, root, tmp_path, monkeypatch):
    models = entrants(str(finished("shared")), ["before"], [], tmp_path)
    models = [one.model_copy(update={"home": str(tmp_path / "home")}) for one in models]
    command = ["sh", "-c", "echo what happened >&2; kill -9 $$"]
    starts = room.subprocess.Popen
    monkeypatch.setattr(room.subprocess, "Popen", lambda _, **how: starts(command, **how))
    with pytest.raises(RunStopped, match=r"(?s)evaluates before was killed \(SIGKILL\).*what happened"):
        evaluate(models, ["mmlu_anatomy"], SHORT, tmp_path, root)


# -- mistakes that are said before a model is loaded


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tasks", "gsm8"], "Did you mean gsm8k?"),
        (["--tasks", " , "], "--tasks names nothing"),
        (["--tasks", "humaneval"], "allow it with --allow-code"),
        (["--tasks", "drop,medmcqa", "--data-root", "."], "has no EleutherAI/drop, openlifescienceai/medmcqa"),
        (["--tasks", "drop", "--data-root", "nowhere"], "there is no such folder"),
        (["--tasks", "drop", "--columns", "final"], "nano is no run and has no 'final'"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = called("nano", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_lm_eval(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = called("nano", "--tasks", "gsm8k")
    assert (done.exit_code, "pip install 'fedloom[eval]'" in done.stderr) == (2, True)
