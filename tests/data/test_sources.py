"""From `data.source` to a table."""

import json
from pathlib import Path

import pytest

from fedloom.data import hub
from fedloom.data.config import ColumnsConfig, DataConfig, PlaygroundConfig
from fedloom.data.rows import Row
from fedloom.data.sources import load
from fedloom.errors import UserError

ROWS = [{"instruction": f"i{i}", "output": f"o{i}", "category": "ab"[i % 2]} for i in range(10)]


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_is_a_table(tmp_path):
    table = load(DataConfig(source=jsonl(tmp_path / "mine.jsonl")), 0)
    assert table.name == "mine"
    assert table.rows[3] == Row("i3", "", "o3", "b")
    assert (table.split_of, table.template, table.notes) == (None, None, ())


def test_a_path_may_be_relative_to_the_home_or_the_root(tmp_path, monkeypatch):
    jsonl(tmp_path / "mine.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(DataConfig(source="~/mine.jsonl"), 0).rows) == 10
    assert len(load(DataConfig(source="mine.jsonl", root=str(tmp_path)), 0).rows) == 10


def test_files_of_a_folder_are_clients(tmp_path):
    for name in ("site-b", "site-a"):
        jsonl(tmp_path / f"{name}.jsonl", ROWS[:2])
    table = load(DataConfig(source=str(tmp_path)), 0)
    assert [row.client for row in table.rows] == ["site-a", "site-a", "site-b", "site-b"]


def test_limit_draws_rows_from_the_seed_in_the_order_of_the_file(tmp_path):
    source = jsonl(tmp_path / "mine.jsonl")
    first = load(DataConfig(source=source, limit=4), 0)
    assert len(first.rows) == 4
    assert list(first.rows) == sorted(first.rows, key=lambda row: row.instruction)
    assert first == load(DataConfig(source=source, limit=4), 0)
    assert any(first.rows != load(DataConfig(source=source, limit=4), seed).rows for seed in range(1, 5))
    assert "data.limit: 4 of 10 rows drawn" in first.notes
    assert load(DataConfig(source=source, limit=99), 0).notes == ()


def test_notes_tell_other_names_and_skipped_rows(tmp_path):
    source = jsonl(tmp_path / "mine.jsonl", [{"prompt": "i", "answer": "o"}, {"prompt": "i", "answer": None}])
    assert load(DataConfig(source=source), 0).notes == (
        "column prompt is read as instruction",
        "column answer is read as output",
        "1 of 2 rows skipped: no answer",
    )


@pytest.mark.parametrize(
    "config,says",
    [
        ({"source": "./none.jsonl"}, ["./none.jsonl", "no such file or folder", "looked in"]),
        ({"source": "/nowhere/at/all"}, ["no such file or folder"]),
        ({"source": "a b"}, ["no such file or folder"]),
        ({"source": "MINE", "split": "test"}, ["data.split=test", "has no splits"]),
        ({"source": "MINE", "subset": "main"}, ["data.subset=main"]),
        (
            {"source": "MINE", "columns": ColumnsConfig(output="told")},
            ["data.columns.output=told", "instruction, output, category"],
        ),
        ({"source": "EMPTY"}, ["no row is left", "1 of 1 rows skipped: no output"]),
        ({"source": "dolly", "root": "/nowhere"}, ["data.root=/nowhere is no folder"]),
        (
            {"source": "rosetta_alpaca"},
            ["not on the Hugging Face hub", "sahil280114/codealpaca", "rosetta_alpaca.json"],
        ),
        ({"subset": "x"}, ["data.subset is for files"]),
        ({"split": "test"}, ["data.split is for files"]),
        ({"test": 0.3}, ["data.test=0.3", "data.playground.test_rows"]),
        ({"validation": 0.3}, ["data.playground.validation_rows"]),
        ({"columns": ColumnsConfig(input="x")}, ["data.columns is for files"]),
        ({"playground": PlaygroundConfig(skills=["qoute"])}, ["'qoute' is no skill", "Did you mean quote?"]),
        ({"playground": PlaygroundConfig(skills=[])}, ["empty list"]),
        ({"playground": PlaygroundConfig(skills=["quote", "quote"])}, ["quote more than once"]),
    ],
)
def test_what_cannot_work_is_an_error_in_words(tmp_path, config, says):
    mine = {
        "MINE": jsonl(tmp_path / "mine.jsonl"),
        "EMPTY": jsonl(tmp_path / "empty.jsonl", [{"instruction": "i", "output": None}]),
    }
    config = {**config, "source": mine.get(config.get("source"), config.get("source", "playground"))}
    with pytest.raises(UserError) as error:
        load(DataConfig(**config), 0)
    for words in says:
        assert words in str(error.value)


def test_the_playground_comes_split():
    config = DataConfig(
        playground=PlaygroundConfig(skills=["quote", "exclaim"], rows=5, validation_rows=2, test_rows=3)
    )
    table = load(config, 0)
    assert table.split_of == ("train",) * 10 + ("validation",) * 4 + ("test",) * 6
    assert {row.category for row in table.rows} == {"quote", "exclaim"}
    assert table == load(config, 0)
    assert table != load(config, 1)


@pytest.mark.parametrize("group,count", [("quickstart", 10), ("held", None), ("base", None)])
def test_groups_of_skills(group, count):
    from fedloom.data import playground

    table = load(DataConfig(playground=PlaygroundConfig(skills=group, rows=1, test_rows=0)), 0)
    skills = {"quickstart": playground.QUICKSTART, "held": playground.HELD, "base": playground.BASE}[group]
    assert len(table.rows) == len(skills) == (count or len(skills))


def test_a_named_sets_plain_copy_is_read_from_the_root(tmp_path):
    (tmp_path / "dolly").mkdir()
    row = {"instruction": "i", "context": "x", "response": "o", "category": "qa"}
    jsonl(tmp_path / "dolly" / "train.jsonl", [row])
    jsonl(tmp_path / "dolly" / "test.jsonl", [{**row, "context": ""}])
    table = load(DataConfig(source="dolly", root=str(tmp_path)), 0)
    assert table.rows == (Row("i", "x", "o", "qa"),)
    assert table.template == "alpaca"
    assert f"dolly is read from {Path(tmp_path / 'dolly' / 'train.jsonl')}" in table.notes
    assert load(DataConfig(source="dolly", root=str(tmp_path), split="test"), 0).rows[0].input == ""


def test_a_split_that_the_root_has_not_is_named_with_those_it_has(tmp_path, monkeypatch):
    """Without a network, the hub's word alone would hide that the files are there."""
    (tmp_path / "hh_rlhf").mkdir()
    (tmp_path / "hh_rlhf" / "harmless_base_test.jsonl").write_text("{}\n")

    def unreachable(*args, **kwargs):
        raise UserError("it could not be fetched")

    monkeypatch.setattr(hub, "read_hub", unreachable)
    with pytest.raises(UserError, match=r"no copy of split train of hh_rlhf, only of test \(data.split=test\); it"):
        load(DataConfig(source="hh_rlhf", root=str(tmp_path)), 0, "pairs")
    with pytest.raises(UserError, match=r"no copy of split train of sst2; it could not be fetched"):
        load(DataConfig(source="sst2", root=str(tmp_path)), 0, "labels")


def test_numbers_that_a_source_puts_behind_its_categories_are_cut(tmp_path):
    (tmp_path / "natural_instructions").mkdir()
    row = {"instruction": "i", "input": "x", "output": "o", "category": "Question Generation 17.json", "client_id": 4}
    jsonl(tmp_path / "natural_instructions" / "train.jsonl", [row])
    table = load(DataConfig(source="natural_instructions", root=str(tmp_path)), 0)
    assert table.rows == (Row("i", "x", "o", "Question Generation", "4"),)
