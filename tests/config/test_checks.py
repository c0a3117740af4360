"""Contradictions between sections: each found, each gone when repaired."""

import importlib

import pytest

from fedloom.adapters.config import FullConfig
from fedloom.config import Config, load
from fedloom.config.checks import CHECKS, require
from fedloom.errors import ConfigError
from fedloom.models.config import ModelConfig

CONTRADICTIONS = [
    (["runtime.workers=2", "runtime.name=loopback"], "runtime.workers is 2, but runtime.name=loopback"),
    (["federation.sampling=trace"], "trace needs a CSV file"),
    (["federation.sampling=fixed"], "federation.sampling.clients is empty"),
    (["federation.cohort=11"], "federation.cohort is 11, but there are 10 clients"),
    (["federation.cohort=0%"], "no client would ever be asked"),
    (
        ["federation.cohort=30%", "federation.min_replies=4"],
        "federation.min_replies is 4, but only 3 clients are asked",
    ),
    (["evaluate.clients=11"], "evaluate.clients is 11, but there are 10 clients"),
    (["partition.per_client=11"], "partition.per_client is 11, but data.playground.skills has 10 categories"),
    (
        ["data.playground.skills=[capitalize]", "partition.method=iid"],
        "names 'capitalize', which is no skill. Did you mean capitalise?",
    ),
    (["data.playground.skills=[quote, quote]", "partition.per_client=1"], "names quote twice"),
    (["data.playground.skills=[]", "partition.method=iid"], "is an empty list"),
    (["partition.method=natural"], "the rows of the playground belong to nobody"),
    (
        ["evaluate.best=rouge_l"],
        "evaluate.best is rouge_l, but evaluate.metrics measures loss, perplexity, exact_match",
    ),
    (["evaluate.best=exact_mach"], "Did you mean exact_match?"),
    (["evaluate.early_stop.metric=rouge_l_std"], "evaluate.early_stop.metric is rouge_l_std, but"),
    (["evaluate.split=validation"], "but data.playground.validation_rows is 0"),
    (["data.playground.test_rows=0"], "but data.playground.test_rows is 0"),
    (["data.source=x.jsonl", "evaluate.forgetting=false", "data.test=0"], "but data.test is 0"),
    (["data.source=x.jsonl", "evaluate.forgetting=false", "evaluate.split=validation"], "but data.validation is 0"),
    (["data.source=x.jsonl", "evaluate.forgetting=false", "data.validation=0.9"], "they leave nothing to train on"),
    (["data.test=0.2"], "the playground has its own rows for it. Set data.playground.test_rows instead."),
    (["adapter=full", "model.dtype=bfloat16"], "model.dtype is bfloat16, but adapter.kind=full"),
    (["model.device=gpu"], "Use auto, cpu, cuda or cuda:N"),
    (["model.revision=main"], "the embedded model `nano` has no revisions"),
    (["data.source=x.jsonl"], "evaluate.forgetting is true, but it scores skills of the playground"),
    (["evaluate.global_source=x.jsonl"], "both would be the split `global`"),
    (["local.accumulate=17"], "local.accumulate is 17, but local.batch_size is 16"),
    (["clients.10.lr=1"], "clients.10 does not exist: the 10 clients are 0 to 9"),
    (["clients.3-1.lr=1"], "is a range from 3 down to 1. Write 1-3."),
    (["clients.1.steps=1", "clients.1.epochs=1"], "clients.1 has both steps and epochs"),
]


@pytest.mark.parametrize("overrides, said", CONTRADICTIONS, ids=[" ".join(given) for given, _ in CONTRADICTIONS])
def test_a_contradiction_is_named_once(overrides, said):
    with pytest.raises(ConfigError) as caught:
        load("quickstart", overrides)
    (problem,) = caught.value.problems
    assert said in problem


SENSIBLE = [
    ["federation.cohort=10", "evaluate.clients=10", "partition.per_client=10"],
    ["federation.cohort=1%", "federation.min_replies=1"],
    ["evaluate.best=exact_match_worst_decile", "evaluate.early_stop.metric=loss_std"],
    ["evaluate.split=validation", "data.playground.validation_rows=5"],
    [
        "data.source=x.jsonl",
        "evaluate.forgetting=false",
        "partition={method: natural, clients: null}",
        "federation.cohort=5000",
    ],
    ["data.source=x.jsonl", "evaluate.forgetting=false", "data.validation=0.4", "data.test=0.5"],
    ["data.source=x.jsonl", "evaluate.forgetting=false", "data.test=0", "data.test_split=validation"],
    ["data.test=0", "model.device=cuda:1", "adapter=full", "model.dtype=float32"],
    ["clients.0-3.lr=1", "clients.2.lr=2", "clients.hospital-7.lr=3"],
    ["algorithm=local"],
    ["algorithm=centralized"],
]


@pytest.mark.parametrize("overrides", SENSIBLE, ids=" ".join)
def test_what_makes_sense_is_let_through(overrides):
    load("quickstart", overrides)


def test_a_configuration_made_in_python_is_checked_by_require():
    assert require(Config()) == Config()
    with pytest.raises(ConfigError, match="dtype is bfloat16"):
        require(Config(adapter=FullConfig(), model=ModelConfig(dtype="bfloat16")))


def test_every_check_is_exercised_above(monkeypatch):
    configs = []
    monkeypatch.setattr(
        importlib.import_module("fedloom.config.load"), "check", lambda config: configs.append(config) or []
    )
    for overrides, _ in CONTRADICTIONS:
        load("quickstart", overrides)
    assert [check.__name__ for check in CHECKS if not any(list(check(config)) for config in configs)] == []
