"""The stage: what is packed, what it is a difference to, and what becomes of what was lost."""

import asyncio
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from channel.test_packing import by_numpy, numbers
from fedloom.channel.codec import CodecError, size
from fedloom.channel.config import ChannelConfig
from fedloom.channel.encoding import MEMORY, Encoding, stages
from fedloom.channel.packing import pack, unpack
from fedloom.contracts import ClientFailed, Message, Weighted
from fedloom.rounds import advance
from fedloom.runtime.store import Memory, PendingState
from seam.quadratic import World
from seam.table import made

P = 600


@dataclass(frozen=True)
class Down(Message):
    x: Tensor
    c: Tensor = field(default_factory=lambda: torch.zeros(3, 4))
    round: int = 0


@dataclass(frozen=True)
class Up(Weighted):
    y: Tensor | tuple[Tensor, ...]
    named: dict[str, Tensor] = field(default_factory=dict)
    single: Tensor = field(default_factory=lambda: torch.tensor([0.1]))
    places: Tensor = field(default_factory=lambda: torch.tensor([3, 1]))
    bits: Tensor = field(default_factory=lambda: torch.tensor([7, 255], dtype=torch.uint8))
    loss: float = 0.3
    text: str = "as it is"


class Who:
    """A client that has nothing but a memory."""

    def __init__(self, state: PendingState | None = None) -> None:
        self.state = state or PendingState(Memory())


def sent(stage: Encoding, up: Any, down: Any, who: Any = None) -> Any:
    return asyncio.run(stage.outgoing(up, who or Who(), down))


def there_and_back(stage: Encoding, up: Any, down: Any, who: Any = None) -> Any:
    return stage.incoming(sent(stage, up, down, who), down)


FP16, INT8 = Encoding("fp16"), Encoding("int8")


@pytest.mark.parametrize("stage", [FP16, INT8, Encoding("int8", True)])
def test_only_tensors_of_several_floats_change(stage):
    up = Up(weight=3.0, y=(numbers(P), numbers(8, 1).view(2, 4), torch.zeros(0)), named={"a": numbers(5, 2).double()})
    packed = sent(stage, up, Down(numbers(3)))
    assert all(one.dtype == torch.uint8 for one in (*packed.y[:2], packed.named["a"], packed.bits))
    assert packed.y[2].dtype == torch.float32
    assert torch.equal(packed.places, up.places) and torch.equal(packed.single, up.single)
    back = stage.incoming(packed, Down(numbers(3)))
    assert (back.weight, back.loss, back.text) == (3.0, 0.3, "as it is")
    assert torch.equal(back.bits, up.bits) and back.bits.dtype == torch.uint8
    for one, other in ((up.y[0], back.y[0]), (up.y[1], back.y[1]), (up.named["a"], back.named["a"])):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert float((one - other).abs().max()) <= float(one.abs().max()) / 250


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stage", [FP16, INT8])
def test_the_format_comes_back(stage, dtype):
    y = numbers(P).to(dtype)
    assert there_and_back(stage, Up(weight=1.0, y=y), Down(y)).y.dtype == dtype


def test_weights_are_coded_as_the_way_they_went():
    """y is 1000 times as large as y - x. As it is, int8 would lose more than the training did."""
    x, way = numbers(P), 1e-3 * numbers(P, 1)
    y = x + way
    packed = sent(INT8, Up(weight=1.0, y=y), Down(x))
    assert unpack(packed.y).reference == 1
    back = INT8.incoming(packed, Down(x)).y
    wanted = x + torch.from_numpy(by_numpy((y - x).numpy()))
    assert torch.equal(back, wanted)
    assert float((back - y).norm() / way.norm()) < 0.01
    plain = unpack(pack(y, "int8", y.dtype)).values
    assert float((plain - y).norm() / way.norm()) > 5


@pytest.mark.parametrize("stage", [FP16, INT8])
def test_changes_are_coded_as_they_are(stage):
    """A page that sends y - x itself: there is an x of that shape, but nothing is nearer to a change than zero."""
    assert unpack(sent(stage, Up(weight=1.0, y=1e-3 * numbers(P, 1)), Down(numbers(P))).y).reference == 0


def test_the_nearest_of_several_is_taken():
    """As for SCAFFOLD, whose message down holds x and c."""
    x, c = numbers(P), numbers(P, 1)
    down = Down(x, c)
    packed = sent(INT8, Up(weight=1.0, y=(c + 0.01 * numbers(P, 2), x + 0.01 * numbers(P, 3))), down)
    assert [unpack(one).reference for one in packed.y] == [2, 1]
    assert float((INT8.incoming(packed, down).y[0] - c).norm() / c.norm()) < 0.02


def test_another_shape_or_format_is_no_reference():
    y = numbers(P)
    for other in (y[:-1], y.double(), y.view(2, -1)):
        assert unpack(sent(INT8, Up(weight=1.0, y=y), Down(other)).y).reference == 0


def test_bytes():
    """1 for 4, and 2 for 4; heads and scales are little beside 100,000 numbers."""
    up, down = Up(weight=1.0, y=numbers(100_000)), Down(numbers(100_000))
    whole = size(up)
    assert size(sent(FP16, up, down)) / whole == pytest.approx(0.5, abs=0.01)
    assert size(sent(INT8, up, down)) / whole == pytest.approx(0.25 * (1 + 4 / 256), abs=0.01)


# -- error feedback


