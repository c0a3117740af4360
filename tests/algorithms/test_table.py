"""From the recipe's sections to the page."""

import typing

import pytest
import torch
from pydantic import TypeAdapter

from fedloom.aggregate import config as aggregates
from fedloom.aggregate import robust
from fedloom.aggregate.config import AggregateConfig, ServerSgdConfig
from fedloom.aggregate.server import Adaptive, ServerSgd
from fedloom.algorithms import config as settings
from fedloom.algorithms.config import AlgorithmConfig
from fedloom.algorithms.table import Setting, build, parts
from fedloom.params import Layout, Leaf
from fedloom.runtime.site import Tasks

PAIR = (Leaf("w.A", (2, 4), factor="A", module="w"), Leaf("w.B", (3, 2), factor="B", module="w"))
OTHER = (Leaf("v.A", (2, 4), factor="A", module="v"), Leaf("v.B", (3, 2), factor="B", module="v"))
LAYOUT = Layout.of([*PAIR, *OTHER])
SETTING = Setting(
    LAYOUT, seed=3, rounds=10, cohort=5, lr=0.1, momentum=0.5, density=0.5, levels=(1, 2), ends=("w.A", "w.B")
)
GIVEN = {
    "fedper": {"private": ["*.B"]},
    "fedrep": {"private": ["*.B"]},
    "fedkd": {"teacher": {"name": "teacher"}},
}


def members(union):
    """Classes of a discriminated union."""
    inner, _ = typing.get_args(union)
    return typing.get_args(inner)


def made(name, **aggregate):
    config = TypeAdapter(AlgorithmConfig).validate_python({"name": name, **GIVEN.get(name, {})})
    return build(config, AggregateConfig.model_validate(aggregate), SETTING)


NAMES = [kind.model_fields["name"].default for kind in members(AlgorithmConfig)]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_leads_to_a_page_of_its_own(name):
    page = made(name)
    assert type(page).__name__.lower() in (name.replace("_", ""), f"{name}only")
    model = page.model(page.init(torch.zeros(LAYOUT.size)))
    drifts = name in ("fedkseed", "decomfl", "ferret")
    assert model.x.shape == ((0,) if drifts else (LAYOUT.size,))
    assert (model.drift is not None) == drifts
    assert model.whole == (name not in ("local", "fedper", "fedrep"))
    assert Tasks(page).get("local")


def test_no_two_names_share_a_page():
    assert len({type(made(name)) for name in NAMES}) == len(NAMES) == 22


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_says_of_itself_is_true_of_it(name):
    """A page that takes the server's optimiser has it; one that does not has none to ignore."""
    kind = next(one for one in members(AlgorithmConfig) if one.model_fields["name"].default == name)
    page = made(name, server_optimizer=ServerSgdConfig(lr=0.5))
    assert kind.server == (getattr(page, "server", None) == ServerSgd(0.5))
    assert kind.guarded == hasattr(page, "guard")
    assert (kind.spaces == "any") <= hasattr(page, "space")


@pytest.mark.parametrize("name", NAMES)
def test_state_and_messages_can_travel(name):
    """Every message of every page is declared, so that a wire knows what to expect."""
    for message in Tasks(made(name)).messages("local"):
        assert typing.get_type_hints(message)


def test_the_servers_optimiser_reaches_fedavg():
    assert made("fedavg", server_optimizer=ServerSgdConfig(lr=0.5, momentum=0.9)).server == ServerSgd(0.5, 0.9)
    assert made("fedavg").server == ServerSgd(1.0, 0.0)
    adam = made("fedavg", server_optimizer={"name": "adam", "lr": 0.2, "beta1": 0.8, "v0": 0.0, "form": "early"})
    assert adam.server == Adaptive("adam", 0.2, 0.8, 0.99, 1e-3, 0.0, "early")
    assert made("fedavg", server_optimizer={"name": "yogi"}).server.v0 == "tau2"


@pytest.mark.parametrize("kind", members(aggregates.SpaceConfig))
def test_every_space_is_made_with_what_it_needs(kind):
    space, _, _ = parts(AggregateConfig(space=kind()), SETTING)
    assert type(space).__name__ == kind.__name__.removesuffix("Config")
    assert space.layout is LAYOUT


@pytest.mark.parametrize("kind", members(aggregates.RuleConfig))
def test_every_rule_has_its_guard_and_says_what_it_needs(kind):
    _, _, guard = parts(AggregateConfig(rule=kind()), SETTING)
    if kind is aggregates.MeanConfig:
        assert guard is None
        return
    assert type(guard).__name__ == kind.__name__.removesuffix("Config")
    assert guard.coordinates == kind.coordinates
    assert guard.takes_one == isinstance(guard, robust.Krum)


def test_settings_of_pages_reach_them():
    page = build(settings.FedSwaConfig(start=0.5, every=2, cycle=0.01), AggregateConfig(), SETTING)
    assert (page.start, page.every, page.cycle, page.lr) == (5, 2, 0.01, 0.1)
    assert made("fednova").momentum == 0.5
    assert made("fedbuff").concurrency == 5
    assert build(settings.PFedMeConfig(steps=7, rounds=3), AggregateConfig(), SETTING).rounds == 3
