"""Commands by their output and exit codes, in this process."""

import sys
import types

import pytest
import torch
from typer.testing import CliRunner

import fedloom
from fedloom import recipes
from fedloom.cli.listing import KINDS, SAID
from fedloom.cli.main import COMMANDS, app
from fedloom.config import load
from fedloom.errors import UserError


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs a command line in an empty folder, on 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments, **how: CliRunner().invoke(app, arguments, **how)


def test_validate_says_that_all_is_well(call):
    done = call("validate", "quickstart", "local.lr=1e-3")
    assert (done.exit_code, done.stdout) == (0, "quickstart: no mistakes found\n")


def test_mistakes_go_to_stderr_with_exit_code_2_and_no_traceback(call):
    done = call("validate", "quickstart", "local.lr=-1", "fedration.rounds=3")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert [line.split("  ")[0] for line in done.stderr.splitlines()] == [
        "override local.lr=-1",
        "override fedration.rounds=3",
    ]


def test_debug_shows_the_error_itself(call):
    done = call("validate", "quickstart", "local.lr=-1", "--debug")
    assert isinstance(done.exception, UserError)


@pytest.mark.parametrize("command", ["run", "validate", "show", "partition"])
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["quickstart", "--lr", "3"], "use key=value: local.lr=3"),
        (["--local.lr=3"], "use key=value: local.lr=3"),
        (["lr=3"], "stands where the recipe goes"),
        (["quikstart"], "Did you mean quickstart"),
        (["quickstart", "--debgu"], "Did you mean --debug?"),
    ],
)
def test_what_looks_like_a_flag_is_answered(call, command, arguments, said):
    done = call(command, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("arguments", [["rnu"], ["validate"], ["report"], ["chat", "--nonsense", "x"]])
def test_wrong_usage_exits_with_2(call, arguments):
    assert call(*arguments).exit_code == 2


def test_a_mistake_of_ours_keeps_its_traceback(call, monkeypatch):
    monkeypatch.setattr(fedloom.config, "dump", lambda *_: 1 / 0)
    done = call("show", "quickstart")
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)


def test_show_prints_yaml_that_loads_to_the_same(call, tmp_path):
    for options in ([], ["--comments"]):
        text = call("show", "quickstart", "local.lr=1e-4", *options).stdout
        (tmp_path / "a.yaml").write_text(text)
        assert load(tmp_path / "a.yaml") == load("quickstart", ["local.lr=1e-4"])


def test_show_example_marks_what_is_learned(call):
    done = call("show", "quickstart", "data.playground.rows=5", "--example")
    assert done.exit_code == 0, done.stderr
    assert "template chat" in done.stdout
    assert done.stdout.count("⟦") == 2  # once in the legend, once in the example


def test_recipes_and_copy(call, tmp_path):
    assert all(name in call("recipes").stdout for name in recipes.names())
    done = call("copy", "quickstart", "mine.yaml")
    assert (done.exit_code, done.stdout) == (0, "mine.yaml  (check it with: fedloom validate mine.yaml)\n")
    assert (tmp_path / "mine.yaml").read_text() == recipes.text("quickstart")


def test_copy_never_overwrites(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("precious")
    done = call("copy", "quickstart", "mine.yaml")
    assert done.exit_code == 2
    assert "is not overwritten" in done.stderr
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_copy_into_a_folder_keeps_the_name(call, tmp_path):
    assert call("copy", "dolly", ".").exit_code == 0
    assert (tmp_path / "dolly.yaml").exists()
    assert "there is no folder" in call("copy", "dolly", "no/where.yaml").stderr


@pytest.mark.parametrize("what", KINDS)
def test_every_kind_can_be_listed_within_80_columns(call, what):
    done = call("list", what)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines and max(map(len, lines)) <= 80
    _, pairs = KINDS[what]
    assert all(name and text for name, text in pairs())


@pytest.mark.parametrize(
    "what, names",
    [
        ("algorithms", ["fedavg", "local", "centralized", "fedavgm", "fedit"]),
        ("partitions", ["iid", "dirichlet", "category", "shards", "quantity", "natural"]),
        ("adapters", ["lora", "full"]),
        ("skills", ["capitalise", "reverse"]),
        ("sources", ["playground", "dolly", "gsm8k"]),
        ("optimizers", ["adamw", "sgd"]),
        ("runtimes", ["simulation", "loopback"]),
    ],
)
def test_lists_hold_what_the_schema_knows(call, what, names):
    listed = {line.split(" ")[0] for line in call("list", what).stdout.splitlines()}
    assert set(names) <= listed


def test_list_names_its_kinds_and_the_nearest(call):
    assert [line.split()[0] for line in call("list").stdout.splitlines()] == list(KINDS)
    done = call("list", "algorithm")
    assert (done.exit_code, "Did you mean algorithms?" in done.stderr) == (2, True)


def test_templates_listed_are_templates():
    from fedloom.data.templates import template_named

    for name in set(SAID["template"]) - {"auto", "chat"}:
        assert template_named(name, None, None, None).name == name


def test_partition_prints_who_holds_what_and_draws_it(call, tmp_path):
    done = call("partition", "quickstart", "data.playground.rows=10", "--svg", "p.svg")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:4] == ["client-000", "10", "0", "40"]
    assert "10 clients: 100 training rows (10 to 10 each" in done.stdout
    assert max(map(len, lines)) <= 80
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_partition_of_many_clients_is_cut_short(call):
    done = call("partition", "quickstart", "partition={method: iid, clients: 50}", "data.playground.rows=10")
    assert "... and 20 more clients" in done.stdout


