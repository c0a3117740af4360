"""A deployment's clients: one's own rows are cut as a simulation cuts them; the server has names and no rows."""

import gzip
import json
import random

import pytest

from data.tiny_tokenizers import byte_tokenizer
from fedloom.data.config import ColumnsConfig, DataConfig, NaturalConfig
from fedloom.data.encode import Encoder
from fedloom.data.federated import absent, build, build_own
from fedloom.data.partition import own
from fedloom.data.rows import SPLITS, Row
from fedloom.data.sources import Table
from fedloom.errors import UserError

NAMES = ["site-2", "site-10", "site-11"]
"""In the order of a simulation: numbers in names count as numbers."""
CUT = {"validation": 0.15, "test": 0.25}


def records(site, count, kinds="abc", client=None):
    source = random.Random(site)
    return [
        {
            "instruction": f"{site} {i} {source.random()}",
            "input": source.choice(["", "more"]),
            "output": source.choice(["yes", "no", "", None]) if i else "yes",
            **({"category": source.choice(kinds)} if kinds else {}),
            **({"user": client} if client is not None else {}),
        }
        for i in range(count)
    ]


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows)
    if path.name.endswith(".json"):
        text = json.dumps(rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def sites(folder, kind="jsonl", **how):
    return [written(folder / f"{name}.{kind}", records(name, 17 + 9 * i, **how)) for i, name in enumerate(NAMES)]


def same(one, other):
    """Every row of every split, in order, and every example."""
    assert one.name == other.name
    assert one.sizes == other.sizes
    assert all(one.sizes.values())
    for split in SPLITS:
        assert list(one.rows(split)) == list(other.rows(split))
        assert one.get(split) == other.get(split)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kinds", ["abc", "a", None])
@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz"])
def test_own_rows_are_cut_as_in_a_simulation_over_a_folder(tmp_path, kind, kinds, seed):
    paths = sites(tmp_path / "all", kind, kinds=kinds)
    data, tokenizer = DataConfig(source=str(tmp_path / "all"), **CUT), byte_tokenizer()
    simulated = build(data, NaturalConfig(), seed, tokenizer)
    assert [client.name for client in simulated.clients] == NAMES
    for i, (name, path) in enumerate(zip(NAMES, paths, strict=True)):
        elsewhere = written(tmp_path / "machine" / f"whatever-{i}.{kind}", [])
        elsewhere.write_bytes(path.read_bytes())
        mine = build_own(data.model_copy(update={"source": str(elsewhere)}), seed, tokenizer, name, i)
        same(mine, simulated.clients[i])
        assert mine.here


def test_number_and_seed_matter_and_nothing_else(tmp_path):
    (path, *_) = sites(tmp_path)
    data = DataConfig(source=str(path), **CUT)
    cuts = [
        tuple(build_own(data, seed, byte_tokenizer(), "n", index).rows("test"))
        for seed, index in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert cuts[0] == cuts[1]
    assert len(set(cuts)) == 3


def test_a_column_of_clients_is_not_looked_at_as_in_a_folder_of_files(tmp_path):
    paths = sites(tmp_path, client="somebody")
    data, tokenizer = DataConfig(source=str(tmp_path), **CUT), byte_tokenizer()
    simulated = build(data, NaturalConfig(), 0, tokenizer)
    for i, path in enumerate(paths):
        mine = build_own(data.model_copy(update={"source": str(path)}), 0, tokenizer, NAMES[i], i)
        same(mine, simulated.clients[i])
        assert {row.client for row in mine.rows("train")} == {NAMES[i]}


def test_a_folder_with_one_file_is_that_file(tmp_path):
    path = written(tmp_path / "mine" / "x.jsonl", records("x", 30))
    data = DataConfig(source=str(path), **CUT)
    folder = data.model_copy(update={"source": str(path.parent)})
    same(build_own(folder, 0, byte_tokenizer(), "n", 2), build_own(data, 0, byte_tokenizer(), "n", 2))


def test_a_folder_of_splits_is_read_as_in_a_simulation(tmp_path):
    """The file of `data.split` alone, cut by the fractions; natural needs to know whose rows they are."""
    for split, count in (("train", 40), ("test", 10)):
        written(tmp_path / f"{split}.jsonl", records(split, count, client="n"))
    data = DataConfig(source=str(tmp_path), columns=ColumnsConfig(client="user"), **CUT)
    simulated = build(data, NaturalConfig(), 0, byte_tokenizer())
    mine = build_own(data, 0, byte_tokenizer(), "n", 0)
    same(mine, simulated.clients[0])
    assert any("files are splits" in note for note in mine.notes)
    other = build_own(data.model_copy(update={"split": "test"}), 0, byte_tokenizer(), "n", 0)
    assert sum(other.sizes.values()) < sum(mine.sizes.values()) <= 40


def test_a_relative_source_is_found_in_the_root_too(tmp_path):
    path = written(tmp_path / "mine.jsonl", records("x", 12))
    data = DataConfig(source="mine.jsonl", root=str(tmp_path))
    same_rows = build_own(data.model_copy(update={"source": str(path)}), 0, byte_tokenizer(), "n", 0).rows("train")
    assert build_own(data, 0, byte_tokenizer(), "n", 0).rows("train") == same_rows


def test_notes_say_what_was_made_of_the_file(tmp_path):
    rows = [{"prompt": "q", "answer": "a"}] * 5 + [{"prompt": "q", "answer": None}]
    mine = build_own(DataConfig(source=str(written(tmp_path / "x.jsonl", rows))), 0, byte_tokenizer(), "n", 0)
    assert "column prompt is read as instruction" in mine.notes
    assert any("1 of 6 rows skipped" in note for note in mine.notes)
    assert not any("natural" in note for note in mine.notes)


def test_answers_can_be_changed_as_in_a_simulation(tmp_path):
    (path, *_) = sites(tmp_path)
    mine = build_own(DataConfig(source=str(path)), 0, byte_tokenizer(), "n", 0)
    changed = mine.answered(lambda answers, name: [f"{name}!"] * len(answers))
    assert {row.output for row in changed.rows("train")} == {"n!"}
    assert changed.here


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"limit": 5}, r"data\.limit=5 draws from the rows of all clients"),
        ({"validation": 0.5, "test": 0.5}, "leave no rows to train on"),
        ({"split": "test"}, r"data\.split=test"),
        ({"subset": "x"}, r"data\.subset=x"),
        ({"columns": ColumnsConfig(output="reply")}, r"data\.columns\.output=reply is not a column"),
        ({"max_length": 4}, r"none of \d+ rows tried can be trained on"),
    ],
)
def test_what_cannot_work_for_one_client(tmp_path, changes, words):
    (path, *_) = sites(tmp_path)
    with pytest.raises(UserError, match=words):
        build_own(DataConfig(source=str(path)).model_copy(update=changes), 0, byte_tokenizer(), "n", 0)


