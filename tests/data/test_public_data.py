"""Real public sets, where FEDLOOM_DATA names a folder that holds them."""

import pytest

from data.tiny_tokenizers import byte_tokenizer
from fedloom.data.config import CategoryConfig, DataConfig, DirichletConfig, IidConfig, NaturalConfig
from fedloom.data.federated import build
from fedloom.data.partition import plan
from fedloom.data.sources import load
from fedloom.errors import UserError


@pytest.mark.parametrize(
    "name,rows,categories,template",
    [
        ("dolly", 13_438, 8, "alpaca"),
        ("gsm8k", 7_473, 0, "alpaca"),
        ("alpaca", 8_306, 0, "alpaca"),
        ("natural_instructions", 35_987, 76, "alpaca"),
        ("code_alpaca", 4_535, 0, "alpaca"),
        ("code_search_net", 100, 1, "alpaca"),
    ],
)
def test_named_sets_read_whole(public_data, name, rows, categories, template):
    table = load(DataConfig(source=name, root=str(public_data)), 0)
    assert len(table.rows) == rows
    assert len({row.category for row in table.rows} - {None}) == categories
    assert table.template == template
    assert not any(note for note in table.notes if "skipped" in note)


def test_natural_instructions_has_1613_clients_that_cost_nothing_at_the_start(public_data):
    data = build(DataConfig(source="natural_instructions", root=str(public_data)), NaturalConfig(), 0, byte_tokenizer())
    assert len(data.clients) == 1613
    assert [client.name for client in data.clients[:3]] == ["0", "1", "2"]
    assert sum(sum(client.sizes.values()) for client in data.clients) == 35_987
    assert data.dropped() == {}
    assert all(len(held["categories"]) == 1 for held in data.holdings)


def test_dolly_by_its_own_clients_and_by_category(public_data):
    config = DataConfig(source="dolly", root=str(public_data), max_length=4096)
    table = load(config, 0)
    assert sorted(share.name for share in plan(table, NaturalConfig(), config, 0).shares) == [str(i) for i in range(10)]
    ring = plan(table, CategoryConfig(clients=8, per_client=2), config, 0)
    assert all(len({table.rows[i].category for i in (*share.train, *share.test)}) == 2 for share in ring.shares)
    dealt = plan(table, DirichletConfig(clients=10, alpha=0.5), config, 0)
    assert sum(len(s.train) + len(s.validation) + len(s.test) for s in dealt.shares) == len(table.rows)


@pytest.mark.parametrize("name,rows", [("dolly", 80), ("gsm8k", 660), ("natural_instructions", 6_378)])
def test_named_sets_have_a_test_split(public_data, name, rows):
    assert len(load(DataConfig(source=name, root=str(public_data), split="test"), 0).rows) == rows


def test_gsm8k_has_no_categories_to_deal_by(public_data):
    config = DataConfig(source="gsm8k", root=str(public_data))
    with pytest.raises(UserError, match="7473 of 7473 rows of gsm8k have none"):
        plan(load(config, 0), DirichletConfig(), config, 0)
    assert all("####" in row.output and not row.input for row in load(config, 0).rows)


def test_no_prompt_of_a_set_without_input_says_none(public_data):
    tokenizer = byte_tokenizer(None)
    for name in ("gsm8k", "alpaca"):
        data = build(
            DataConfig(source=name, root=str(public_data), limit=200, max_length=4096),
            IidConfig(clients=2),
            0,
            tokenizer,
        )
        for example in data.clients[0].get("train"):
            assert "### Input:\nNone" not in tokenizer.decode(example.prompt)
            assert example.prompt == example.ids[: len(example.prompt)]
            assert tokenizer.decode(example.ids[len(example.prompt) : -1]) == example.answer
