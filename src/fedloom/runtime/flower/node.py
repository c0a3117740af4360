"""A client's hand in the mailroom: announces itself, gives signs of life, takes letters, answers them.

It speaks Flower's node protocol itself. So there is no second process beside the client's, no port on its machine, and
what the server sends is data to code that is installed here, never code.
"""

import email.utils
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Metadata, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedloom.runtime.flower.parcels import KIND, Body, Parcel, ParcelError, block_of, gathered, head_of, leaves
from fedloom.runtime.station import Lost, Stranger

T = TypeVar("T")
INTERVAL = 10.0
"""Seconds between signs of life as the mailroom expects them, the least it allows; it waits twice as long."""
BEAT = 6.0
"""Seconds between those that are given."""
PATIENCE = 20.0
"""Seconds for which a block that is still on its way into the mailroom is waited for."""
UNKNOWN = "the server does not know this client's key: it was revoked, or belongs to another server"


class _Unfit(Lost):
    """The server says that this cannot be, as things are."""


@dataclass(frozen=True)
class Letter:
    """A message in the mailbox: its head, and where its body is."""

    head: dict[str, Any]
    metadata: Metadata
    id: str
    parts: tuple[str, ...]


class Node:
    """One client at one server."""

    def __init__(self, address: str, ca: bytes | None, key: bytes, largest: int) -> None:
        """Nothing is sent yet.

        Args:
            address: host:port.
            ca: PEM of the authority whose certificate the server shows; None: without TLS.
            key: this client's private key, PEM.
            largest: bytes the body of a letter may have.
        """
        private = bytes_to_private_key(key)
        self._public = public_key_to_bytes(private.public_key())
        self._largest, self.address = largest, address
        self._id: int | None = None
        auth = NodeAuthHttpInterceptor(private, private.public_key())
        self._fleet: Any = FleetHttpClient.from_server_address(address, ca is None, ca, interceptors=[auth])
        self._pulse: Any = FleetHttpClient.from_server_address(address, ca is None, ca, interceptors=[auth])
        self._turn = threading.Lock()
        """A sign of life in the midst of an announcement would undo its first half."""
        self._ended = threading.Event()
        self._alive = threading.Thread(target=self._beat, daemon=True)

    def announce(self) -> None:
        """Tell the server that this client is here and has nothing to do; also after a letter may have been lost.

        Raises:
            Lost: no answer.
            Stranger: it does not let this key in.
        """
        with self._turn:
            if self._id is not None:
                with suppress(Stranger, _Unfit):  # a server that was started anew gave new numbers; or it went already
                    self._try(partial(self._fleet.DeactivateNode, DeactivateNodeRequest(node_id=self._id)))
            request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=INTERVAL)
            try:
                self._id = self._try(partial(self._fleet.ActivateNode, request)).node_id
            except _Unfit:
                self._id = None
                raise Stranger(f"{UNKNOWN}; or another process uses it, or did so 20 seconds ago") from None
        if not self._alive.is_alive():
            self._alive.start()

    def recall(self, id: int | None) -> None:
        """The number this client had before it was restarted, so that `announce` can begin anew at once."""
        self._id = id

    @property
    def id(self) -> int | None:
        """Its number at the server; None: it has none."""
        return self._id

    def letter(self) -> Letter | None:
        """The next letter, without its body; None: the mailbox is empty.

        Raises:
            Lost: no answer; a letter may be lost, so `announce` again.
            Stranger: the server does not know this client any more.
            ParcelError: it is none of ours.
        """
        found = self._try(lambda: self._fleet.PullMessages(PullMessagesRequest(node=self._me())))
        if not found.messages_list:
            return None
        message, tree = found.messages_list[0], found.message_object_trees[0]
        parts = leaves(tree, self._largest)
        run = message.metadata.run_id
        return Letter(head_of(self._pull(run, parts[0])), message.metadata, tree.object_id, tuple(parts[1:]))

    def body(self, letter: Letter) -> memoryview:
        """The body of a letter.

        Raises:
            Lost: no answer.
            Stranger: the server does not know this client any more.
            ParcelError: a part of it is missing or foreign.
        """
        run = letter.metadata.run_id
        return gathered(len(letter.parts), (block_of(self._pull(run, part)) for part in letter.parts))

    def done(self, letter: Letter) -> None:
        """Let the mailroom forget it."""
        request = ConfirmMessageReceivedRequest(
            node=self._me(), run_id=letter.metadata.run_id, message_object_id=letter.id
        )
        self._try(lambda: self._fleet.ConfirmMessageReceived(request))

    def answer(self, letter: Letter, head: dict[str, Any], body: bytes) -> None:
        """Answer a letter.

        Raises:
            Lost: it did not get through; it may be said again.
            Stranger: the server does not know this client any more.
        """
        asked, now = letter.metadata, time.time()
        metadata = Metadata(
            run_id=asked.run_id, src_node_id=asked.dst_node_id, dst_node_id=asked.src_node_id,
            reply_to_message_id=asked.message_id, created_at=now, ttl=asked.created_at + asked.ttl - now,
            message_type=KIND,
        )  # fmt: skip
        message, tree, objects = Parcel(head, Body(body, secrets.token_bytes(16))).message(metadata)
        request = PushMessagesRequest(
            node=self._me(), messages_list=[message], message_object_trees=[tree], clientapp_runtime_list=[0.0]
        )
        found = self._try(lambda: self._fleet.PushMessages(request))
        wanted = set(found.objects_to_push)
        for name, content in objects:
            if name in wanted:
                push = PushObjectRequest(
                    node=self._me(), run_id=asked.run_id, object_id=name, object_content=content,
                    session_id=found.session_id,
                )  # fmt: skip
                if not self._try(partial(self._fleet.PushObject, push)).stored:
                    raise Lost("the server did not take a block of the answer")

    def leave(self) -> None:
        """Say goodbye."""
        self._ended.set()
        if self._id is not None:
            old, self._id = self._id, None
            with suppress(httpx.HTTPError):  # it may be gone itself
                self._fleet.DeactivateNode(DeactivateNodeRequest(node_id=old))
        if self._alive.is_alive():
            self._alive.join()
        self._fleet.close()
        self._pulse.close()

    # -- inside

    def _me(self) -> ProtoNode:
        if self._id is None:
            raise Lost("this client has not announced itself")
        return ProtoNode(node_id=self._id)

    def _pull(self, run: int, name: str) -> bytes:
        end = time.monotonic() + PATIENCE
        while True:
            request = PullObjectRequest(node=self._me(), run_id=run, object_id=name)
            found = self._try(partial(self._fleet.PullObject, request))
            if found.object_found and found.object_available:
                content: bytes = found.object_content
                return content
            if not found.object_found or time.monotonic() > end:
                raise ParcelError("one of its parts is not in the mailroom")
            time.sleep(0.05)

    def _beat(self) -> None:
        """Signs of life, also while this client trains."""
        while not self._ended.wait(BEAT):
            with self._turn, suppress(httpx.HTTPError):  # the main thread meets the same trouble and says so
                if self._id is not None:
                    me = ProtoNode(node_id=self._id)
                    self._pulse.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=me, heartbeat_interval=INTERVAL))

    def _try(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            response = error.response
            if response.status_code == httpx.codes.UNAUTHORIZED:
                raise Stranger(_why(response)) from None
            if response.status_code == httpx.codes.PRECONDITION_FAILED:
                raise _Unfit("it does not fit what the server knows of this client") from None
            raise Lost(f"it answered {response.status_code}: {' '.join(response.text.split())[:200]}") from None
        except (httpx.TransportError, ValueError) as error:
            raise Lost(str(error) or type(error).__name__) from None


def _why(response: httpx.Response) -> str:
    """What may be the reason for a refused signature: the clocks, or the key."""
    try:
        ahead = time.time() - email.utils.parsedate_to_datetime(response.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):  # a proxy may leave it out, or write what is none
        ahead = 0.0
    if ahead > 4 or ahead < -300:
        return (
            f"this machine's clock is {abs(ahead):.0f} seconds {'ahead of' if ahead > 0 else 'behind'} the server's, "
            "and a signature must not come from the future nor be older than five minutes; set the clock (NTP)"
        )
    return UNKNOWN
