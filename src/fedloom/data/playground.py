"""The playground: endless small instruction data for the embedded model, made on the spot from our own word lists.

Skills are in `playground_skills`, words in `playground_words`. A prompt's split is a keyed hash of what is asked, so
train, validation and test never share an argument, whoever draws them and with whatever seed.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Final, Literal

from fedloom.data.playground_skills import BASE, HELD, Skill

__all__ = ["BASE", "HELD", "QUICKSTART", "Skill", "Split", "examples", "rows"]

Split = Literal["train", "validation", "test"]

QUICKSTART: Final[tuple[str, ...]] = (
    "capitalise",
    "past_tense",
    "middle_word",
    "brackets",
    "comparative",
    "comma_list",
    "dash_double",
    "hashtag",
    "shout",
    "quote",
)
"""The ten held-back skills of the quickstart recipe, in the order of its ring of clients."""

_KEY: Final = b"fedloom playground split"
_PATIENCE: Final = 500  # fruitless draws in a row after which a skill counts as exhausted


def rows(skills: Sequence[str], count: int, split: Split, seed: int) -> list[dict[str, str]]:
    """`count` rows of every named skill, skill after skill.

    Args:
        skills: names from `BASE` or `HELD`.
        count: rows per skill, at least 0.
        split: whose prompts; the three share no argument (fact lists: no prompt).
        seed: another seed draws other rows of the same split.

    Returns:
        Rows with the keys instruction, input (always empty), output and category (the skill's name). Prompts of one
        skill are distinct as long as the skill has new ones; a fact list that runs out begins again.

    Raises:
        ValueError: an unknown skill or split, or a negative count.
    """
    if count < 0:
        raise ValueError(f"count={count} rows cannot be drawn; give 0 or more")
    chosen = [_find(name) for name in skills]
    return [row for skill in chosen for row in _distinct(skill, count, split, seed)]


def examples(skill: Skill, split: Split, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs of one split, drawn from `rng`, repeats possible."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}; choose train, validation or test")
    while True:
        phrasing = rng.choice(skill.phrasings)
        argument, answer = skill.make(rng)
        prompt = phrasing.replace("{}", argument)
        if _split_of(skill.name, prompt if skill.facts else argument) == split:
            yield prompt, answer


def _distinct(skill: Skill, count: int, split: Split, seed: int) -> list[dict[str, str]]:
    stream = examples(skill, split, random.Random(_key(f"rows/{skill.name}/{split}/{seed}")))
    fresh: dict[str, str] = {}
    fruitless = 0
    while len(fresh) < count and fruitless < _PATIENCE:
        prompt, answer = next(stream)
        fruitless = fruitless + 1 if prompt in fresh else 0
        fresh.setdefault(prompt, answer)
    pairs = list(fresh.items())
    return [
        {"instruction": prompt, "input": "", "output": answer, "category": skill.category}
        for prompt, answer in (pairs[i % len(pairs)] for i in range(count))
    ]


def _split_of(name: str, asked: str) -> Split:
    """80 % train, 10 % validation, 10 % test, by what is asked alone."""
    tenth = _key(f"{name}/{asked}") % 10
    return "test" if tenth == 9 else "validation" if tenth == 8 else "train"


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8, key=_KEY).digest(), "big")


def _find(name: str) -> Skill:
    known: Mapping[str, Skill] = {**BASE, **HELD}
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise ValueError(f"unknown playground skill {name!r}; the nearest is {nearest[0]!r}")