def test_version(call):
    assert call("version").stdout == f"fedloom {fedloom.__version__}\n"


def test_help_fits_80_columns_and_has_every_command(call):
    text = call("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"\n  {name.split()[0]} " in text for name in COMMANDS)
    for name in COMMANDS:
        assert max(map(len, call(*name.split(), "--help").stdout.splitlines())) <= 80


@pytest.fixture
def finish(monkeypatch):
    """A stand-in for the rooms that talk and export."""
    module = types.ModuleType("fedloom.finish")

    class Chat:
        def __init__(self, folder, base=False, max_new_tokens=256):
            self.name = "base" if base else "tuned"

        def reply(self, messages):
            return f"{self.name} heard {len(messages)}: {messages[-1]['content']}"

    def export(folder, out, merge):
        out.mkdir()
        return out / ("merged" if merge else "adapter")

    module.Chat, module.export = Chat, export
    monkeypatch.setitem(sys.modules, "fedloom.finish", module)
    monkeypatch.setattr(fedloom, "finish", module, raising=False)


@pytest.mark.usefixtures("finish")
class TestFinish:
    def test_one_prompt(self, call):
        assert call("chat", "RUN", "--prompt", "hello", "--base").stdout == "base heard 1: hello\n"

    def test_a_conversation_remembers_until_told_otherwise(self, call):
        done = call("chat", "RUN", input="one\ntwo\n/new\nthree\n")
        assert done.exit_code == 0
        assert [line for line in done.stdout.splitlines() if "heard" in line] == [
            "> tuned heard 1: one",
            "> tuned heard 3: two",
            "> > tuned heard 1: three",
        ]

    def test_export_makes_a_new_folder(self, call, tmp_path):
        assert call("export", "RUN", "--merge", "--out", "model").stdout == "model/merged\n"
        (tmp_path / "model" / "x").write_text("precious")
        done = call("export", "RUN", "--out", "model")
        assert (done.exit_code, "nothing is overwritten" in done.stderr) == (2, True)


def test_doctor_says_whether_neighbours_keep_their_bits(monkeypatch):
    from fedloom.cli import doctor
    from fedloom.engine import choice

    layer = torch.nn.Linear(4, 4)
    for answer, state in ((True, "ok"), (False, "note")):
        monkeypatch.setattr(choice, "row_invariant", lambda module, dtype, answer=answer: answer)
        assert doctor._neighbours(layer).state == state


def test_doctor_says_what_a_recipe_needs():
    done = CliRunner().invoke(app, ["doctor", "quickstart", "engine.slots=2"])
    assert done.exit_code == 0, done.output
    for word in ("base", "activations", "at the peak", "2 clients side by side", "would fit"):
        assert word in done.output
    wrong = CliRunner().invoke(app, ["doctor", "quickstart", "engine.slot=2"])
    assert wrong.exit_code == 2
    assert "engine.slots" in wrong.output


def test_doctor_says_when_a_recipe_does_not_fit(monkeypatch):
    from fedloom import planning

    monkeypatch.setattr(planning, "_free", lambda device: 2.0**20)
    done = CliRunner().invoke(app, ["doctor", "quickstart"])
    assert done.exit_code == 1
    assert "does not fit" in done.output
    assert "0 clients would fit" in done.output


def test_doctor_on_a_system_that_does_not_tell_its_memory(monkeypatch):
    from fedloom import planning

    monkeypatch.setattr(planning, "_free", lambda device: float("inf"))
    done = CliRunner().invoke(app, ["doctor", "quickstart"])
    assert done.exit_code == 0, done.output
    assert "does not tell" in done.output
    assert "would fit" not in done.output
