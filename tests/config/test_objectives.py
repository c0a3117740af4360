"""Objectives with the metrics, attacks and settings that fit them, and with others."""

import importlib
from typing import get_args

import pytest

from fedloom.config import Config, dump, load
from fedloom.config.load import parse
from fedloom.config.objectives import OBJECTIVES
from fedloom.errors import ConfigError
from fedloom.metrics.config import FITTING, OWN, EvaluateConfig, MetricName
from fedloom.objectives.config import ClassifyConfig, DpoConfig, KtoConfig, SftConfig

RECIPE = "data: {source: rows.jsonl}\npartition: {method: iid, clients: 3}\n"
REFUSED = [
    (["objective=classify", "evaluate.metrics=[loss, exact_match]"], "evaluate.metrics names exact_match, but "
     "objective classify gives loss, accuracy, f1, f1_weighted, f1_micro, matthews"),
    (["evaluate.metrics=[loss, accuracy, f1]"], "names accuracy, f1, but objective sft gives loss, perplexity"),
    (["objective=dpo", "evaluate.metrics=[loss, perplexity]"], "names perplexity, but objective dpo gives"),
    (["objective=kto", "evaluate.metrics=[loss, preference_accuracy]"], "names preference_accuracy, but objective kto"),
    (["objective=kto", "evaluate.metrics=[loss, exact_match]"], "names exact_match, but objective kto"),
    (["objective=classify", "data.source=playground", "evaluate.forgetting=true"], "evaluate.forgetting is true, but"),
    (["objective=dpo", "attack=label_flip"], "attack is label_flip, which gives rows each other's answers"),
    (["objective=kto", "attack=label_flip"], "attack is label_flip, which gives rows each other's answers"),
    (["objective=classify", "data.loss_on=all"], "data.loss_on is all, but objective classify learns no prompts"),
    (["objective={name: classify, labels: [a, b, a]}"], "objective.labels names 'a' more than once"),
    (["objective={name: classify, labels: [a]}"], "telling classes apart takes two at least"),
    (["objective={name: classify, labels: [a, ' ']}"], "objective.labels names an empty class"),
    (["objective={name: dpo, loss: hinge, label_smoothing: 0.1}"], "objective.label_smoothing is 0.1, but "
     "objective.loss=hinge does not look at it. Leave it out, or use loss sigmoid or robust."),
    (["objective={name: dpo, length_normalized: true}"], "is true, but objective.loss=sigmoid does not look at it"),
    (["objective={name: dpo, loss: simpo, lam: 0.5}"], "objective.lam is 0.5, but objective.loss=simpo"),
    (["objective={name: dpo, loss: orpo, gamma: 1.0}"], "objective.gamma is 1.0, but objective.loss=orpo"),
    (["objective={name: dpo, loss: slic, beta: 0.5}"], "objective.beta is 0.5, but objective.loss=slic"),
    (["objective={name: dpo, loss: orpo, reference: start}"], "objective.reference is start, but objective.loss=orpo"),
    (["objective={name: dpo, reference: start}", "algorithm=pfedme"], "but pfedme trains several times in a round"),
    (["objective={name: kto, reference: start}", "algorithm=pfedme"], "but pfedme trains several times in a round"),
    (["objective={name: kto, max_prompt_length: 512}"], "objective.max_prompt_length is 512, but data.max_length=512"),
]  # fmt: skip


@pytest.mark.parametrize("overrides, said", REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_what_does_not_go_together_is_named_once(overrides, said):
    with pytest.raises(ConfigError) as caught:
        parse(RECIPE, overrides)
    (problem,) = caught.value.problems
    assert said in problem


ALLOWED = [
    ["objective=classify", "attack=label_flip"],
    ["objective={name: classify, labels: [no, 'yes']}", "evaluate.metrics=[loss, f1_micro, matthews]"],
    ["objective=classify", "evaluate.best=matthews", "evaluate.early_stop.metric=f1_worst_decile"],
    ["objective={name: dpo, label_smoothing: 0.1}", "evaluate.metrics=[loss, margin, exact_match]"],
    ["objective={name: dpo, loss: robust, label_smoothing: 0.1, beta: 0.2}", "evaluate.best=preference_accuracy"],
    ["objective={name: dpo, loss: ipo, length_normalized: true, reference: start}"],
    ["objective={name: dpo, loss: slic, gamma: 1.0, lam: 0.2}"],
    ["objective={name: dpo, loss: simpo, gamma: 0.3, beta: 2.0}"],
    ["objective={name: dpo, loss: orpo, lam: 0.3}", "algorithm=pfedme"],
    ["objective={name: kto, max_prompt_length: 100, reference: start}"],
    ["data.loss_on=all"],
]


@pytest.mark.parametrize("overrides", ALLOWED, ids=" ".join)
def test_what_makes_sense_is_let_through(overrides):
    parse(RECIPE, overrides)


def test_every_check_is_exercised_above(monkeypatch):
    configs = []
    monkeypatch.setattr(
        importlib.import_module("fedloom.config.load"), "check", lambda config: configs.append(config) or []
    )
    for overrides, _ in REFUSED:
        parse(RECIPE, overrides)
    assert [check.__name__ for check in OBJECTIVES if not any(list(check(config)) for config in configs)] == []


@pytest.mark.parametrize("objective", [SftConfig(), ClassifyConfig(), DpoConfig(), KtoConfig()], ids=lambda o: o.name)
def test_metrics_are_the_objectives_own_unless_named(objective):
    own = Config(objective=objective).evaluate
    assert own.measured == tuple(own.metrics or ()) == OWN[objective.rows]
    named = Config(objective=objective, evaluate=EvaluateConfig(metrics=["loss"])).evaluate
    assert named.measured == ("loss",)
    assert Config(objective=objective, evaluate=EvaluateConfig(metrics=[])).evaluate.measured == ()


def test_a_resolved_configuration_says_which_metrics():
    config = parse(RECIPE, ["objective=classify"])
    assert "metrics: [loss, accuracy, f1, matthews]" in dump(config)
    assert parse(dump(config)) == config
    assert parse(RECIPE, ["evaluate.metrics=null"]) == parse(RECIPE)
    assert load("quickstart").evaluate.measured == ("loss", "perplexity", "exact_match")


def test_a_section_alone_knows_no_objective():
    with pytest.raises(ValueError, match="settled by a whole configuration"):
        _ = EvaluateConfig().measured


def test_own_metrics_fit_and_every_metric_fits_somewhere():
    assert set(FITTING) == set(OWN) == {c.rows for c in (SftConfig, ClassifyConfig, DpoConfig, KtoConfig)}
    assert all(set(OWN[kind]) <= set(FITTING[kind]) for kind in OWN)
    assert {name for names in FITTING.values() for name in names} == set(get_args(MetricName))
    assert all(names[0] == "loss" for names in OWN.values())  # what `evaluate.best` reads unless it is set
