"""The table of the field's sets."""

import re

import pytest

from fedloom.data.named import NAMED
from fedloom.data.named_more import sentiments
from fedloom.data.templates import template_named
from fedloom.errors import UserError

EXPECTED = {
    *("alpaca", "alpaca_cleaned", "alpaca_gpt4", "dolly", "gsm8k", "code_alpaca", "rosetta_alpaca", "code_search_net"),
    *(
        "natural_instructions",
        "finance_alpaca",
        "fingpt_sentiment",
        "medical_flashcards",
        "math_instruct",
        "evol_instruct",
    ),
    *("sst2", "cola", "fpb", "fiqa", "hh_rlhf", "ultrafeedback"),
}


def test_the_fields_sets_are_there():
    assert set(NAMED) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_entry_is_complete(name):
    entry = NAMED[name]
    assert entry.licence
    assert entry.title
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub) if entry.hub else entry.home
    needed = {"answers": ("instruction", "output"), "labels": ("instruction", "label"), "pairs": ("chosen", "rejected")}
    assert all(getattr(entry.columns, meaning) for meaning in needed[entry.kind])
    assert (entry.labels is not None) is (entry.kind == "labels")
    assert template_named(entry.template, None, None, None)
    assert entry.local
    assert "train" in entry.local[0].files
    for copy in entry.local:
        paths = [path for paths in copy.files.values() for path in paths]
        assert all(path.endswith((".json", ".jsonl", ".tsv")) for path in paths)


def test_gsm8k_has_no_category_and_natural_instructions_has_clients():
    assert NAMED["gsm8k"].columns.category is None
    assert NAMED["natural_instructions"].columns.client == "task_name"
    assert NAMED["natural_instructions"].category_of("Question Answering 12.json") == "Question Answering"
    assert NAMED["dolly"].category_of("closed_qa") == "closed_qa"


def test_scores_of_fiqa_become_three_classes_at_a_tenth():
    scores = {"-0.101": "negative", "-0.1": "neutral", "0.0999": "neutral", "0.1": "positive"}
    record = {"sentence": "s", "info": [{"target": "t", "sentiment_score": score} for score in scores]}
    made = sentiments(record)
    assert [row["label"] for row in made] == list(scores.values())
    assert {row["sentence"] for row in made} == {"s"}
    assert sentiments({"sentence": "s", "target": "t", "sentiment_score": -0.5})[0]["label"] == "negative"  # the hub's
    with pytest.raises(UserError, match="sentiment_score None is no number"):
        sentiments({"sentence": "s"})
