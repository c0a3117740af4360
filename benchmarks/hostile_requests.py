"""What strangers and hostile clients send to the server's port, beside answers: plain HTTP over TLS."""

import base64
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, public_key_to_bytes, sign_message

from fedloom.deployment.certificates import node_keys
from fedloom.runtime.flower.guard import LARGEST

FLEET = (
    "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab",
    "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
INSIDE = (
    "/v1/control/start-run", "/v1/control/register-node", "/v1/control/stop-run", "/v1/runtime/acquire-task",
    "/v1/runtime/pull-messages", "/v1/runtime/push-messages", "/docs", "/openapi.json", "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
)  # fmt: skip
RECORDER = """
import json, os, httpx
real = httpx.Client.send
def send(self, request, **more):
    with open(os.environ["FEDLOOM_TRIAL_TAPE"], "a") as tape:
        head = [[name, value] for name, value in request.headers.items()]
        print(json.dumps([request.url.path, head, request.content.hex()]), file=tape)
    return real(self, request, **more)
httpx.Client.send = send
"""
"""A `sitecustomize` module for honest clients: somebody overhears all they say."""


@dataclass(frozen=True)
class Key:
    """A private key and the number of its node."""

    private: str
    node: int = 0

    def headers(self) -> dict[str, str]:
        """A signature of now, as a node shows it."""
        key = bytes_to_private_key(self.private.encode())
        when = now().isoformat()
        shown = {"public-key": public_key_to_bytes(key.public_key()), "signature": sign_message(key, when.encode())}
        return {f"flwr-{n}": base64.b64encode(v).decode() for n, v in shown.items()} | {"flwr-timestamp": when}


class Wire:
    """Sends, and counts what comes back."""

    def __init__(self, port: int, ca: Path) -> None:
        self._url = f"https://127.0.0.1:{port}"
        self._client = httpx.Client(verify=ssl.create_default_context(cafile=str(ca)), timeout=20)
        self.seen: dict[str, dict[str, int]] = {}

    def send(self, kind: str, path: str, body: Any, headers: Any = None, method: str = "POST") -> None:
        """One request; nobody cares what it says, only with what status it is answered."""
        shown = {"content-type": "application/protobuf"} if headers is None else headers
        try:
            outcome = str(self._client.request(method, self._url + path, content=body, headers=shown).status_code)
        except httpx.TransportError:
            outcome = "cut off"
        counts = self.seen.setdefault(kind, {})
        counts[outcome] = counts.get(outcome, 0) + 1


Sender = Callable[[Wire, str, int], None]


def random_bytes(wire: Wire, kind: str, i: int) -> None:
    wire.send(kind, f"/v1/fleet/{FLEET[i % len(FLEET)]}", os.urandom(1 + 37 * i % 5000))


def truncated(wire: Wire, kind: str, i: int) -> None:
    body = real_bodies(7)[i % 6]
    wire.send(kind, f"/v1/fleet/{FLEET[3 + i % 2]}", body[: len(body) * (1 + i % 9) // 10])


def oversized(wire: Wire, kind: str, i: int) -> None:
    """Too long by a little, of no length, or twice too long."""
    if i % 3 == 0:
        wire.send(kind, "/v1/fleet/push-object", bytes(LARGEST + 1 + i))
    elif i % 3 == 1:
        wire.send(kind, "/v1/fleet/push-object", iter([bytes(1 << 16)] * 3))
    else:
        wire.send(kind, "/v1/fleet/pull-messages", bytes(2 * LARGEST))


def foreign_key(wire: Wire, kind: str, i: int) -> None:
    key = Key(node_keys()[0], 7)
    headers = {"content-type": "application/protobuf", **key.headers()}
    public = base64.b64decode(headers["flwr-public-key"])
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=10).SerializeToString()
    wire.send(kind, "/v1/fleet/activate-node", body, headers) if i % 2 else wire.send(
        kind, "/v1/fleet/pull-messages", real_bodies(7)[0], headers
    )


def locked_doors(wire: Wire, kind: str, i: int) -> None:
    headers = {"content-type": "application/protobuf", "x-fedloom-token": os.urandom(16).hex()}
    wire.send(kind, INSIDE[i % len(INSIDE)], b"", headers, "GET" if i % 3 == 2 else "POST")


def real_bodies(node: int) -> list[bytes]:
    """Requests as nodes send them."""
    me, meta = Node(node_id=node), Metadata(run_id=1, message_id="a" * 64, src_node_id=node, dst_node_id=1)
    tree = ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="b" * 64)])
    asks = (
        PullMessagesRequest(node=me),
        PushMessagesRequest(node=me, messages_list=[Message(metadata=meta)], message_object_trees=[tree]),
        PushObjectRequest(node=me, run_id=1, object_id="a" * 64, object_content=b"x" * 99),
        PullObjectRequest(node=me, run_id=1, object_id="a" * 64),
        ConfirmMessageReceivedRequest(node=me, run_id=1, message_object_id="a" * 64),
        PushMessagesRequest(node=me),
    )
    return [ask.SerializeToString() for ask in asks]


