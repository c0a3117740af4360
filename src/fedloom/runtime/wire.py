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
    """Dispatches and replies as bytes; messages travel in envelopes that name run, round, layout and configuration."""

    def __init__(self, tasks: Tasks, layout: str, config: str, run: str = "") -> None:
        self.tasks, self.layout, self.config, self.run = tasks, layout, config, run
        self._last: tuple[Message, Envelope, bytes] | None = None

    def envelope(self, kind: type, round: int, dispatch: int, client: int) -> Envelope:
        """What a message of this kind must say of itself."""
        return Envelope(schema_of(kind), self.run, round, dispatch, client, self.layout, self.config)

    def down(self, dispatch: Dispatch) -> bytes:
        """The message of a task; that of a whole cohort is encoded once, and is the same object then."""
        kind = self.tasks.messages(dispatch.task)[0]
        envelope = self.envelope(kind, dispatch.round, 0, 0)
        if self._last is None or not same(self._last[0], dispatch.down) or self._last[1] != envelope:
            self._last = dispatch.down, envelope, encode(dispatch.down, envelope)
        return self._last[2]

    def forget(self) -> None:
        """Let go of the message that was encoded last."""
        self._last = None

    def read_down(self, task: str, round: int, data: bytes | memoryview) -> Message:
        """A task's message.

        Raises:
            CodecError: it is not whole, or for another run or round.
        """
        kind = self.tasks.messages(task)[0]
        message: Message = decode(kind, data, self.envelope(kind, round, 0, 0))
        return message

    def up(self, reply: Reply) -> bytes:
        """The message of an answer; nothing where there is none."""
        d = reply.dispatch
        return b"" if reply.up is None else encode(reply.up, self.envelope(type(reply.up), d.round, d.number, d.client))

    def read_up(self, data: bytes | memoryview, dispatch: Dispatch) -> Message:
        """The message of an answer to a task of ours; its tensors may lie in the bytes.

        Raises:
            CodecError: it is not whole, or answers something else.
        """
        kind = self.tasks.messages(dispatch.task)[1]
        envelope = self.envelope(kind, dispatch.round, dispatch.number, dispatch.client)
        message: Message = decode(kind, data, envelope, own=True)
        return message

    def dispatch_frame(self, dispatch: Dispatch) -> tuple[dict[str, Any], bytes]:
        """A task on its way to a client."""
        head = {"what": "task", "number": dispatch.number, "round": dispatch.round, "client": dispatch.client}
        return {**head, "task": dispatch.task}, self.down(dispatch)

    def dispatch(self, head: dict[str, Any], data: bytes) -> Dispatch:
        """The task in a frame."""
        down = self.read_down(head["task"], head["round"], data)
        return Dispatch(head["number"], head["round"], head["client"], head["task"], down)

    def reply_frame(self, reply: Reply) -> tuple[dict[str, Any], bytes]:
        """An answer on its way to the server."""
        head: dict[str, Any] = {
            "what": "reply", "client": reply.dispatch.client, "summary": asdict(reply.summary),
        }  # fmt: skip
        if reply.up is None:
            assert reply.missing is not None
            return {**head, "missing": asdict(reply.missing)}, b""
        return head, self.up(reply)

    def reply(self, head: dict[str, Any], data: bytes, dispatch: Dispatch) -> Reply:
        """The answer in a frame, to a task of ours."""
        summary = Summary(**head["summary"])
        if "missing" in head:
            return Reply(dispatch, None, Missing(**head["missing"]), summary, 0)
        up = self.read_up(data, dispatch)
        return Reply(dispatch, up, None, summary, size(up))
