"""A client that answers anything: it is never counted, missed once a time, and hurts nobody else."""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch

from fedloom import rng
from fedloom.channel.codec import encode
from fedloom.contracts import Missing, Summary
from fedloom.events import ClientTrained
from fedloom.runtime import letters
from fedloom.runtime.letters import Answer, Declined, Ready, Seen, Wants
from runtime.mailroom_of_memory import Letter
from runtime.puppets import NODE, Other, Puppet, Table, Up, answer, envelope, up, well

HUGE = 10**400
ODD: tuple[Any, ...] = (
    None, True, 0, -1, HUGE, 1.5, "", "x", "é" * 32, "\ud800", [], {}, [[]], {"f": "nan"}, {"t": "0"}, ["x"] * 3
)  # fmt: skip
FIELDS = ("ticket", "summary", "missing", "wrote", "what", "more")
TALLY = ("steps", "skipped", "examples", "tokens", "loss")


def heads(good: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Heads that are none; of each field, everything it cannot be."""
    fine = {"missing": (None,), "wrote": (True,)}
    for name in FIELDS:
        for odd in ODD:
            if not any(odd is one for one in fine.get(name, ())):
                yield {**good, name: odd}
        yield {key: value for key, value in good.items() if key != name} if name in good else {**good, name: 1}
    for name in TALLY:
        for odd in (True, "x", [], {}, {"f": []}, "1e3"):
            yield {**good, "summary": {**good["summary"], name: odd}}
    ticket = good["ticket"]
    for reply in (Seen(ticket), Declined(ticket, "no"), Ready(ticket, {}, {})):
        yield letters.head(reply)
    for nested in (10, 100, 900):
        node: Any = []
        for _ in range(nested):
            node = [node]
        yield {**good, "what": node}
        yield {**good, "summary": node}


def bodies(head: dict[str, Any]) -> Iterator[Callable[[], bytes]]:
    """Bodies that are none, or for something else; made when they are called for."""
    good = encode(up(0), envelope(head))

    def coded(message: Any, **changes: Any) -> Callable[[], bytes]:
        return lambda: encode(message, replace(envelope(head, type(message)), **changes))

    for plain in (b"", b"x", b"\0" * 8, b"\xff" * 64, good[: len(good) // 2], good[:-1], good + b"x"):
        yield partial(bytes, plain)
    for name in ("run", "round", "dispatch", "client", "layout", "config"):
        yield coded(up(0), **{name: 99 if name in ("round", "dispatch", "client") else "x"})
    yield coded(Other(torch.zeros(3)))
    yield lambda: encode(up(0))
    for value in (math.nan, math.inf, -math.inf):
        yield coded(Up(weight=1.0, y=torch.tensor([0.0, value, 1.0])))
        yield coded(Up(weight=value, y=torch.zeros(3)))
    yield coded(Up(weight=-1.0, y=torch.zeros(3)))
    yield coded(Up(weight=0.0, y=torch.zeros(3)))
    length = struct.unpack("<Q", good[:8])[0]
    for place in range(8, 8 + length, 2):
        yield partial(b"\x01".join, [good[:place], good[place + 1 :]])
    table = json.loads(good[8 : 8 + length])
    name = next(key for key in table if key != "__metadata__")
    kinds = [{"dtype": kind} for kind in ("F4", "F8_E8M0", "F8_E4M3", "C64", "U64", "U16", "BOOL", "I8", "x", 7)]
    places = [{"data_offsets": [0, 1 << 62]}, {"data_offsets": [-1, 5]}, {"shape": [1 << 40, 1 << 40]}, {"shape": [-3]}]
    for change in (*kinds, *places, {"shape": []}, {"shape": [3, 1 << 63]}):
        text = json.dumps({**table, name: {**table[name], **change}}).encode()
        yield partial(bytes, struct.pack("<Q", len(text)) + text + good[8 + length :])
        yield partial(bytes, struct.pack("<Q", len(text)) + text)
    for i in range(100):  # noise where the header is
        yield partial(lambda i: bytes(rng.permutation(rng.key(i, "noise"), 200)) + good[200:], i)


def hostile(head: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Callable[[], bytes]]]:
    """Everything, given the head of the task."""
    good = partial(bytes, encode(up(0), envelope(head)))
    yield from ((one, good) for one in heads(answer(head)))
    yield from ((answer(head), one) for one in bodies(head))
    for reason in ("silent", "late", "failed", "nonfinite", "refused"):
        missing: Any = Missing(reason, "on purpose")  # type: ignore[arg-type]
        yield letters.head(Answer(head["ticket"], Summary(), missing, True)), good


COUNT = sum(1 for _ in hostile({"ticket": "t" * 32, "round": 0, "number": 1, "client": 0}))


def test_hundreds_of_hostile_answers_each_missed_once() -> None:
    turn = 0

    def nasty(puppet: Puppet, letter: Letter) -> tuple[dict[str, Any], bytes]:
        said, body = next(islice(hostile(letter.head), turn, None))
        return said, body()

    table = Table({0: nasty}, clients=2)
    table.remote.gather(2)
    for turn in range(COUNT):
        got = table.ask()
        assert got.clients == (1,), turn
        assert torch.equal(got.value.y, torch.ones(3))
        assert [e.client for e in table.missing] == [0], turn
        assert all(event.detail.isprintable() for event in table.missing)
        assert 0 not in table.remote.memories()
        table.events.clear()
    assert COUNT >= 450
    assert table.room.most_held == 1
    assert not table.room.answers
    table.room.sleep(5.0)
    table.remote.gather(2)
    assert table.remote.table.stale == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in TALLY[:-1] for value in (-1, 1 << 60, HUGE)]
    + [("loss", value) for value in (-1, {"f": "inf"}, {"f": "nan"}, 1e308)],
    ids=lambda value: str(value)[:20],
)
def test_a_client_may_lie_about_its_work_without_harm(name: str, value: Any) -> None:
    """What it trained counts; nobody can tell. Sums over clients stay sums."""

    def lies(puppet: Puppet, letter: Letter) -> tuple[dict[str, Any], bytes]:
        head, body = well(puppet, letter)
        return {**head, "summary": {**head["summary"], name: value}}, body

    table = Table({0: lies}, clients=2)
    table.remote.gather(2)
    table.ask()
    traffic = table.hub.traffic
    assert 0 <= traffic.steps < 1 << 52
    assert all(event.steps >= 0 for event in table.events if isinstance(event, ClientTrained))
    assert not math.isnan(traffic.loss_sum)


def test_whoever_always_wants_the_recipe_is_late_in_the_end() -> None:
    table = Table({0: lambda puppet, letter: (letters.head(Wants(letter.head["ticket"])), b"")}, clients=2)
    table.remote.gather(2)
    assert table.ask().clients == (1,)
    assert [event.reason for event in table.missing] == ["late"]
    assert table.room.now < 110


def test_whoever_announces_itself_all_the_time_is_not_asked_without_end() -> None:
    def restless(puppet: Puppet, letter: Letter) -> None:
        puppet.here, puppet.restless = False, 0.0

    table = Table({0: restless}, clients=2)
    table.remote.gather(2)
    assert table.ask().clients == (1,)
    assert table.room.count["letter", NODE] < 110


@pytest.mark.parametrize(
    "head",
    [{}, {"what": "Ready"}, {"what": "Ready", "ticket": 5, "traits": {}, "rows": {}}, {"what": "Answer"}, {"what": []}],
    ids=str,
)
def test_nonsense_in_place_of_joining_keeps_it_out_and_nobody_else(head: dict[str, Any]) -> None:
    table = Table(joins={0: lambda puppet, letter: (head, b"")}, clients=2)
    assert table.remote.gather(2, 20.0) == 1
    assert table.ask().clients == (1,)
    assert sum("site-0 cannot take part" in note for note in table.notes) == 1