def others_node(key: Key, honest: list[int]) -> Sender:
    """A right signature, for another's mailbox."""

    def send(wire: Wire, kind: str, i: int) -> None:
        headers = {"content-type": "application/protobuf", **key.headers()}
        paths = ("pull-messages", "push-messages", "push-object", "pull-object", "confirm-message-received")
        wire.send(kind, f"/v1/fleet/{paths[i % 5]}", real_bodies(honest[i % len(honest)])[i % 5], headers)

    return send


def strange_protobuf(key: Key, run: Callable[[], int]) -> Sender:
    """A right signature on what no honest client sends."""

    def send(wire: Wire, kind: str, i: int) -> None:
        headers = {"content-type": "application/protobuf", **key.headers()}
        path, body = crafted(key.node, run())[i % len(crafted(key.node, run()))]
        wire.send(kind, f"/v1/fleet/{path}", body, headers)

    return send


def crafted(node: int, run: int) -> list[tuple[str, bytes]]:
    me, late = Node(node_id=node), time.time() - 5
    nested = ObjectTree(object_id="c" * 64)
    for _ in range(40):
        nested = ObjectTree(object_id="d" * 64, children=[nested, nested] if _ < 5 else [nested])
    metas = [
        Metadata(),
        Metadata(run_id=run, message_id="a" * 64, src_node_id=node, dst_node_id=1, reply_to_message_id="b" * 64,
                 created_at=late, ttl=99.0, message_type="query.fedloom"),
        Metadata(run_id=run, message_id="a" * 64, src_node_id=1, dst_node_id=node, created_at=late, ttl=99.0,
                 message_type="query.fedloom"),
        Metadata(run_id=2**64 - 1, message_id="x", src_node_id=node, dst_node_id=1, created_at=float("nan"),
                 ttl=float("inf"), message_type="train"),
    ]  # fmt: skip
    pushes = [
        ("push-messages", PushMessagesRequest(node=me, messages_list=[m], message_object_trees=[nested]))
        for m in (Message(metadata=meta) for meta in metas)
    ]
    for _, push in pushes:
        push.messages_list[0].content.SetInParent()
    found: list[tuple[str, Any]] = [
        *pushes,
        ("push-messages", PushMessagesRequest(node=me)),
        ("push-messages", PushMessagesRequest(node=me, messages_list=[Message()])),
        ("push-object", PushObjectRequest(node=me, run_id=run, object_id="a" * 64, object_content=b"x")),
        ("push-object", PushObjectRequest(node=me, run_id=run, object_id="a" * 64, session_id="s")),
        ("pull-object", PullObjectRequest(node=me, run_id=run + 1, object_id="../../etc/passwd")),
        ("confirm-message-received", ConfirmMessageReceivedRequest(node=me, run_id=run + 1, message_object_id="")),
        ("activate-node", ActivateNodeRequest(public_key=b"", heartbeat_interval=float("nan"))),
    ]
    return [(path, request.SerializeToString()) for path, request in found]


class Tape:
    """Requests of honest clients, overheard; each is given out once, a moment later."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def new(self) -> Iterator[tuple[str, dict[str, str], bytes]]:
        """Since the last look."""
        if not self._path.exists():
            return
        with self._path.open() as tape:
            tape.seek(self._at)
            lines = tape.readlines()
        for line in lines:
            if not line.endswith("\n"):
                return
            self._at += len(line.encode())
            path, head, body = json.loads(line)
            yield path, {name: value for name, value in head if name != "host"}, bytes.fromhex(body)


STRANGERS: dict[str, Sender] = {
    "random bytes": random_bytes,
    "truncated protobuf": truncated,
    "too long, or of no length": oversized,
    "a foreign key": foreign_key,
    "the server's own doors": locked_doors,
}
