"""A rule's sums, taken apart and put together, go on as if they had stayed; nothing else travels."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fedloom.aggregate.rules import Max, Mean, Sum, Total
from fedloom.algorithms.hetlora import ByNorm
from fedloom.channel.codec import decode, encode
from fedloom.contracts import Rule
from fedloom.runtime.accumulators import Piece, packed, unpacked
from fedloom.runtime.folding import Fold, Sums
from fedloom.spaces.measure import Measured, Sketch
from seam.quadratic import lora


def vector(seed: int, size: int = 5) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


LAYOUT = lora(2)
HELD = (vector(1, 1), vector(2, 6).reshape(3, 2), vector(3, 6).reshape(2, 3))
RULES: dict[str, tuple[Rule, list[Any]]] = {
    "mean": (Mean(), [vector(1), vector(2)]),
    "mean of bfloat16": (Mean(), [vector(1).bfloat16(), vector(2).bfloat16()]),
    "mean of numbers": (Mean(), [1.5, 0.25]),
    "sum": (Sum(), [vector(1), vector(2)]),
    "max": (Max(), [1.5, 7.0]),
    "measured": (Measured(Mean(), lambda term: term, Sketch()), [vector(1), vector(2)]),
    "by norm": (ByNorm(LAYOUT), [HELD, HELD]),
}


@pytest.mark.parametrize("name", RULES)
def test_sums_that_travelled_are_the_same(name: str) -> None:
    rule, values = RULES[name]
    acc = rule.start()
    for value in values:
        acc = rule.add(acc, value, 2.0)
    there = decode(Sums, encode(Sums((0, 1), 4.0, {"y": packed(acc)})))
    again = rule.merge(rule.start(), unpacked(rule.start(), there.fields["y"]))
    one, other = rule.finish(acc), rule.finish(again)
    assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("name", RULES)
def test_an_empty_sum_travels_too(name: str) -> None:
    rule, _ = RULES[name]
    empty = rule.start()
    assert unpacked(rule.start(), packed(empty)) == empty


@dataclass
class Odd:
    held: Any = None


@pytest.mark.parametrize("held", [{"a": 1}, object(), torch.int64, [Total()]])
def test_what_cannot_travel_is_named(held: Any) -> None:
    with pytest.raises(TypeError, match=r"Odd\.held.*cannot be sent as part of a sum"):
        packed(Odd(held))


def test_numbers_words_and_sequences_travel() -> None:
    held = Odd((1, 2.5, True, "x", None, [3, (4,)], float("inf")))
    assert unpacked(Odd(), packed(held)) == held


def test_sums_of_another_rule_are_refused() -> None:
    with pytest.raises(ValueError, match="more of them came"):
        unpacked(Odd(), packed(Total()))
    with pytest.raises(ValueError, match="incomplete"):
        unpacked(Total(), packed(Odd()))
    with pytest.raises(ValueError, match="no part of a sum"):
        unpacked(Odd(), [Piece("code")])


def test_a_fold_of_parts_is_the_fold_of_all() -> None:
    """Weights 1, 2, 3 on 1, 10, 100: (1 + 20 + 300) / 6; one process got nothing."""
    from dataclasses import make_dataclass

    from fedloom.contracts import Weighted

    Up = make_dataclass("Up", [("y", float)], bases=(Weighted,), frozen=True, kw_only=True)
    parts = []
    for share in ([(0, 1.0), (2, 100.0)], [], [(1, 10.0)]):
        fold = Fold(Mean(), None, ())
        for client, y in share:
            fold.add(client, Up(y=y, weight=client + 1.0))
        parts.append(fold.packed())
    fold = Fold(Mean(), None, ())
    fold.merge(parts)
    got = fold.got({})
    assert (got.clients, got.weight, got.value.y) == ((0, 1, 2), 6.0, 321 / 6)