def test_what_was_lost_is_added_to_the_next():
    """The recursion of Karimireddy et al. 2019, written out: p = v + e, sent = Q(p), e = p - sent."""
    stage, who, e = Encoding("int8", feedback=True), Who(), numpy.zeros(P, dtype=numpy.float32)
    total, meant = numpy.zeros(P), numpy.zeros(P)
    for round in range(30):
        v = numbers(P, round)
        found = there_and_back(stage, Up(weight=1.0, y=v), Down(torch.zeros(1)), who).y.numpy()
        p = v.numpy() + e
        wanted = by_numpy(p)
        e = p - wanted
        assert numpy.array_equal(found, wanted)
        assert numpy.array_equal(who.state.get(f"{MEMORY}y").numpy(), e)
        total, meant = total + found, meant + v.numpy()
    assert numpy.abs(total - meant).max() <= numpy.abs(e).max() + 1e-4  # all but the last error has arrived


def test_what_was_lost_is_kept_against_a_reference_too():
    """Weights that drift by steps far below what int8 can say of them: the sum of what arrives follows."""
    stage, who = Encoding("int8", feedback=True), Who()
    x, step = torch.zeros(P), 1e-4 * numbers(P).abs()
    step[0] = 1.0  # every block has one large number, so the small ones are lost at first
    step[256], step[512] = 1.0, 1.0
    for _ in range(200):
        x = there_and_back(stage, Up(weight=1.0, y=x + step), Down(x), who).y
    without = there_and_back(INT8, Up(weight=1.0, y=step), Down(torch.zeros(P))).y
    assert float((without - step).norm() / step[1:256].norm()) > 0.9
    assert float((x / 200 - step).abs().max()) < 1.0 / 127 / 200 * 1.01


def test_a_field_has_its_own_memory_and_a_new_shape_begins_anew():
    stage, who = Encoding("int8", feedback=True), Who()
    there_and_back(stage, Up(weight=1.0, y=(numbers(P), numbers(P, 1)), named={"a": numbers(4)}), Down(numbers(1)), who)
    assert who.state.names() == ["channel named[a]", "channel y[0]", "channel y[1]"]
    one = there_and_back(stage, Up(weight=1.0, y=(numbers(7), numbers(P, 1).double())), Down(numbers(1)), who)
    assert torch.equal(one.y[0], there_and_back(INT8, Up(weight=1.0, y=(numbers(7),)), Down(numbers(1))).y[0])


def test_without_feedback_nothing_is_remembered():
    for stage in (FP16, INT8):
        who = Who()
        sent(stage, Up(weight=1.0, y=numbers(P)), Down(numbers(P)), who)
        assert who.state.written == {}


def test_over_many_rounds_differences_and_feedback_keep_the_run_near_the_one_without_encoding(monkeypatch):
    """Least squares, 60 rounds: each of the two choices takes more than half of what is left of the error."""

    def end(*chain: Encoding, cohort: int = 5) -> Tensor:
        row = made(World(cohort=cohort), "fedavg")
        hub = row.world.hub(row.algorithm, stages=chain)
        return advance(row.algorithm, row.algorithm.init(row.world.start()), hub, 60, retries=0).x

    whole = end()
    off = {feedback: float((end(Encoding("int8", feedback)) - whole).norm()) for feedback in (False, True)}
    monkeypatch.setattr("fedloom.channel.encoding._TRIED", 0)
    plain = float((end(INT8) - whole).norm())
    assert off[True] < off[False] / 2 < plain / 20


# -- what cannot be sent


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("stage", [FP16, INT8])
def test_numbers_that_are_not_finite_fail_on_the_client(stage, bad):
    y = numbers(P)
    y[5] = bad
    with pytest.raises(ClientFailed, match="y holds a number that is not finite") as failed:
        sent(stage, Up(weight=1.0, y=y), Down(numbers(P)))
    assert failed.value.missing.reason == "nonfinite"


def test_a_number_beyond_float16_fails_on_the_client():
    with pytest.raises(ClientFailed, match=r"y cannot be sent as fp16: 1e\+05 is too large .*encoding=fp32"):
        sent(FP16, Up(weight=1.0, y=torch.tensor([1.0, 1e5])), Down(numbers(1)))
    x = torch.tensor([1.0, 1e5])
    assert torch.equal(there_and_back(FP16, Up(weight=1.0, y=x), Down(x)).y, x)  # a difference that is small is fine


# -- what is refused


def vector(y: Tensor) -> Up:
    return Up(weight=1.0, y=y, bits=pack(torch.zeros(2, dtype=torch.uint8), "uint8", torch.uint8))


HOSTILE = {
    "as floats": numbers(P),
    "as halves": numbers(P).half(),
    "of the other kind": pack(numbers(P), "fp16", torch.float32),
    "cut off": pack(numbers(P), "int8", torch.float32)[:-1],
    "a reference that was not sent": pack(numbers(P), "int8", torch.float32, reference=2),
    "a reference of another shape": pack(numbers(P - 1), "int8", torch.float32, reference=1),
    "one number": pack(numbers(1), "int8", torch.float32),
    "no number": pack(numbers(0), "int8", torch.float32),
    "any bytes": torch.arange(100, dtype=torch.uint8),
    "a matrix of bytes": torch.zeros(3, 4, dtype=torch.uint8),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_other_end_does_not_make_is_refused_and_the_field_named(name):
    with pytest.raises(CodecError, match=r"^y"):
        INT8.incoming(vector(HOSTILE[name]), Down(numbers(P)))
    good = vector(pack(numbers(P), "int8", torch.float32, reference=1))
    assert INT8.incoming(good, Down(numbers(P))).y.shape == (P,)


# -- from a recipe


def test_the_default_is_no_stage():
    assert stages(ChannelConfig(), feedback=True) == ()


def test_stages_of_a_recipe():
    assert stages(ChannelConfig(encoding="fp16"), True) == (FP16,)
    assert stages(ChannelConfig(encoding="int8"), False) == (INT8,)
    assert stages(ChannelConfig(encoding="int8"), True) == (replace(INT8, feedback=True),)
