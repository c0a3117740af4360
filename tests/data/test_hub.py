"""Hugging Face data sets without a network: folders in hub layout, and what is said when nothing can be reached."""

import json

import pytest
from huggingface_hub import constants

from fedloom.data import hub
from fedloom.data.config import DataConfig
from fedloom.data.sources import load
from fedloom.errors import UserError

README = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: train.jsonl
  - split: test
    path: test.jsonl
---
# A set
"""


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def layout(folder, readme=README):
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(readme)
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}", "answer": "a", "level": i, "tokens": ["x"]} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_a_folder_in_hub_layout_is_read_by_split_and_subset(tmp_path):
    source = layout(tmp_path / "org" / "set")
    assert [row.instruction for row in load(DataConfig(source=source), 0).rows] == ["train 0", "train 1", "train 2"]
    assert load(DataConfig(source=source, split="test", subset="main"), 0).rows[0].instruction == "test 0"


def test_an_id_or_a_named_set_is_looked_for_below_the_root_first(tmp_path):
    layout(tmp_path / "openai" / "gsm8k")
    by_name = load(DataConfig(source="gsm8k", root=str(tmp_path)), 0)
    assert by_name.rows == load(DataConfig(source="openai/gsm8k", root=str(tmp_path)), 0).rows
    assert by_name.template == "alpaca"
    assert by_name.rows[0].category is None


def test_columns_nobody_can_mean_are_not_read_but_listed(tmp_path):
    source = layout(tmp_path / "set")
    config = DataConfig(source=source)
    records, present = hub.read_hub(source, None, "train", config.columns)
    assert sorted(records[0]) == ["answer", "question"]
    assert present == ("question", "answer", "level", "tokens")
    with pytest.raises(UserError, match="question, answer, level, tokens"):
        load(DataConfig(source=source, columns=config.columns.model_copy(update={"output": "told"})), 0)


def test_class_labels_become_their_names(tmp_path):
    label = "  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': bad\n          '1': good\n"
    front = f"---\ndataset_info:\n  features:\n  - name: instruction\n    dtype: string\n{label}---\n"
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(front)
    (folder / "train.jsonl").write_text('{"instruction": "i", "label": 1}\n')
    assert load(DataConfig(source=str(folder)), 0).rows[0].output == "good"


@pytest.mark.parametrize(
    "config,says",
    [
        ({"split": "tain"}, ["split 'tain'", "train", "test", "data.split"]),
        ({"subset": "minor"}, ["minor", "main", "data.subset"]),
    ],
)
def test_unknown_splits_and_subsets_list_what_there_is(tmp_path, config, says):
    with pytest.raises(UserError) as error:
        load(DataConfig(source=layout(tmp_path / "set"), **config), 0)
    for words in says:
        assert words in str(error.value)


def test_a_damaged_file_is_an_error_in_words(tmp_path):
    source = layout(tmp_path / "set")
    (tmp_path / "set" / "train.jsonl").write_text('{"question": \n')
    with pytest.raises(UserError, match="is damaged"):
        load(DataConfig(source=source), 0)


@pytest.mark.parametrize("source", ["nobody-at-all/nothing-here", "alpacca"])
def test_without_a_network_the_error_says_what_to_do(source):
    with pytest.raises(UserError) as error:
        load(DataConfig(source=source), 0)
    assert "could not be fetched" in str(error.value)
    assert "data.root" in str(error.value)
    assert ("Did you mean alpaca?" in str(error.value)) is (source == "alpacca")
    assert "Choose one of" not in str(error.value)


@pytest.mark.parametrize("source", ["a/-b-", "a..b"])
def test_an_impossible_id_is_an_error_in_words(source):
    with pytest.raises(UserError):
        load(DataConfig(source=source), 0)


def test_a_folder_is_in_hub_layout_by_its_readme(tmp_path):
    assert hub.is_hub_folder(tmp_path) is False
    (tmp_path / "README.md").write_text("# My data\n\nconfigs: none\n")
    assert hub.is_hub_folder(tmp_path) is False
    (tmp_path / "README.md").write_text(README)
    assert hub.is_hub_folder(tmp_path) is True


def test_names_of_classes_come_from_the_features_and_minus_one_is_none(tmp_path):
    """SST-2 in the hub's layout: its numbers are named as those of a plain copy are."""
    folder = tmp_path / "nyu-mll" / "glue"
    folder.mkdir(parents=True)
    features = "".join(
        f"{line}\n"
        for line in (
            *("dataset_info:", "- config_name: sst2", "  features:", "  - name: sentence", "    dtype: string"),
            *("  - name: label", "    dtype:", "      class_label:", "        names:"),
            *("          '0': negative", "          '1': positive"),
            *("configs:", "- config_name: sst2", "  data_files:", "  - split: train", "    path: train.jsonl"),
        )
    )
    (folder / "README.md").write_text(f"---\n{features}---\n")
    rows = [{"sentence": f"s {i}", "label": label} for i, label in enumerate((1, 0, -1))]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load(DataConfig(source="sst2", root=str(tmp_path)), 0, "labels")
    assert [row.output for row in table.rows] == ["positive", "negative"]
    assert table.labels == ("negative", "positive")
    assert "1 of 3 rows skipped: no label" in table.notes
    (tmp_path / "sst2").mkdir()
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "sst2" / "train.tsv").write_text('sentence\tlabel\n"s" 0 \t1\ns 1 \t0\n')
    plain = load(DataConfig(source="sst2", root=str(tmp_path)), 0, "labels")
    assert [(row.instruction, row.output) for row in plain.rows] == [('"s" 0 ', "positive"), ("s 1 ", "negative")]
