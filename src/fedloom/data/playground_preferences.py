"""Preferences on the playground: the right answer of a row against a plausible wrong one, made on the spot.

Every prompt of the playground has one right answer, so any other text is wrong. A wrong answer is either the right one
of another row of the same skill and split, or the right one with a single slip (a character replaced, two swapped, one
lost, one doubled; lost and doubled equally often). An answer that several rows share is a choice among a few words,
and its wrong answers are the other choices. Lengths are then alike on both sides: the longer (or the shorter) answer
is the right one about as often as not.
"""

import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from fedloom import rng
from fedloom.data import playground
from fedloom.data.playground import Split

_TRIES: Final = 50
"""Draws of another row's answer before a slip is made instead."""
_ALIKE: Final = (string.digits, string.ascii_lowercase, string.ascii_uppercase, string.punctuation)
"""Characters that stand for one another in a slip."""


def pairs(skills: Sequence[str], count: int, split: Split, seed: int) -> list[dict[str, str]]:
    """`count` pairs of every named skill, skill after skill; the prompts are those of `playground.rows`.

    Args:
        skills: names of skills.
        count: pairs per skill, at least 0.
        split: whose prompts; wrong answers are of the same split.
        seed: another seed draws other pairs.

    Returns:
        Records with the keys instruction, input (always empty), chosen, rejected and category (the skill's name).
        chosen and rejected differ, also where white space at their ends is stripped.

    Raises:
        ValueError: an unknown skill or split, or a negative count.
    """
    return [pair for name in skills for pair in _of_skill(name, count, split, seed)]


def judged(skills: Sequence[str], count: int, split: Split, seed: int) -> list[dict[str, str | bool]]:
    """`count` single answers of every named skill, half of them wrong (rounded down), in mixed order.

    Arguments and errors are those of `pairs`, and so are the answers.

    Returns:
        Records with the keys instruction, input (always empty), output, good and category.
    """
    found: list[dict[str, str | bool]] = []
    for name in skills:
        of_skill = _of_skill(name, count, split, seed)
        good = [i % 2 == 0 for i in range(len(of_skill))]
        _random("judged", name, split, seed).shuffle(good)
        for pair, right in zip(of_skill, good, strict=True):
            answer = pair["chosen"] if right else pair["rejected"]
            found.append(
                {
                    "instruction": pair["instruction"],
                    "input": pair["input"],
                    "output": answer,
                    "good": right,
                    "category": pair["category"],
                }
            )
    return found


def _of_skill(name: str, count: int, split: Split, seed: int) -> list[dict[str, str]]:
    rows = playground.rows([name], count, split, seed)
    draw = _random("pairs", name, split, seed)
    answers = [row["output"] for row in rows]
    prompts = {(row["instruction"], row["output"]) for row in rows}  # a short list of facts begins again
    shared = Counter(answer for _, answer in prompts)
    return [
        {
            "instruction": row["instruction"],
            "input": row["input"],
            "chosen": row["output"],
            "rejected": _wrong(row["output"], answers, shared[row["output"]] > 1, draw),
            "category": row["category"],
        }
        for row in rows
    ]


def _wrong(right: str, answers: Sequence[str], choice: bool, draw: random.Random) -> str:
    """A wrong answer to the row whose answer is `right`; `choice`: it is one of a few that rows share."""
    if choice or draw.random() < 0.5:
        for _ in range(_TRIES):
            other = draw.choice(answers)
            if other.strip() != right.strip():
                return other
    return slip(right, draw)


def slip(text: str, draw: random.Random) -> str:
    """The text, not empty, with one slip of the pen; it differs also where white space at the ends is stripped."""
    changes: list[Callable[[str, random.Random], str]] = [_replaced]
    if len(text) > 1:
        changes += [_swapped, _lost, _doubled]
    for _ in range(_TRIES):
        found = draw.choice(changes)(text, draw)
        if found.strip() and found.strip() != text.strip():
            return found
    return f"{text}." if text.strip().endswith(",") else f"{text},"  # nothing but a few equal spaces and signs


def _replaced(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text))
    like = next((group for group in _ALIKE if text[at] in group), string.ascii_lowercase)
    return text[:at] + draw.choice(like) + text[at + 1 :]


def _swapped(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) - 1)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _lost(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text))
    return text[:at] + text[at + 1 :]


def _doubled(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text))
    return text[:at] + text[at] + text[at:]


def _random(purpose: str, name: str, split: Split, seed: int) -> random.Random:
    return random.Random(rng.key(seed, "playground", purpose, name, split))
