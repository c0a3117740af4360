"""Preferences of the playground: never equal, of their own split, and not told apart by length."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data import playground
from fedloom.data.playground_preferences import judged, pairs, slip

ALL = (*playground.BASE, *playground.HELD)


@pytest.mark.parametrize("name", ALL)
def test_every_skill_has_pairs_with_a_wrong_answer(name):
    found = pairs([name], 60, "train", 3)
    rows = playground.rows([name], 60, "train", 3)
    assert [(p["instruction"], p["input"], p["chosen"], p["category"]) for p in found] == [
        (r["instruction"], r["input"], r["output"], r["category"]) for r in rows
    ]
    assert all(p["rejected"].strip() and p["rejected"].strip() != p["chosen"].strip() for p in found)


def test_the_seed_decides_and_skills_do_not_disturb_each_other():
    assert pairs(["quote", "shout"], 20, "test", 1) == pairs(["quote"], 20, "test", 1) + pairs(["shout"], 20, "test", 1)
    assert pairs(["quote"], 20, "test", 1) != pairs(["quote"], 20, "test", 2)
    assert pairs(["quote"], 0, "test", 1) == []


def test_splits_share_no_prompt_and_wrong_answers_are_of_the_split():
    train, test = (pairs(["brackets"], 200, split, 0) for split in ("train", "test"))
    assert not {p["instruction"] for p in train} & {p["instruction"] for p in test}
    others = {p["chosen"] for p in test}
    borrowed = [p["rejected"] for p in test if p["rejected"] in others]
    assert 60 < len(borrowed) < 140  # about half; the others have a slip
    assert not {p["rejected"] for p in test} & {p["chosen"] for p in train}


def test_the_wrong_choice_is_one_of_the_choices():
    found = pairs(["sentiment"], 50, "train", 0)
    assert {(p["chosen"], p["rejected"]) for p in found} == {("positive", "negative"), ("negative", "positive")}


@pytest.mark.parametrize("names", [playground.QUICKSTART, tuple(playground.HELD), tuple(playground.BASE)])
def test_length_alone_does_not_tell(names):
    """Whoever prefers the longer answer, and tosses a coin between equal ones, is right in half of the pairs."""
    found = pairs(names, 200, "train", 0)
    won = [0.5 * (len(p["chosen"]) == len(p["rejected"])) + (len(p["chosen"]) > len(p["rejected"])) for p in found]
    assert sum(won) / len(won) == pytest.approx(0.5, abs=0.02)


def test_judged_answers_are_those_of_pairs_half_of_them_good():
    found, of_pairs = judged(["quote", "shout"], 21, "train", 5), pairs(["quote", "shout"], 21, "train", 5)
    for one, pair in zip(found, of_pairs, strict=True):
        assert one["output"] == pair["chosen" if one["good"] else "rejected"]
        assert (one["instruction"], one["input"], one["category"]) == (pair["instruction"], "", pair["category"])
    assert Counter((one["category"], one["good"]) for one in found) == {
        ("quote", True): 11, ("quote", False): 10, ("shout", True): 11, ("shout", False): 10,
    }  # fmt: skip
    assert [one["good"] for one in found[:6]] != [True, False] * 3


@pytest.mark.parametrize("make", [pairs, judged])
def test_what_does_not_exist_is_refused(make):
    with pytest.raises(ValueError, match="unknown playground skill"):
        make(["quotes"], 1, "train", 0)
    with pytest.raises(ValueError, match="unknown split"):
        make(["quote"], 1, "dev", 0)
    with pytest.raises(ValueError, match="count=-1"):
        make(["quote"], -1, "train", 0)


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 10**6))
def test_a_slip_changes_what_is_said(text, seed):
    found = slip(text, random.Random(seed))
    assert found.strip() and found.strip() != text.strip()
    assert abs(len(found) - len(text)) <= 1
