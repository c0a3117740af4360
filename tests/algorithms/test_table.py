"""From the recipe's sections to the page."""

import typing

import pytest
import torch

from fedloom.aggregate.config import AggregateConfig, ServerSgdConfig
from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms.centralized import Centralized
from fedloom.algorithms.config import AlgorithmConfig, CentralizedConfig, FedAvgConfig, LocalOnlyConfig
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.local import LocalOnly
from fedloom.algorithms.table import build
from fedloom.runtime.site import Tasks

PAGES = {FedAvgConfig: FedAvg, LocalOnlyConfig: LocalOnly, CentralizedConfig: Centralized}


def test_every_settings_class_has_a_page():
    union, _ = typing.get_args(AlgorithmConfig)
    assert set(typing.get_args(union)) == set(PAGES)


@pytest.mark.parametrize("config", PAGES)
def test_the_name_leads_to_the_page(config):
    page = build(config(), AggregateConfig())
    assert type(page) is PAGES[config]
    assert (page.model(page.init(torch.zeros(3))) is None) == (config is LocalOnlyConfig)
    assert Tasks(page).get("local")


def test_the_servers_optimiser_reaches_fedavg():
    aggregate = AggregateConfig(server_optimizer=ServerSgdConfig(lr=0.5, momentum=0.9))
    page = build(FedAvgConfig(), aggregate)
    assert isinstance(page, FedAvg)
    assert page.server == ServerSgd(0.5, 0.9)


def test_fedavg_is_plain_unless_said_otherwise():
    page = build(FedAvgConfig(), AggregateConfig())
    assert isinstance(page, FedAvg)
    assert page.server == ServerSgd(1.0, 0.0)


@pytest.mark.parametrize("config", PAGES)
def test_state_and_messages_can_travel(config):
    """Every message of every page is declared, so that a wire knows what to expect."""
    page = build(config(), AggregateConfig())
    for message in Tasks(page).messages("local"):
        assert typing.get_type_hints(message)
