"""Recipes found, read, merged with overrides and checked; every mistake named at once, with its place."""

import re
from pathlib import Path

import pytest

from fedloom.config import load
from fedloom.data.config import DirichletConfig, IidConfig
from fedloom.errors import ConfigError, UserError


@pytest.fixture
def recipe(tmp_path):
    """Writes a YAML file and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "my.yaml"
        path.write_text(text)
        return path

    return write


def problems(recipe, *overrides, flags=()):
    with pytest.raises(ConfigError) as caught:
        load(recipe, overrides, flags)
    return caught.value.problems


def only(found):
    (one,) = found
    return one


def test_a_shipped_recipe_is_found_by_name():
    assert load("quickstart").run.name == "quickstart"


def test_a_file_may_leave_out_everything_but_one_key(recipe):
    config = load(recipe("seed: 3"))
    assert (config.seed, config.local.steps, config.federation.cohort) == (3, 10, "100%")


@pytest.mark.parametrize(
    "name, said",
    [
        ("quikstart", "Did you mean quickstart (a shipped recipe)?"),
        ("quickstart.yaml", "Did you mean quickstart (a shipped recipe)?"),
        ("zzz", "Shipped recipes: cola-fedkd, dolly, "),
        ("nowhere/a.yaml", "there is no folder nowhere"),
    ],
)
def test_a_missing_recipe_names_the_nearest(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"neither a file|does not exist") as caught:
        load(name)
    assert said in str(caught.value)


def test_a_missing_file_names_the_nearest_file(recipe, tmp_path):
    recipe("seed: 1")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "mi.yaml")
    assert f"Did you mean {tmp_path / 'my.yaml'}?" in str(caught.value)


def test_a_run_folder_is_not_a_recipe_but_holds_one(recipe, tmp_path):
    recipe("seed: 1").rename(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"is a folder, not a recipe\. Did you mean .*config\.yaml\?"):
        load(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        load(path)


@pytest.mark.parametrize("text, said", [("", "is empty"), ("# nothing\n", "is empty"), ("- 1", "is no mapping")])
def test_a_recipe_is_a_filled_mapping(recipe, text, said):
    assert said in only(problems(recipe(text)))


WRONG = [
    ("federatoin: {rounds: 3}", "federatoin is not a setting. Did you mean federation?"),
    ("federation: {rouns: 3}", "federation.rouns is not a setting of federation. Did you mean federation.rounds?"),
    ("lr: 0.1", "lr is not a setting. Did you mean local.lr or algorithm.lr?"),
    ("federation: {lr: 0.1}", "Did you mean local.lr"),
    ("learning_rate: 0.1", "Did you mean local.lr?"),
    ("federation: {num_clients: 4}", "Did you mean partition.clients?"),
    ("local: {lorarank: 4}", "Possible here: steps, epochs"),
    ("local: {optimiser: adamw}", "Did you mean local.optimizer?"),
    ("algorithm: fedavgg", "algorithm.name is the text 'fedavgg', which is none of ours. Did you mean fedavg?"),
    ("algorithm: {name: fedavgmm}", "Did you mean fedavgm?"),
    ("algorithm: {name: dual, zzz: 1}", "algorithm.zzz is not a setting of algorithm dual. Possible here: name."),
    (
        "algorithm: {name: fedavg, mu: 1}",
        "algorithm.mu is a setting of fedprox and fednova, but algorithm.name is fedavg. "
        "Remove it, or set algorithm.name=fedprox.",
    ),
    ("partition: {method: random}", "Choose one of: category, dirichlet, iid, natural, quantity, shards."),
    (
        "partition: {method: iid, alpha: 0.3}",
        "partition.alpha is a setting of dirichlet and quantity, but partition.method is iid. "
        "Remove it, or set partition.method=dirichlet.",
    ),
    ("partition: {alpha: 0.3}", "but partition.method is category (the default)"),
    ("local: {lr: -0.1}", "local.lr is -0.1, but must be greater than 0. (Learning rate of the first round.)"),
    ("federation: {rounds: '8'}", "is the text '8', but a whole number is needed. Write 8 without quotes."),
    ("federation: {rounds: 1_000}", "Write 1000 without quotes."),
    ("federation: {rounds: 8.5}", "is 8.5, but a whole number is needed."),
    ("federation: {rounds: true}", "is true, but a whole number is needed."),
    ("federation: {rounds: }", "is null, but a whole number is needed."),
    ("local: {lr: fast}", "is the text 'fast', but a number is needed."),
    ("local: {lr: .inf}", "must be finite"),
    ("adapter: {rslora: yes}", "true or false is needed. Write true."),
    ("run: {name: 2024}", "is 2024, but text is needed; put it in quotes."),
    ("run: {name: a/b}", "only letters, digits"),
    ("federation: {cohort: 10 %}", "a number of clients or a share"),
    ("federation: {cohort: 0}", "federation.cohort is 0, but must be at least 1."),
    ("aggregate: {weighting: rows}", "must be one of examples, dataset, uniform."),
    ("evaluate: {metrics: [loss, acc]}", "evaluate.metrics[1] is the text 'acc'"),
    ("evaluate: {metrics: loss}", "evaluate.metrics is the text 'loss', but a list such as [a, b] is needed."),
    ("evaluate: {clients: most}", "all, cohort or a whole number is needed"),
    ("evaluate: {clients: 0}", "must be at least 1"),
    ("adapter: {targets: {a: 1}}", "is a section, but text or a list of text is needed."),
    ("data: {columns: question}", "data.columns is the text 'question', but a section is needed"),
    ("model:", "model is empty. Give it keys (name, revision"),
    ("partition: 3", "partition is 3, but a section is needed"),
    ("clients: [1, 2]", "clients is the list [1, 2], but a mapping of names to settings is needed."),
    ("clients: {0: 1e-3}", "clients.0 is 0.001, but a section is needed"),
    ("clients: {0: {stes: 1}}", "Did you mean clients.0.steps?"),
    ("clients: {0: {lr: -1}}", "clients.0.lr is -1, but must be greater than 0."),
    ("local: {steps: 3, epochs: 1}", "local: steps and epochs are both given"),
    ("privacy: {epsilon: 3}", "privacy is not a setting."),
]


@pytest.mark.parametrize("text, said", WRONG, ids=[text for text, _ in WRONG])
def test_one_mistake_is_one_sentence_with_its_line(recipe, text, said):
    path = recipe(f"seed: 1\n{text}\n")
    found = only(problems(path))
    assert found.startswith(f"{path}:2  ")
    assert said in found


def test_a_key_given_twice_is_an_error(recipe):
    path = recipe("seed: 1\nlocal:\n  lr: 0.1\n  lr: 0.2\n")
    assert only(problems(path)) == f"{path}:4  local.lr is given twice, first on line 3. Keep one."


def test_all_mistakes_come_at_once_in_the_order_of_the_file(recipe):
    text = """\
