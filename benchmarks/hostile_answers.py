"""What an invited but hostile client answers: bytes that are nearly right, each wrong in one way.

Every kind is a function of what an honest client would send, `Draft`, and of a number that picks one of its sorts.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedloom.channel.codec import Envelope, encode
from fedloom.contracts import Summary
from fedloom.runtime import letters
from fedloom.runtime.letters import Answer, TaskLetter


@dataclass(frozen=True)
class Draft:
    """An answer before it is sent."""

    task: TaskLetter
    envelope: Envelope
    reply: Any
    """The message's class: weight and y."""
    y: Tensor
    """What an honest client would send, [P]."""
    ticket: str
    foreign: str
    """The ticket of another client."""
    head: dict[str, Any] | None = None
    body: bytes | None = None

    def sent(self) -> tuple[dict[str, Any], bytes]:
        """Head and body."""
        head = letters.head(Answer(self.ticket, Summary(steps=3, examples=12, tokens=200, loss=1.0), None, True))
        body = encode(self.reply(weight=12.0, y=self.y), self.envelope)
        return self.head if self.head is not None else head, body if self.body is None else self.body

    def saying(self, y: Any = None, weight: Any = 12.0, **envelope: Any) -> "Draft":
        """With another message."""
        up = self.reply(weight=weight, y=self.y if y is None else y)
        return replace(self, body=encode(up, replace(self.envelope, **envelope)))


def nan(d: Draft, i: int) -> Draft:
    y = d.y.clone()
    y[i % len(y)] = math.nan
    return d.saying(y)


def infinite(d: Draft, i: int) -> Draft:
    y = d.y.clone()
    y[-1 - i % len(y)] = math.inf if i % 2 else -math.inf
    return d.saying(y)


def huge_norm(d: Draft, i: int) -> Draft:
    return d.saying(d.y + (1e4, 1e30, 3e38, -1e8)[i % 4])


def wrong_shape(d: Draft, i: int) -> Draft:
    y = d.y
    shapes = (y[:-1], torch.cat([y, y]), y[None], y[:, None], y[:0], y[0], (y, y), ())
    return d.saying(shapes[i % len(shapes)])


def wrong_round(d: Draft, i: int) -> Draft:
    changes: tuple[dict[str, Any], ...] = (
        {"round": d.envelope.round + 1}, {"round": d.envelope.round - 1}, {"round": 10**30},
        {"dispatch": d.envelope.dispatch + 1}, {"run": "another"}, {"layout": "another"}, {"config": "another"},
        {"schema": "Model(x, carry, whole)"},
    )  # fmt: skip
    return d.saying(**changes[i % len(changes)])


def wrong_ticket(d: Draft, i: int) -> Draft:
    tickets = ("", "0" * 32, d.ticket[:-1], d.ticket.upper() + " ", os.urandom(16).hex(), "ü" * 32)
    return replace(d, ticket=tickets[i % len(tickets)])


def others_ticket(d: Draft, i: int) -> Draft:
    return replace(d, ticket=d.foreign)


def others_number(d: Draft, i: int) -> Draft:
    """In the name of an honest client, or of nobody."""
    return d.saying(client=(0, 1, -1, 10**9)[i % 4])


def nan_weight(d: Draft, i: int) -> Draft:
    return d.saying(weight=(math.nan, math.inf, -math.inf)[i % 3])


def huge_weight(d: Draft, i: int) -> Draft:
    return d.saying(weight=(1e9, 1e300, 1.7e308, 10**400)[i % 4])


def negative_weight(d: Draft, i: int) -> Draft:
    return d.saying(weight=(-1.0, -1e-300, 0.0, -1e308)[i % 4])


def foreign_head(d: Draft, i: int) -> Draft:
    """Not the body, but the letter itself is strange."""
    honest, _ = d.sent()
    summary = honest["summary"]
    heads: tuple[dict[str, Any], ...] = (
        {}, {"what": "Ready"}, {"what": ["Answer"]}, {"what": "TaskLetter", "ticket": d.ticket},
        {**honest, "more": 1}, {**honest, "ticket": None}, {**honest, "ticket": {"f": "nan"}},
        {**honest, "summary": {**summary, "steps": -5}, "missing": {"reason": "other", "detail": ""}},
        {**honest, "summary": {**summary, "loss": {"f": "a lot"}}}, {**honest, "summary": None},
        {**honest, "wrote": "yes"}, {**honest, "missing": {"reason": "failed", "detail": "x" * 200_000}},
        {**honest, "summary": {**summary, "tokens": 1.5}}, {"what": "Seen", "ticket": d.ticket},
        {"what": "Declined", "ticket": d.ticket, "words": "\x1b[2J\n" * 1000},
    )  # fmt: skip
    return replace(d, head=heads[i % len(heads)])


# -- against the codec


def opened(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Safetensors' header, ours in it, and the tensors' bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["fedloom"]), data[8 + length :]


