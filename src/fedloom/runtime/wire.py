"""Frames on a pair of pipes: a line of JSON that says what it is and how many bytes follow, then the bytes."""

import json
from dataclasses import asdict
from typing import IO, Any

from fedloom.channel.codec import Envelope, decode, encode, schema_of, size
from fedloom.contracts import Message, Missing, Summary
from fedloom.runtime.folding import same
from fedloom.runtime.site import Dispatch, Reply, Tasks


class WireClosed(EOFError):
    """The other side is gone."""


def write_frame(pipe: IO[bytes], head: dict[str, Any], data: bytes = b"") -> None:
    """Send one frame."""
    pipe.write(json.dumps({**head, "bytes": len(data)}).encode() + b"\n" + data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Receive one frame.

    Raises:
        WireClosed: the pipe ended, between frames or inside one.
    """
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise WireClosed("the other process closed its end")
    head = json.loads(line)
    data = pipe.read(head["bytes"])
    if len(data) != head["bytes"]:
        raise WireClosed(f"the other process ended inside a message ({len(data)} of {head['bytes']} bytes)")
    return head, data


class Marshal:
    """Dispatches and replies as frames; messages travel in envelopes that name run, round, layout and configuration."""

    def __init__(self, tasks: Tasks, layout: str, config: str) -> None:
        self.tasks, self.layout, self.config = tasks, layout, config
        self._last: tuple[Message, Envelope, bytes] | None = None

    def envelope(self, kind: type, round: int, dispatch: int, client: int) -> Envelope:
        """What a message of this kind must say of itself."""
        return Envelope(schema_of(kind), "", round, dispatch, client, self.layout, self.config)

    def dispatch_frame(self, dispatch: Dispatch) -> tuple[dict[str, Any], bytes]:
        """A task on its way to a client; the message of a whole cohort is encoded once."""
        kind = self.tasks.messages(dispatch.task)[0]
        envelope = self.envelope(kind, dispatch.round, 0, 0)
        if self._last is None or not same(self._last[0], dispatch.down) or self._last[1] != envelope:
            self._last = dispatch.down, envelope, encode(dispatch.down, envelope)
        head = {"what": "task", "number": dispatch.number, "round": dispatch.round, "client": dispatch.client}
        return {**head, "task": dispatch.task}, self._last[2]

    def dispatch(self, head: dict[str, Any], data: bytes) -> Dispatch:
        """The task in a frame."""
        kind = self.tasks.messages(head["task"])[0]
        down: Message = decode(kind, data, self.envelope(kind, head["round"], 0, 0))
        return Dispatch(head["number"], head["round"], head["client"], head["task"], down)

    def reply_frame(self, reply: Reply) -> tuple[dict[str, Any], bytes]:
        """An answer on its way to the server."""
        d = reply.dispatch
        head: dict[str, Any] = {"what": "reply", "client": d.client, "summary": asdict(reply.summary)}
        if reply.up is None:
            assert reply.missing is not None
            return {**head, "missing": asdict(reply.missing)}, b""
        return head, encode(reply.up, self.envelope(type(reply.up), d.round, d.number, d.client))

    def reply(self, head: dict[str, Any], data: bytes, dispatch: Dispatch) -> Reply:
        """The answer in a frame, to a task of ours."""
        summary = Summary(**head["summary"])
        if "missing" in head:
            return Reply(dispatch, None, Missing(**head["missing"]), summary, 0)
        kind = self.tasks.messages(dispatch.task)[1]
        up: Message = decode(kind, data, self.envelope(kind, dispatch.round, dispatch.number, dispatch.client))
        return Reply(dispatch, up, None, summary, size(up))
