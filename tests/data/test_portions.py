"""Rows for testing from another split, and rows that belong to nobody."""

import json

import pytest

from data.tiny_tokenizers import byte_tokenizer
from fedloom.data.config import DataConfig, DirichletConfig, IidConfig
from fedloom.data.encode import Encoder
from fedloom.data.federated import absent, build, build_own, build_public
from fedloom.data.sources import load
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError

PARTITION = IidConfig(clients=3)


def rows(name, count):
    made = [{"instruction": f"{name} {i}", "output": "a", "category": "xy"[i % 2]} for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in made)


@pytest.fixture
def folder(tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "train.jsonl").write_text(rows("train", 60))
    (splits / "dev.jsonl").write_text(rows("dev", 20))
    return splits


def texts(client, split="train"):
    return [row.instruction for row in client.rows(split)]


def built(source, **data):
    return build(DataConfig(source=str(source), **data), PARTITION, 0, byte_tokenizer())


def test_another_split_is_dealt_for_testing(folder):
    data = built(folder, test_split="validation", validation=0.1)
    assert sum(client.sizes["test"] for client in data.clients) == 20
    assert sum(client.sizes["validation"] for client in data.clients) == 6
    assert all(text.startswith("dev") for client in data.clients for text in texts(client, "test"))
    held = [text for client in data.clients for split in ("train", "validation") for text in texts(client, split)]
    assert sorted(held) == sorted(f"train {i}" for i in range(60))


def test_test_rows_follow_the_categories_of_the_training_rows(folder):
    partition = DirichletConfig(clients=2, alpha=0.01)
    data = build(DataConfig(source=str(folder), test_split="dev"), partition, 3, byte_tokenizer())
    for client in data.clients:
        assert {row.category for row in client.rows("test")} <= {row.category for row in client.rows("train")}


def test_a_limit_is_for_the_rows_to_train_on(folder):
    data = built(folder, test_split="dev", limit=30)
    assert sum(client.sizes["train"] for client in data.clients) == 30
    assert sum(client.sizes["test"] for client in data.clients) == 20


def test_a_share_of_nothing_makes_way_for_a_split(folder):
    """How a command line takes the share out of a recipe: data.test=0 data.test_split=dev."""
    asked = built(folder, test_split="dev", test=0)
    assert [c.sizes for c in asked.clients] == [c.sizes for c in built(folder, test_split="dev").clients]


@pytest.mark.parametrize(
    "settings,says",
    [
        ({"test_split": "dev", "test": 0.2}, "data.test=0.2 and data.test_split=dev are both set"),
        ({"test_split": "train"}, "is the split that is trained on"),
        ({"test_split": "test"}, "has no split 'test'"),
        ({"public": 0.1, "public_source": "x"}, "are both set; public rows are either"),
        ({"public": 0.999}, "of the 60 training rows of splits are 60; at least one"),
        ({"public": 0.001}, "are 0; at least one"),
        ({"public_source": "nowhere.jsonl"}, "data.public_source=nowhere.jsonl: .*there is no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_words(folder, settings, says):
    with pytest.raises(UserError, match=says):
        built(folder, **settings)


def test_a_share_of_the_training_rows_belongs_to_nobody(folder):
    data = built(folder, public=0.25)
    public = texts(data.public)
    held = [text for client in data.clients for split in ("train", "test") for text in texts(client, split)]
    assert len(public) == 15
    assert sorted([*public, *held]) == sorted(f"train {i}" for i in range(60))
    assert "data.public: 15 of 60 training rows belong to nobody" in data.notes
    assert len(data.public.get("train")) == 15
    assert texts(built(folder, public=0.25).public) == public
    other = build(DataConfig(source=str(folder), public=0.25), PARTITION, 1, byte_tokenizer())
    assert texts(other.public) != public


def test_test_rows_are_never_public(folder):
    data = built(folder, public=0.5, test_split="dev")
    assert all(text.startswith("train") for text in texts(data.public))
    assert len(texts(data.public)) == 30
    playground = DataConfig(public=0.5, playground={"rows": 10, "test_rows": 5})
    data = build(playground, PARTITION, 0, byte_tokenizer())
    assert (data.public.sizes["train"], sum(client.sizes["test"] for client in data.clients)) == (50, 50)


def test_a_source_of_the_servers_own_leaves_the_clients_as_they_are(folder, tmp_path):
    path = tmp_path / "public.jsonl"
    path.write_text(rows("public", 7))
    data, without = built(folder, public_source=str(path)), built(folder)
    assert texts(data.public) == [f"public {i}" for i in range(7)]
    assert [texts(client) for client in data.clients] == [texts(client) for client in without.clients]
    assert without.public is None
    assert data.fingerprint() != without.fingerprint()


def test_classes_of_public_rows_are_in_the_map(tmp_path):
    for name, labels in (("own", "ab"), ("public", "bc")):
        made = [{"text": "t", "label": labels[i % 2]} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    config = DataConfig(source=str(tmp_path / "own.jsonl"), public_source=str(tmp_path / "public.jsonl"))
    data = build(config, PARTITION, 0, byte_tokenizer(), Wanted("labels"))
    assert data.labels == ("a", "b", "c")
    assert {example.label for example in data.public.get("train")} == {1, 2}
    with pytest.raises(UserError, match="have the label 'c', which is not in the label map"):
        build(config, PARTITION, 0, byte_tokenizer(), Wanted("labels", ("a", "b")))


def test_between_machines_only_a_source_of_the_servers_own_works(folder, tmp_path):
    path = tmp_path / "public.jsonl"
    path.write_text(rows("public", 7))
    encoder = Encoder(byte_tokenizer(), DataConfig())
    public = build_public(DataConfig(public_source=str(path)), 0, encoder)
    assert absent(["site"], encoder, public=public).public.sizes["train"] == 7
    assert build_public(DataConfig(), 0, encoder) is None
    with pytest.raises(UserError, match="no machine holds them; give the server a file of its own"):
        build_public(DataConfig(public=0.1), 0, encoder)
    for settings in ({"public": 0.1}, {"test_split": "dev"}):
        with pytest.raises(UserError, match="here every client has its own; leave it out"):
            build_own(DataConfig(source=str(folder), **settings), 0, byte_tokenizer(), "site", 0)
    assert load(DataConfig(source=str(folder)), 0).public == ()