def closed(header: Any, tail: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + tail


def with_body(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Another value where the message's fields are."""
    header, ours, tail = opened(data)
    ours["body"] = change(ours["body"])
    header["__metadata__"]["fedloom"] = json.dumps(ours)
    return closed(header, tail)


def with_text(data: bytes, text: str) -> bytes:
    """Another text where our header is."""
    header, _, tail = opened(data)
    header["__metadata__"]["fedloom"] = text
    return closed(header, tail)


def with_tensor(data: bytes, **change: Any) -> bytes:
    """Another description of the tensor."""
    header, _, tail = opened(data)
    header["0"].update(change)
    return closed(header, tail)


def twice(data: bytes) -> bytes:
    """One name, two tensors: the second would be another shape."""
    header, _, tail = opened(data)
    entry = json.dumps({**header["0"], "shape": [1]})
    return closed(json.dumps(header)[:-1].encode() + b', "0": ' + entry.encode() + b"}", tail)


def deep(levels: int) -> str:
    return '{"format":"fedloom-1","envelope":' + "[" * levels + "]" * levels + "}"


CODEC: tuple[Callable[[bytes], bytes], ...] = (
    lambda b: b"",
    lambda b: b"\0" * 7,
    lambda b: os.urandom(4096),
    lambda b: b[:-1],
    lambda b: b[: len(b) // 2],
    lambda b: b + b"\0" * 8,
    lambda b: closed(opened(b)[0], opened(b)[2], 2**63 - 1),
    lambda b: closed(opened(b)[0], opened(b)[2], 2**64 - 1),
    lambda b: closed(opened(b)[0], opened(b)[2], 9),
    lambda b: closed(opened(b)[0], opened(b)[2], 0),
    twice,
    lambda b: with_tensor(b, dtype="F64"),
    lambda b: with_tensor(b, dtype="I32"),
    lambda b: with_tensor(b, dtype="BOOL"),
    lambda b: with_tensor(b, dtype="F8_E4M3"),
    lambda b: with_tensor(b, dtype=["F32"]),
    lambda b: with_tensor(b, shape=[-1]),
    lambda b: with_tensor(b, shape=[-2, -(len(b) // 8)]),
    lambda b: with_tensor(b, shape=[2**62, 4]),
    lambda b: with_tensor(b, shape=[]),
    lambda b: with_tensor(b, shape=[1] * 10_000),
    lambda b: with_tensor(b, data_offsets=[0, 2**60]),
    lambda b: with_tensor(b, data_offsets=[8, 4]),
    lambda b: with_tensor(b, data_offsets=[-8, 4]),
    lambda b: closed(b"\xff\xfe" + json.dumps(opened(b)[0]).encode(), opened(b)[2]),
    lambda b: closed(json.dumps(opened(b)[0]).encode().replace(b"Result", b"Res\xc3\x28t"), opened(b)[2]),
    lambda b: closed(b"[" * 100_000 + b"]" * 100_000, b""),
    lambda b: with_text(b, deep(100_000)),
    lambda b: with_text(b, "null"),
    lambda b: with_text(b, '{"format":"fedloom-2"}'),
    lambda b: with_text(b, "9" * 5000),
    lambda b: with_body(b, lambda v: None),
    lambda b: with_body(b, lambda v: []),
    lambda b: with_body(b, lambda v: {**v, "more": 1}),
    lambda b: with_body(b, lambda v: {"y": v["y"]}),
    lambda b: with_body(b, lambda v: {**v, "weight": 10**400}),
    lambda b: with_body(b, lambda v: {**v, "weight": {"f": "1e999"}}),
    lambda b: with_body(b, lambda v: {**v, "weight": {"f": ["nan"]}}),
    lambda b: with_body(b, lambda v: {**v, "weight": "12"}),
    lambda b: with_body(b, lambda v: {**v, "weight": True}),
    lambda b: with_body(b, lambda v: {**v, "weight": {"t": "0"}}),
    lambda b: with_body(b, lambda v: {**v, "y": {"t": ["0"]}}),
    lambda b: with_body(b, lambda v: {**v, "y": {"t": "1"}}),
    lambda b: with_body(b, lambda v: {**v, "y": [v["y"]] * 100_000}),
    lambda b: with_body(b, lambda v: {**v, "y": [[v["y"]]]}),
    lambda b: with_body(b, lambda v: {**v, "y": {"d": [[1, 2]]}}),
    lambda b: with_body(b, lambda v: {**v, "y": None}),
    lambda b: b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
)


def against_codec(d: Draft, i: int) -> Draft:
    return replace(d, body=CODEC[i % len(CODEC)](d.sent()[1]))


KINDS: dict[str, Callable[[Draft, int], Draft]] = {
    "a number that is not one": nan,
    "an infinite number": infinite,
    "a huge norm": huge_norm,
    "another shape": wrong_shape,
    "another round, run or class": wrong_round,
    "a wrong ticket": wrong_ticket,
    "another client's ticket": others_ticket,
    "another client's number": others_number,
    "a weight that is no number": nan_weight,
    "a huge weight": huge_weight,
    "a weight of 0 or less": negative_weight,
    "a strange letter": foreign_head,
    "crafted against the codec": against_codec,
}
