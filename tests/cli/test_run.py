"""run and resume: what is shown, what is left, and every way to end."""

import errno
import json
import sys

import pytest
from typer.testing import CliRunner

from fedloom.cli.main import app
from fedloom.errors import RunStopped, UserError


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(app, arguments)


def the_run(experiment):
    (folder,) = experiment.folder.iterdir()
    return folder


def test_a_run_prints_a_line_a_round_and_the_result(call, experiment):
    done = call("run", "quickstart", "federation.rounds=3")
    assert done.exit_code == 0, done.stderr
    assert experiment.configs[0].federation.rounds == 3
    folder = the_run(experiment)
    lines = done.stdout.splitlines()
    assert lines[0] == "toy: fedavg on nano, 123.5 k of 2.3 M numbers trained"
    assert "round   1/3  loss 2.000  320 ex/s  0:01 left" in lines
    assert "round   2/3  loss 1.000  320 ex/s  1 missing  0:00 left" in lines
    assert "round   3  test: loss 0.500, exact_match 90.0 %" in lines
    assert "warning: lr looks [high] to me" in lines
    assert "round 2: client-1 does not count (nonfinite: loss is NaN in step 3)" in lines
    assert f"  fedloom chat {folder}" in lines
    assert (folder / "report.html").exists()


def test_the_result_compares_before_and_after(call, experiment):
    rows = [line.split() for line in call("run", "quickstart").stdout.splitlines()]
    assert ["split", "metric", "before", "after"] in rows
    assert ["test", "loss", "2.000", "0.500"] in rows
    assert ["exact_match", "0.0", "%", "90.0", "%"] in rows
    assert ["exact_match_worst_decile", "0.0", "%", "45.0", "%"] in rows


def test_quiet_prints_warnings_and_the_result_only(call, experiment):
    lines = call("run", "quickstart", "--quiet", "--no-report").stdout.splitlines()
    assert lines[:2] == [
        "warning: lr looks [high] to me",
        "round 2: client-1 does not count (nonfinite: loss is NaN in step 3)",
    ]
    assert not [line for line in lines if line.startswith("round   ")]
    assert any(line.startswith("finished: ") for line in lines)
    assert not (the_run(experiment) / "report.html").exists()


def test_json_prints_events_and_nothing_else(call, experiment):
    done = call("run", "quickstart", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "RunStarted"
    assert events[-1]["event"] == "RunFinished"
    recorded = [json.loads(line) for line in (the_run(experiment) / "events.jsonl").read_text().splitlines()]
    without_time = [{k: v for k, v in event.items() if k != "time"} for event in events]
    assert without_time == [{k: v for k, v in event.items() if k != "time"} for event in recorded]


def test_resume_continues_the_folder(call, experiment):
    call("run", "quickstart", "--no-report")
    folder = the_run(experiment)
    done = call("resume", str(folder), "--no-report")
    assert done.exit_code == 0, done.stderr
    assert experiment.resumed == [folder]


def test_no_run_begins_with_a_mistake(call, experiment):
    assert call("run", "quickstart", "local.lr=-1").exit_code == 2
    assert experiment.configs == []


def raising(error):
    def now():
        raise error

    return now


def test_ctrl_c_names_the_command_that_goes_on(call, experiment):
    experiment.before_end = raising(KeyboardInterrupt)
    done = call("run", "quickstart")
    assert done.exit_code == 130
    assert done.stderr == f"Stopped by Ctrl-C. Continue with: fedloom resume {the_run(experiment)}\n"


def test_ctrl_c_before_the_beginning_leaves_nothing(call, experiment):
    experiment.before_begin = raising(KeyboardInterrupt)
    done = call("run", "quickstart")
    assert (done.exit_code, "nothing to resume" in done.stderr) == (130, True)


def test_ctrl_c_before_the_first_checkpoint_says_so(call, experiment, monkeypatch):
    def interrupted(folder):
        yield next(iter(play(folder)))
        raise KeyboardInterrupt

    play = sys.modules[type(experiment).__module__].play
    monkeypatch.setattr(sys.modules[type(experiment).__module__], "play", interrupted)
    done = call("run", "quickstart")
    assert (done.exit_code, "begin anew" in done.stderr) == (130, True)


def test_a_run_that_ended_itself_on_ctrl_c_is_interrupted_too(call, experiment):
    experiment.status = "interrupted"
    done = call("run", "quickstart")
    assert done.exit_code == 130
    assert f"fedloom resume {the_run(experiment)}" in done.stderr


def test_a_stopped_run_is_a_message_with_exit_code_1(call, experiment):
    experiment.before_end = raising(RunStopped("round 3: too few replies, four times"))
    done = call("run", "quickstart")
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "round 3: too few replies, four times",
        f"Continue with: fedloom resume {the_run(experiment)}",
    ]


def test_a_full_disk_names_the_folder_and_resume(call, experiment):
    experiment.before_end = raising(OSError(errno.ENOSPC, "No space left on device", "x"))
    done = call("run", "quickstart")
    folder = the_run(experiment)
    assert done.exit_code == 1
    assert f"The disk is full: nothing more can be written to {folder}." in done.stderr
    assert f"fedloom resume {folder}" in done.stderr


def test_a_users_mistake_found_late_is_a_message_too(call, experiment):
    experiment.before_begin = raising(UserError("data.source=x: there is no such file"))
    done = call("run", "quickstart")
    assert (done.exit_code, done.stderr) == (2, "data.source=x: there is no such file\n")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("a bug")])
def test_anything_else_is_a_bug_and_keeps_its_traceback(call, experiment, error):
    experiment.before_end = raising(error)
    done = call("run", "quickstart")
    assert done.exit_code == 1
    assert done.exception is error
