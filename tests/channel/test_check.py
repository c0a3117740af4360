"""Which replies may count."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fedloom.channel.check import fault
from fedloom.contracts import Message, Weighted


@dataclass(frozen=True)
class Inner:
    t: Tensor
    x: float = 0.0


@dataclass(frozen=True)
class Reply(Message):
    y: Tensor | tuple[Tensor, ...] = field(default_factory=lambda: torch.ones(3))
    number: float = 1.0
    count: int = 3
    flag: bool = True
    text: str = "nan"
    data: bytes = b"nan"
    maybe: float | None = None
    inner: Inner = field(default_factory=lambda: Inner(torch.zeros(2)))
    named: dict[str, Tensor] = field(default_factory=dict)
    several: tuple[float, ...] = ()


@dataclass(frozen=True)
class WeightedReply(Weighted):
    y: Tensor = field(default_factory=lambda: torch.ones(3))


@pytest.mark.parametrize(
    "good",
    [
        Reply(),
        Reply(y=torch.zeros(0)),
        Reply(y=torch.tensor([1e38, -1e-45])),
        Reply(y=torch.tensor([1, 2])),
        Reply(y=torch.tensor([True])),
        Reply(number=-1e308, count=-5),
        WeightedReply(weight=1e-300),
        WeightedReply(weight=1e300),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_finite_replies_count(good, hidden):
    assert fault(good, hidden) is None


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("y", lambda bad: Reply(y=torch.tensor([0.0, bad, 0.0]))),
        ("y", lambda bad: Reply(y=torch.full((2, 2), bad, dtype=torch.bfloat16))),
        ("y[1]", lambda bad: Reply(y=(torch.ones(1), torch.tensor(bad)))),
        ("number", lambda bad: Reply(number=bad)),
        ("maybe", lambda bad: Reply(maybe=bad)),
        ("inner.t", lambda bad: Reply(inner=Inner(torch.tensor([bad])))),
        ("inner.x", lambda bad: Reply(inner=Inner(torch.ones(1), bad))),
        ("named[a.b]", lambda bad: Reply(named={"a": torch.ones(1), "a.b": torch.tensor([bad])})),
        ("several[2]", lambda bad: Reply(several=(1.0, 2.0, bad))),
        ("weight", lambda bad: WeightedReply(weight=bad)),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_one_number_that_is_not_finite_is_enough_and_named(path, make, bad, hidden):
    found = fault(make(bad), hidden)
    assert found is not None
    assert found.reason == "nonfinite"
    assert found.detail.startswith(f"{path} holds")


@pytest.mark.parametrize(
    ("weight", "reason"), [(-1.0, "refused"), (-1e-300, "refused"), (0.0, "failed"), (-0.0, "failed")]
)
def test_weights_that_cannot_count(weight, reason):
    found = fault(WeightedReply(weight=weight))
    assert found is not None
    assert found.reason == reason
    assert "weight" in found.detail


@pytest.mark.parametrize("weight", [-3.5, 0.0])
def test_a_masked_weight_says_nothing(weight):
    """Under a stage that hides, a single weight is noise; only the sum has a sign."""
    assert fault(WeightedReply(weight=weight), hidden=True) is None


def test_a_message_without_weight_needs_none():
    assert fault(Message()) is None


def test_a_number_no_float_can_hold_is_refused_and_not_raised():
    """A client can send an integer of any length; the rules would have to add it up as a float."""
    found = fault(Reply(count=10**400))
    assert found is not None
    assert found.detail.startswith("count")