loc: {lr: 1}
local:
  lr: -1
  batch_size: "8"
  steps: 2
  epochs: 1
algorithm: fedavgg
data:
  source: my.jsonl
  validation: 0.6
  test: 0.6
seed: 1
seed: 2
"""
    found = problems(recipe(text), "federation.rouns=3", "seed=x")
    places = [one.split("  ")[0].split(":")[-1] for one in found]
    assert places == ["1", "3", "4", "5", "7", "10", "13", "override federation.rouns=3", "override seed=x"]


def test_mistakes_behind_a_mistyped_variant_are_found_too(recipe):
    found = problems(recipe("partition:\n  method: dirichlett\n  alpha: -1\n"))
    assert len(found) == 2
    assert "Did you mean dirichlet?" in found[0]
    assert "partition.alpha is -1" in found[1]


def test_a_contradiction_is_not_reported_on_top_of_the_mistake_that_caused_it(recipe):
    assert "at least 1" in only(problems(recipe("partition: {clients: 0}\nfederation: {cohort: 20}")))


def test_overrides_are_judged_in_the_order_given():
    found = problems("quickstart", "partition.clients=3", "federation.cohort=4", "loca.lr=1", "local.lr=-1")
    places = [one.split("  ")[0] for one in found]
    assert places == ["override federation.cohort=4", "override loca.lr=1", "override local.lr=-1"]


def test_a_line_of_a_shipped_recipe_is_named_as_such():
    found = only(problems("quickstart", "data.source=my.jsonl"))
    assert re.match(r"quickstart \(shipped\):\d+  evaluate\.forgetting is true", found)


class TestOverrides:
    def test_values_are_yaml(self, recipe):
        given = ["local.lr=1e-4", "evaluate.metrics=[loss, rouge_l]", "local.max_grad_norm=null", "adapter.rslora=true"]
        config = load(recipe("seed: 1"), given)
        assert (config.local.lr, config.evaluate.metrics) == (1e-4, ["loss", "rouge_l"])
        assert (config.local.max_grad_norm, config.adapter.rslora) == (None, True)

    def test_mappings_are_merged_and_lists_replaced(self, recipe):
        path = recipe("local: {lr: 0.5, batch_size: 3}\nevaluate: {metrics: [loss]}")
        config = load(path, ["local={lr: 0.25}", "evaluate.metrics=[perplexity, loss]"])
        assert (config.local.lr, config.local.batch_size) == (0.25, 3)
        assert config.evaluate.metrics == ["perplexity", "loss"]

    def test_text_needs_no_quotes(self, recipe):
        given = ["run.name=2024", "data.template=### {instruction}: {input}", "model.name='1e5'", "data.root=null"]
        config = load(recipe("seed: 1"), given)
        assert (config.run.name, config.data.template) == ("2024", "### {instruction}: {input}")
        assert (config.model.name, config.data.root) == ("1e5", None)

    def test_optimiser_arguments_keep_their_types(self, recipe):
        config = load(recipe("seed: 1"), ["local.optimizer.args.betas=[0.9, 0.95]", "local.optimizer.name=sgd"])
        assert config.local.optimizer.args == {"betas": [0.9, 0.95]}

    def test_single_clients(self, recipe):
        config = load(recipe("clients: {0: {lr: 0.1}}"), ["clients.1-3.lr=0.2", "clients.0.steps=4"])
        assert config.clients["1-3"].lr == 0.2
        assert (config.clients["0"].lr, config.clients["0"].steps) == (0.1, 4)

    def test_the_last_of_two_wins(self, recipe):
        assert load(recipe("seed: 1"), ["seed=2", "seed=3"]).seed == 3

    def test_a_section_can_be_switched_off_and_on(self, recipe):
        path = recipe("evaluate: {early_stop: {patience: 2}}")
        assert load(path, ["evaluate.early_stop=null"]).evaluate.early_stop is None
        assert load(recipe("evaluate: {early_stop: null}"), ["evaluate.early_stop.patience=7"]).evaluate.early_stop

    def test_an_exchanged_variant_forgets_the_keys_only_the_former_had(self, recipe):
        path = recipe("partition: {method: category, clients: 4, per_client: 2}")
        assert load(path, ["partition.method=iid"]).partition == IidConfig(clients=4)
        assert load(path, ["partition=dirichlet", "partition.alpha=2"]).partition == DirichletConfig(clients=4, alpha=2)

    def test_but_not_keys_that_no_variant_has(self, recipe):
        path = recipe("partition: {method: category, per_clent: 2}")
        assert "per_clent" in only(problems(path, "partition.method=iid"))

    def test_and_not_keys_given_beside_it(self, recipe):
        found = only(problems(recipe("seed: 1"), "partition.method=iid", "partition.alpha=1"))
        assert found.startswith("override partition.alpha=1  partition.alpha is a setting of dirichlet")

    def test_epochs_take_the_place_of_the_files_steps(self, recipe):
        local = load(recipe("local: {steps: 8}"), ["local.epochs=2"]).local
        assert (local.steps, local.epochs) == (None, 2)
        assert "both given" in only(problems(recipe("seed: 1"), "local.epochs=2", "local.steps=3"))

    @pytest.mark.parametrize(
        "override, said",
        [
            ("federation.rounds", "has no value. Settings are given as key=value: federation.rounds=VALUE."),
            ("rounds", "has no value. Settings are given as key=value: federation.rounds=VALUE."),
            ("federation.rouns=3", "Did you mean federation.rounds?"),
            ("a b=3", "'a b' is no key"),
            ("=3", "'' is no key"),
            ("seed=[1", "cannot be read as YAML"),
            ("seed=one", "is the text 'one', but a whole number is needed."),
            ("adapter=lokr", "adapter.kind is the text 'lokr', which is none of ours."),
        ],
    )
    def test_mistakes_name_the_override(self, recipe, override, said):
        found = only(problems(recipe("seed: 1"), override))
        assert found.startswith(f"override {override}  ")
        assert said in found

    @pytest.mark.parametrize(
        "arguments, said",
        [
            (
                ["--local.lr=3"],
                "--local.lr=3  is no option. Settings are given without dashes; use key=value: local.lr=3",
            ),
            (["--lr", "3"], "--lr=3  is no option. Settings are given without dashes; use key=value: local.lr=3"),
            (["--learning-rate=3"], "use key=value: local.lr=3"),
            (["--quite"], "--quite  is no option. Did you mean --quiet?"),
            (["--zzz"], "use key=value: zzz=VALUE"),
        ],
    )
    def test_flags_are_answered_with_key_value(self, recipe, arguments, said):
        assert said in only(problems(recipe("seed: 1"), *arguments, flags=("--quiet", "--help")))


class TestPresets:
    def test_a_preset_fills_its_sections(self, recipe):
        config = load(recipe("algorithm: fedavgm"))
        assert config.algorithm.name == "fedavg"
        assert config.aggregate.server_optimizer.momentum == 0.9

    def test_starting_values_may_be_changed_beside_it(self, recipe):
        path = recipe("algorithm: {name: fedavgm}\naggregate: {server_optimizer: {momentum: 0.5}}")
        assert load(path).aggregate.server_optimizer.momentum == 0.5

    def test_a_preset_on_the_command_line_wins_over_the_file(self):
        config = load("quickstart", ["algorithm=fedavgm", "aggregate.server_optimizer.lr=0.5"])
        server = config.aggregate.server_optimizer
        assert (server.momentum, server.lr) == (0.9, 0.5)

    def test_what_a_preset_means_cannot_be_contradicted_beside_it(self, recipe):
        path = recipe("algorithm: fedit\nadapter: full\n")
        found = only(problems(path))
        assert found.startswith(f"{path}:2  adapter.kind is full, but fedit means adapter.kind=lora.")

    def test_every_preset_resolves_to_a_valid_configuration(self, recipe):
        from fedloom.config.presets import PRESETS

        for name, preset in PRESETS.items():
            config = load(recipe(f"algorithm: {name}"))
            for key, value in {**preset.fixed, **preset.start}.items():
                here = config
                for part in key.split("."):
                    here = getattr(here, part)
                assert here == value, (name, key)
