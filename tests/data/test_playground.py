"""The playground's promises: every skill generates, splits share nothing, the same seed gives the same rows."""

import os
import random
import subprocess
import sys

import pytest

from fedloom.data.playground import BASE, HELD, QUICKSTART, examples, rows

EVERY = {**BASE, **HELD}


@pytest.mark.parametrize("name", EVERY)
def test_every_skill_generates_distinct_rows(name: str) -> None:
    drawn = rows([name], 20, "train", seed=3)
    assert len(drawn) == 20
    assert all(set(row) == {"instruction", "input", "output", "category"} for row in drawn)
    assert all(row["output"] and row["instruction"] and row["input"] == "" for row in drawn)
    assert {row["category"] for row in drawn} == {name}
    assert len({row["instruction"] for row in drawn}) == 20


@pytest.mark.parametrize("name", EVERY)
def test_splits_share_no_argument(name: str) -> None:
    """The argument is what the phrasing's `{}` became; for fact lists only the whole prompt is held out."""
    skill = EVERY[name]

    def asked(prompt: str) -> set[str]:
        if skill.facts:
            return {prompt}
        sides = [phrasing.split("{}") for phrasing in skill.phrasings]
        return {
            prompt[len(left) : len(prompt) - len(right)]
            for left, right in sides
            if (left or right) and prompt.startswith(left) and prompt.endswith(right)
        } or {prompt}

    splits = {
        split: set().union(*(asked(row["instruction"]) for row in rows([name], 60, split, seed)))
        for split, seed in (("train", 1), ("validation", 2), ("test", 3))
    }
    assert all(splits.values())
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["validation"]
    assert not splits["validation"] & splits["test"]


def test_rows_depend_on_seed_and_split_alone() -> None:
    first = rows(["capitalise", "add"], 15, "train", seed=0)
    assert rows(["capitalise", "add"], 15, "train", seed=0) == first
    assert rows(["add"], 15, "train", seed=0) == first[15:]
    assert rows(["capitalise"], 5, "train", seed=0) == first[:5]
    assert rows(["capitalise", "add"], 15, "train", seed=1) != first


def test_rows_survive_a_new_process() -> None:
    """No salted hash: another process with another PYTHONHASHSEED draws the same rows."""
    code = "from fedloom.data.playground import rows; print(rows(['quote', 'kind', 'topic'], 5, 'test', 7))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "99"},
    )
    assert out.stdout.strip() == str(rows(["quote", "kind", "topic"], 5, "test", 7))


def test_import_needs_no_torch() -> None:
    code = "import sys, fedloom.data.playground; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_exhausted_fact_list_begins_again() -> None:
    """Seven days times eight phrasings are 56 prompts in all, so 200 rows must repeat, in the same order."""
    drawn = [row["instruction"] for row in rows(["day_before"], 200, "train", seed=0)]
    fresh = len(set(drawn))
    assert 35 <= fresh < 56
    assert drawn[fresh : 2 * fresh] == drawn[:fresh]


def test_unknown_skill_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'capitalise'"):
        rows(["capitalize"], 1, "train", 0)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        rows(["add"], 1, "dev", 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count"):
        rows(["add"], -1, "train", 0)
    assert rows(["add"], 0, "train", 0) == []
    assert rows([], 5, "train", 0) == []


def test_groups() -> None:
    assert len(BASE) >= 60
    assert len(HELD) >= 20
    assert not BASE.keys() & HELD.keys()
    assert len(QUICKSTART) == len(set(QUICKSTART)) == 10
    assert set(QUICKSTART) <= HELD.keys()
    assert sum(skill.facts for skill in HELD.values()) <= 2
    assert len({skill.category for skill in EVERY.values()}) == len(EVERY)
    assert all(name == skill.name and skill.category for name, skill in EVERY.items())


def test_phrasings() -> None:
    """Every phrasing takes exactly one argument, and none of a held-back skill is known to the base model."""
    assert all(3 <= len(skill.phrasings) == len(set(skill.phrasings)) for skill in EVERY.values())
    assert all(phrasing.count("{}") == 1 for skill in EVERY.values() for phrasing in skill.phrasings)
    known = {phrasing for skill in BASE.values() for phrasing in skill.phrasings}
    held = [phrasing for skill in HELD.values() for phrasing in skill.phrasings]
    assert len(held) == len(set(held))
    assert not known & set(held)


def test_base_answers_cover_ascii_and_utf8() -> None:
    """No byte a user may type has an untrained embedding: all printable ASCII, the newline, all bytes of UTF-8."""
    seen: set[int] = set()
    for skill in BASE.values():
        for row in rows([skill.name], 400, "train", seed=0):
            seen.update((row["instruction"] + row["output"]).encode())
    impossible = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert {*range(0x20, 0x7F), 0x0A, *range(0x80, 0x100)} - impossible <= seen


@pytest.mark.parametrize(
    ("name", "argument", "answer"),
    [
        ("capitalise", "horse", "Horse"),
        ("drop_first", "horse", "orse"),
        ("mask_vowels", "horse", "h*rs*"),
        ("past_tense", "carry", "carried"),
        ("past_tense", "bake", "baked"),
        ("plural", "fox", "foxes"),
        ("superlative", "warm", "the warmest"),
        ("day_before", "monday", "sunday"),
        ("number_before", "100", "99"),
        ("is_bigger", "9 > 10", "no"),
    ],
)
def test_answers_by_hand(name: str, argument: str, answer: str) -> None:
    rng = random.Random(0)
    drawn = (EVERY[name].make(rng) for _ in range(400_000))
    assert next((given for asked, given in drawn if asked == argument), None) == answer


def test_examples_stay_in_their_split() -> None:
    train = {row["instruction"] for row in rows(["upper"], 300, "train", 0)}
    stream = examples(BASE["upper"], "test", random.Random(0))
    assert not train & {next(stream)[0] for _ in range(300)}