@pytest.mark.parametrize("source", ["playground", "gsm8k", "owner/name", "./nowhere.jsonl"])
def test_only_files_and_folders_are_one_s_own(source):
    with pytest.raises(UserError, match=r"there is no such file or folder.*own rows are in a file"):
        build_own(DataConfig(source=source), 0, byte_tokenizer(), "n", 0)


def test_rows_of_several_clients_are_refused(tmp_path):
    sites(tmp_path / "all")
    with pytest.raises(UserError, match=r"3 files .*\(site-10, site-11, site-2\); give the file of client site-2"):
        build_own(DataConfig(source=str(tmp_path / "all")), 0, byte_tokenizer(), "site-2", 0)
    mixed = written(tmp_path / "mixed.jsonl", records("x", 9, client="a") + records("y", 9, client="b"))
    config = DataConfig(source=str(mixed), columns=ColumnsConfig(client="user"))
    with pytest.raises(UserError, match=r"rows of 2 clients by its column user .*: a, b; give the rows of client n"):
        build_own(config, 0, byte_tokenizer(), "n", 0)


def test_a_file_without_a_usable_row(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"instruction": "q", "output": None}])
    with pytest.raises(UserError, match="no row is left to train on"):
        build_own(DataConfig(source=str(path)), 0, byte_tokenizer(), "n", 0)


def test_a_table_that_comes_split_is_nobody_s_own():
    table = Table("t", (Row("q", "", "a"),), ("train",), None)
    with pytest.raises(ValueError, match="comes split"):
        own(table, DataConfig(), 0, "n", 0)


# -- the server


def test_absent_clients_have_names():
    encoder = Encoder(byte_tokenizer(), DataConfig())
    data = absent(NAMES, encoder)
    assert [client.name for client in data.clients] == NAMES
    assert not any(client.here for client in data.clients)
    assert [client.sizes for client in data.clients] == [{"train": 0, "validation": 0, "test": 0}] * 3
    assert (data.name, data.template_name, data.notes, data.holdings) == ("the clients' own data", "chat", (), [])
    assert data.encoder is encoder
    assert data.dropped() == {}


def test_whatever_reads_their_rows_says_where_they_are():
    data = absent(NAMES, Encoder(byte_tokenizer(), DataConfig()))
    one = data.clients[1]
    for read in (
        lambda: one.rows("train"),
        lambda: one.get("test"),
        lambda: one.length("train"),
        lambda: one.answered(lambda answers, name: answers),
    ):
        with pytest.raises(UserError, match="the rows of client site-10 are on its own machine"):
            read()
    with pytest.raises(UserError, match="the rows of client site-2 are on its own machine"):
        data.pooled()
    with pytest.raises(UserError, match="the rows of client site-10 are on its own machine"):
        data.pooled(without=[0])


def test_their_fingerprint_is_over_names():
    encoder = Encoder(byte_tokenizer(), DataConfig())
    prints = [absent(names, encoder).fingerprint() for names in (NAMES, NAMES[:2], NAMES[::-1], ["site-2site-10"], [])]
    assert len(set(prints)) == len(prints)
    assert absent(NAMES, encoder).fingerprint() == prints[0]
