"""From configuration to every client's examples."""

import pytest

from data.tiny_tokenizers import byte_tokenizer
from fedloom.data.config import CategoryConfig, DataConfig, IidConfig, NaturalConfig, PlaygroundConfig
from fedloom.data.encode import Encoder
from fedloom.data.federated import ClientRows, Shelf, build, build_rows
from fedloom.data.rows import Row, Turn
from fedloom.errors import UserError

SKILLS = ["quote", "exclaim", "hashtag"]
DATA = DataConfig(playground=PlaygroundConfig(skills=SKILLS, rows=8, test_rows=4))
RING = CategoryConfig(clients=3, per_client=2)


def test_quickstarts_ring_in_small():
    data = build(DATA, RING, 0, byte_tokenizer())
    assert (data.name, data.template_name) == ("playground", "chat")
    assert [client.name for client in data.clients] == ["client-000", "client-001", "client-002"]
    assert [client.sizes for client in data.clients] == [{"train": 8, "validation": 0, "test": 4}] * 3
    assert [set(h["categories"]) for h in data.holdings] == [{SKILLS[i], SKILLS[(i + 1) % 3]} for i in range(3)]
    examples = data.clients[0].get("train")
    assert len(examples) == 8
    assert {example.category for example in examples} == {"quote", "exclaim"}
    assert data.clients[0].get("train") is examples
    assert data.dropped() == {}


def test_the_same_seed_gives_the_same_examples():
    first, again, other = (build(DATA, RING, seed, byte_tokenizer()) for seed in (0, 0, 1))
    assert first.clients[1].get("train") == again.clients[1].get("train")
    assert first.clients[1].get("train") != other.clients[1].get("train")


def test_nothing_is_encoded_before_it_is_asked_for(monkeypatch):
    data = build(DATA, RING, 0, byte_tokenizer())
    monkeypatch.setattr(Encoder, "encode_all", lambda self, rows: pytest.fail("encoded too early"))
    assert data.clients[0].sizes["train"] == 8
    assert len(data.clients[0].rows("test")) == 4


def test_pooled_is_everybody_as_one():
    data = build(DATA, RING, 0, byte_tokenizer())
    pooled = data.pooled()
    assert (pooled.name, pooled.sizes) == ("centralized", {"train": 24, "validation": 0, "test": 12})
    assert pooled.get("train") == [example for client in data.clients for example in client.get("train")]
    assert data.pooled() is pooled


def client(rows, shelf=None, **data):
    return ClientRows("c", {"train": rows}, Encoder(byte_tokenizer(), DataConfig(**data)), shelf)


def test_dropped_rows_are_counted_once():
    rows = [Row("q", "", "a"), Row("q" * 99, "", "a"), Row("q", "", "")]
    one = client(rows, Shelf(0), max_length=20)
    assert one.dropped == {}
    for _ in range(2):
        assert len(one.get("train")) == 1
    assert one.get("validation") == []
    assert one.dropped == {"train": {"overlong": 1, "empty answer": 1}, "validation": {}}
    assert one.sizes["train"] == 3


def test_a_full_shelf_forgets_what_was_used_longest_ago():
    shelf = Shelf(budget=9)  # an example is user q assistant a end: 5 tokens
    example = client([Row("q", "", "a")]).get("train")
    for name in "abc":
        shelf.put((name, "train"), example)
    assert [shelf.get((name, "train")) is None for name in "abc"] == [True, True, False]
    shelf = Shelf(budget=10)
    shelf.put(("a", "train"), example)
    shelf.put(("b", "train"), example)
    shelf.get(("a", "train"))
    shelf.put(("c", "train"), example)
    assert [shelf.get((name, "train")) is None for name in "abc"] == [False, True, False]


def test_rows_of_nobody_stand_under_one_split():
    encoder = Encoder(byte_tokenizer(), DataConfig())
    rows = build_rows([Row("q", "", "a")], encoder, "global")
    assert (rows.name, rows.sizes["test"], len(rows.get("test"))) == ("global", 1, 1)


def test_notes_of_source_and_partition_stand_together(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "q", "answer": "a", "site": "x"}\n' * 3 + '{"prompt": "q", "answer": "a", "site": "y"}\n'
    )
    data = build(DataConfig(source=str(tmp_path / "a.jsonl")), NaturalConfig(min_size=2), 0, byte_tokenizer())
    assert "column prompt is read as instruction" in data.notes
    assert "1 clients with fewer than 2 rows are left out (1 rows)" in data.notes
    assert [c.name for c in data.clients] == ["x"]


def test_data_that_leaves_nothing_to_train_on_is_an_error_at_the_start():
    with pytest.raises(UserError, match=r"none of \d+ rows tried.*overlong.*data\.max_length=4"):
        build(DATA.model_copy(update={"max_length": 4}), RING, 0, byte_tokenizer())


def test_rows_the_template_has_no_place_for_are_an_error_at_the_start(tmp_path):
    turns = [Turn(role, "x") for role in ("user", "assistant", "user", "assistant")]
    text = ", ".join(f'{{"role": "{turn.role}", "content": "{turn.content}"}}' for turn in turns)
    (tmp_path / "a.jsonl").write_text(f'{{"messages": [{text}]}}\n')
    with pytest.raises(UserError, match="1 of 1 rows are conversations"):
        build(DataConfig(source=str(tmp_path / "a.jsonl"), template="plain"), IidConfig(clients=1), 0, byte_tokenizer())
