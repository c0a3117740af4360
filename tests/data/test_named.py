"""The table of the field's sets."""

import re

import pytest

from fedloom.data.named import NAMED
from fedloom.data.templates import template_named

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
}


def test_the_fields_sets_are_there():
    assert set(NAMED) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_entry_is_complete(name):
    entry = NAMED[name]
    assert entry.licence
    assert entry.title
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub) if entry.hub else entry.home
    assert entry.columns.instruction
    assert entry.columns.output
    assert template_named(entry.template, None, None, None)
    assert entry.local
    for copy in entry.local:
        assert "train" in copy.files
        assert all(path.endswith((".json", ".jsonl")) for path in copy.files.values())


def test_gsm8k_has_no_category_and_natural_instructions_has_clients():
    assert NAMED["gsm8k"].columns.category is None
    assert NAMED["natural_instructions"].columns.client == "task_name"
    assert NAMED["natural_instructions"].category_of("Question Answering 12.json") == "Question Answering"
    assert NAMED["dolly"].category_of("closed_qa") == "closed_qa"
