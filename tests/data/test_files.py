"""Every kind of file, gzipped and not, and what is said about damaged ones."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fedloom.data.files import OWNER, TableForm, read_file, read_folder, stem_of
from fedloom.errors import UserError

ROWS = [
    {"instruction": 'say "hi", please', "input": "", "output": "hi"},
    {"instruction": "two\nlines\tand a tab", "input": "ä 日本", "output": "x\u2028y"},
]


def write(path: Path, kind: str) -> None:
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS) + "\n\n", encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            table.writerows(ROWS)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_reads_back_what_was_written(tmp_path, kind, packed):
    path = tmp_path / f"site.a.{kind}"
    write(path, kind)
    if packed:
        path = path.rename(path) and path
        gz = path.with_name(path.name + ".gz")
        gz.write_bytes(gzip.compress(path.read_bytes()))
        path = gz
    assert read_file(path) == ROWS
    assert stem_of(path) == "site.a"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": 1, "data": ROWS}),
        "\n".join(json.dumps(r) for r in ROWS),
        "\ufeff" + json.dumps(ROWS),
        "\r\n".join(json.dumps(r) for r in ROWS) + "\r\n",
    ],
)
def test_json_also_holds_data_or_lines(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_file(path) == ROWS


def test_a_single_json_line_is_one_row(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0]))
    assert read_file(tmp_path / "a.json") == [ROWS[0]]


def test_json_by_client_names_the_owner(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"ann": [ROWS[0]], "bo": [ROWS[1], ROWS[0]]}))
    assert [r[OWNER] for r in read_file(tmp_path / "a.json")] == ["ann", "bo", "bo"]


def test_a_long_field_is_no_error_and_the_limit_is_restored(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("instruction,output\n" + "x" * 200_000 + ",y\n")
    assert len(read_file(tmp_path / "a.csv")[0]["instruction"]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "name,content,says",
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ["a.jsonl, line 2", "not JSON"]),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ["line 2", "must be an object"]),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', ["a.json, line 2", "not JSON"]),
        ("a.json", b'{"a": 1}\n{"b": \n', ["a.json, line 2", "not JSON"]),
        ("a.json", b'[{"a": 1}, 2]', ["row 2", "must be an object"]),
        ("a.json", b'{"a": [1], "b": {}}', ["one object with the keys a, b"]),
        ("a.json", b"3", ["holds int"]),
        ("a.json", b"[]", ["no rows"]),
        ("a.json", b"{}", ["(none)"]),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", ["a.csv, line 3", "3 fields", "the header has 2 (a, b)"]),
        ("a.tsv", b"a\tb\n1\n", ["a.tsv, line 2", "1 fields"]),
        ("a.csv", b'a,b\n"x,2\n1,2\n', ["a.csv, line", "double quotes"]),
        ("a.csv", b"a,a\n1,2\n", ["different, non-empty column names", "'a, a'"]),
        ("a.csv", b"a,b\n", ["no rows"]),
        ("a.jsonl", b"", ["is empty"]),
        ("a.jsonl", b"\n  \n", ["is empty"]),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ["a.jsonl, line 2", "byte 0xff is not UTF-8"]),
        ("a.csv", b"a,b\n1,\xe4\n", ["a.csv, line 2", "0xe4"]),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9],
            ["not a whole gzip file"],
        ),  # the same name on every worker
        ("a.jsonl.gz", b'{"a": 1}\n', ["not a whole gzip file"]),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), ["is empty"]),
        ("a.parquet", b"PAR1 no such thing", ["not a whole parquet file"]),
        ("a.txt", b"x", ["no data file fedloom reads", ".parquet"]),
    ],
)
def test_damage_is_named_with_its_place(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_file(path)
    for words in says:
        assert words in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        read_file(tmp_path / "none.jsonl")


def test_a_folder_gives_each_files_rows_their_owner_in_order_of_names(tmp_path):
    for name in ("b.jsonl", "a.csv"):
        write(tmp_path / name, name[2:])
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    loaded = read_folder(tmp_path, "train")
    assert [r[OWNER] for r in loaded.records] == ["a", "a", "b", "b"]
    assert "2 files" in loaded.notes[0]


def test_a_folder_of_splits_gives_the_split_asked_for(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": "train"}\n')
    (tmp_path / "dev.jsonl").write_text('{"a": "dev"}\n')
    assert read_folder(tmp_path, "train").records == [{"a": "train"}]
    assert read_folder(tmp_path, "validation").records == [{"a": "dev"}]
    assert "dev.jsonl, train.jsonl" in read_folder(tmp_path, "train").notes[0]
    with pytest.raises(UserError, match=r"no split 'test'.*dev\.jsonl, train\.jsonl"):
        read_folder(tmp_path, "test")


def test_folders_that_cannot_work_are_errors(tmp_path):
    with pytest.raises(UserError, match="holds no data file"):
        read_folder(tmp_path, "train")
    write(tmp_path / "site-a.jsonl", "jsonl")
    with pytest.raises(UserError, match="not named after splits"):
        read_folder(tmp_path, "test")


def test_tables_without_a_header_and_with_quotes_that_are_text(tmp_path):
    path = tmp_path / "in.tsv"
    path.write_text('a\t1\t"Yes", she said\nb\t0\t"open\n')
    form = TableForm(header=("source", "label", "sentence"), quoted=False)
    assert read_file(path, form) == [
        {"source": "a", "label": "1", "sentence": '"Yes", she said'},
        {"source": "b", "label": "0", "sentence": '"open'},
    ]
