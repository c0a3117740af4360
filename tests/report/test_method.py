"""What sets a run apart from plain FedAvg is named; what does not is not."""

import pytest

from fedloom.adapters.ranks import Ranks
from fedloom.config import load
from fedloom.config.presets import PRESETS
from fedloom.folder import RunFolder
from fedloom.report import method, page, story
from fedloom.report.facts import read
from fedloom.runtime.attack import attacking
from fedloom.runtime.sampling import holdout

CLIENTS = [f"c{i}" for i in range(10)]


@pytest.fixture
def facts_of(make_run):
    """Facts of a run with these overrides, all settings resolved."""

    def make(*overrides, clients=CLIENTS, name="demo"):
        config = load("my-data", ["data.source=playground", "partition.clients=10", *overrides])
        return read(RunFolder(make_run(name, clients=clients, config=config.model_dump(mode="json"))), "demo")

    return make


def rows(facts):
    return {row.name: (row.value, row.note) for row in method.rows(facts)}


def test_plain_fedavg_has_nothing_to_say(facts_of):
    facts = facts_of()
    assert (method.rows(facts), method.remarks(facts), method.name(facts.config)) == ([], [], "fedavg")
    assert "<h2>Method</h2>" not in page.one(facts)


def test_a_run_that_says_little_is_plain(make_run):
    facts = read(RunFolder(make_run()), "demo")
    assert (method.rows(facts), method.name(facts.config)) == ([], None)
    assert story.about(facts, method.name(facts.config))[0] == "fedavg"


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "fedit"])
def test_a_preset_is_called_by_its_name(facts_of, preset):
    facts = facts_of(f"algorithm={preset}", *(["aggregate.space.rounds=2"] if preset == "slora" else []))
    assert method.name(facts.config) == preset
    assert rows(facts)["Preset"] == (preset, PRESETS[preset].summary)


def test_of_a_changed_preset_the_parts_are_named(facts_of):
    facts = facts_of("algorithm=fedavgm", "aggregate.server_optimizer.momentum=0.5")
    assert method.name(facts.config) == "fedavg"
    assert rows(facts)["Server optimiser"][0] == "sgd, lr 1, momentum 0.5"


def test_algorithm_space_rule_and_server(facts_of):
    facts = facts_of(
        "algorithm=fedprox", "aggregate.space=products", "aggregate.rule={name: krum, f: 2}",
        "aggregate.server_optimizer={name: sgd, lr: 0.5}",
    )  # fmt: skip
    found = rows(facts)
    assert list(found) == ["Algorithm", "Averaged", "Rule", "Server optimiser"]
    assert found["Algorithm"][0] == "fedprox" and "Li et al. 2020" in found["Algorithm"][1]
    assert found["Averaged"][0] == "products" and "FlexLoRA" in found["Averaged"][1]
    assert found["Rule"][0] == "krum, f 2"
    assert found["Server optimiser"][0] == "sgd, lr 0.5"


def test_the_objective_is_named_with_what_is_not_as_usual(facts_of):
    facts = facts_of("objective={name: dpo, loss: robust, label_smoothing: 0.1}", "evaluate.metrics=null")
    value, note = rows(facts)["Objective"]
    assert sorted(value.split(", ")) == ["beta 0.1", "dpo", "label_smoothing 0.1", "loss robust"]
    assert note.startswith("Preference tuning on pairs of answers")
    facts = facts_of("objective={name: classify, labels: [a, b], pooling: mean}", "evaluate.metrics=null", name="other")
    assert rows(facts)["Objective"][0].replace("\u00a0", " ") == "classify, pooling mean, 2 classes"


def test_attackers_and_holdouts_are_those_of_the_run(facts_of):
    facts = facts_of("seed=3", "attack={name: sign_flip, clients: 20%, scale: 3}", "federation.holdout=2")
    config = load("my-data", ["attack={name: sign_flip, clients: 20%, scale: 3}"]).attack
    out = holdout(2, CLIENTS, 3)
    attack = attacking(config, CLIENTS, 3, out)
    assert len(attack) == 2 and not attack & out
    assert method.attackers(facts) == [CLIENTS[i] for i in sorted(attack)]
    assert method.held_out(facts) == [CLIENTS[i] for i in sorted(out)]
    value, note = rows(facts)["Attack"]
    assert value == "sign_flip, scale 3"
    assert note.startswith(f"2 of 10\u00a0clients: {', '.join(method.attackers(facts))}.")
    assert rows(facts)["Held out"][0] == "2\u00a0clients"
    assert method.remarks(facts) == ["2 of 10\u00a0clients are attackers, made so by `attack=sign_flip`."]


def test_many_attackers_are_counted(facts_of):
    clients = [f"c{i}" for i in range(100)]
    facts = facts_of("partition.clients=100", "attack={name: gaussian, clients: 30%}", clients=clients)
    assert rows(facts)["Attack"][1].startswith("30 of 100\u00a0clients. ")


def test_an_attack_before_anybody_is_known(facts_of):
    facts = facts_of("attack=scaled", clients=[])
    assert method.attackers(facts) == [] and method.remarks(facts) == []
    assert rows(facts)["Attack"][0] == "scaled, factor 10"


def test_ranks_are_those_that_were_drawn(facts_of):
    given = ["algorithm=flexlora", "adapter.ranks={name: uniform, small: 2, medium: 5, large: 9}", "seed=1"]
    facts = facts_of(*given)
    drawn = Ranks(load("my-data", given).adapter, 10, {}, 1)
    held = {rank for i in range(10) for rank in drawn.of(i, ["h.0.attn", "h.0.mlp"]).values()}
    value, note = rows(facts)["LoRA ranks"]
    assert value == f"{min(held)} to {max(held)}" == "2 to 9"
    assert "drawn by uniform" in note


def test_ranks_named_for_single_clients_count(facts_of):
    facts = facts_of("algorithm=flexlora", "adapter.rank=8", "clients={0: {rank: 3}, 1: {rank: {mlp: 12}}}")
    value, note = rows(facts)["LoRA ranks"]
    assert (value, "named" in note) == ("3 to 12", True)


def test_personal_models_are_counted_where_they_are(facts_of, tmp_path):
    facts = facts_of("algorithm=ditto")
    assert rows(facts)["Personal models"][1] == "Every client is scored with its own."
    for name in ("a", "b"):
        (tmp_path / "runs" / "demo" / "adapters" / "clients" / name).mkdir(parents=True)
    again = read(RunFolder(tmp_path / "runs" / "demo"), "demo")
    assert rows(again)["Personal models"][1].endswith("They are in adapters/clients (2).")


def test_what_is_called_personal_is_personal():
    """The names here are those of the pages that say so of themselves."""
    from algorithms.test_table import NAMES, made

    assert {name for name in NAMES if made(name).needs.personal} == method.PERSONAL


def test_the_page_says_all_of_it(facts_of):
    text = page.one(facts_of("attack=sign_flip", "algorithm=ditto"))
    for words in ("<h2>Method</h2>", "sign_flip, scale 1", "Ditto", "are attackers", "<span>ditto</span>"):
        assert words in text
