"""The server's hand in the mailroom: registers clients, sends letters to them, collects what they answer.

The server's own process is what Flower calls the app of a run: it submits a run without any code, takes up its task
itself, and keeps the task alive. All of this is on this machine, over the same port as the clients'.
"""

import hashlib
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Metadata, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.runtime import RuntimeHttpClient

from fedloom.errors import RunStopped
from fedloom.runtime.flower.guard import TOKEN
from fedloom.runtime.flower.parcels import KIND, Body, Parcel, ParcelError, block_of, gathered, head_of, leaves

T = TypeVar("T")
BEAT = 15.0
"""Seconds between signs of life for the run's task; it is given up after four times as many."""
PATIENCE = 10.0
"""Seconds for which a call on this machine is tried again."""
LITTLE = 2.0
"""Seconds for which a block of an answer is waited for; they are all there when its head is, which is sent last."""
PROJECT = b"""[project]
name = "fedloom"
version = "0.0.0"
dependencies = []
[tool.flwr.app]
publisher = "fedloom"
[tool.flwr.app.components]
serverapp = "none:none"
clientapp = "none:none"
"""
"""What Flower wants of a run: a bundle. It names code that is not there, and nobody opens it."""


@dataclass(frozen=True)
class Arrived:
    """An answer that lies in the mailroom."""

    ask: str
    """Id of the message it answers."""
    error: str | None
    """Flower's word where there is no answer, such as that the client is gone."""
    parts: tuple[str, ...] = ()
    id: str = ""


class _Token:
    """Shows the guard that this is the server's own process."""

    def __init__(self, token: str) -> None:
        self.token = token

    def intercept(self, context: Any, call_next: Any) -> Any:
        """Add the header."""
        add_headers(context.request, {TOKEN: self.token})
        return call_next(context)


class Post:
    """Letters to nodes and back; nodes are known by the numbers Flower gives them."""

    def __init__(
        self, host: str, port: int, token: str, ca: bytes | None, largest: int, check: Callable[[], None]
    ) -> None:
        """Open a run in the mailroom of this machine.

        Args:
            host: where this machine reaches the mailroom.
            port: of the mailroom.
            token: what its guard wants to see.
            ca: PEM of the authority of its certificate; None: it has none.
            largest: bytes the body of an answer may have.
            check: raises what is wrong where the mailroom has ended.

        Raises:
            RunStopped: it does not answer.
        """
        self._url, self._guard, self.largest, self._check = f"https://{host}:{port}", _Token(token), largest, check
        self._verify: Any = True
        if ca is None:
            self._url = f"http://{host}:{port}"
        else:  # a certificate of the user's own need not name this machine as this machine calls itself
            self._verify = ssl.create_default_context(cadata=ca.decode())
            self._verify.check_hostname = False
        self._node = Node(node_id=SUPERLINK_NODE_ID)
        self._body: Body | None = None
        self._coming: dict[str, Arrived] = {}
        """Answers that are still on their way into the mailroom, by the letter they answer."""
        self._control: Any = ControlHttpClient(self._url, interceptors=[self._guard], verify=self._verify)
        self._wait()
        fab, _ = build_fab_from_files({"pyproject.toml": PROJECT})
        started = self._control.StartRun(
            StartRunRequest(fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab), federation="")
        )
        self._run: int = started.run_id
        waiting: Any = RuntimeHttpClient(self._url, interceptors=[self._guard], verify=self._verify)
        task = waiting.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        waiting.close()
        if not self._run or not task.token:
            raise RunStopped("the mailroom (Flower) gave no run to this server; see server.log")
        self._runtime = self._client(task.token)
        self._runtime.PullTaskInput(PullTaskInputRequest())
        self._ended = threading.Event()
        self._alive = threading.Thread(target=self._beat, args=(self._client(task.token),), daemon=True)
        self._alive.start()

    # -- clients

    def register(self, public: bytes) -> int:
        """Let a key in (PEM); the number of its node."""
        number: int = self._try(lambda: self._control.RegisterNode(RegisterNodeRequest(public_key=public))).node_id
        return number

    def expel(self, node: int) -> None:
        """Let it in no more."""
        self._try(lambda: self._control.UnregisterNode(UnregisterNodeRequest(node_id=node)))

    def present(self) -> Mapping[int, str]:
        """Nodes that give signs of life, each with the time at which it last announced itself."""
        found = self._try(lambda: self._runtime.GetNodes(GetNodesRequest())).nodes
        return {node.node_id: node.last_activated_at for node in found}

    # -- letters

    def send(self, node: int, head: dict[str, Any], body: bytes, ttl: float) -> str:
        """Put a letter into a mailbox; a body that was sent just before is not sent again.

        Args:
            node: whose.
            head: what it says.
            body: what goes with it.
            ttl: seconds after which it is worth nothing.

        Returns:
            Id of the message; "" where the node is not known any more.
        """
        if self._body is None or self._body.data is not body:
            self._body = Body(body, secrets.token_bytes(16))
        metadata = Metadata(
            run_id=self._run, src_node_id=SUPERLINK_NODE_ID, dst_node_id=node, created_at=time.time(), ttl=ttl,
            message_type=KIND,
        )  # fmt: skip
        message, tree, objects = Parcel(head, self._body).message(metadata)
        request = PushAppMessagesRequest(messages_list=[message], message_object_trees=[tree])
        found = self._try(lambda: self._runtime.PushMessages(request))
        wanted = set(found.objects_to_push)
        for name, content in objects:
            if name in wanted:
                self._push(name, content, found.session_id)
        id: str = found.message_ids[0]
        return id

    def sent(self) -> None:
        """What was sent last is not sent again soon: its bytes may go."""
        self._body = None

    def arrived(self, ids: Sequence[str]) -> list[Arrived]:
        """Which of these messages have an answer, whole or none at all; each is told of once.

        An answer that is still being sent is not told of yet, and nobody waits for it here: how long its sender may
        take is the business of whoever asks.
        """
        wanted = [id for id in ids if id not in self._coming]
        return [*(self._begun(wanted) if wanted else []), *self._whole(ids)]

    def _begun(self, ids: Sequence[str]) -> list[Arrived]:
        """Note which answers have begun to come, and give those that are none; the mailroom tells of each once."""
        found = self._try(lambda: self._runtime.PullMessages(PullAppMessagesRequest(message_ids=list(ids))))
        failed = []
        for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            ask, error = message.metadata.reply_to_message_id, None
            parts: list[str] = []
            if message.HasField("error"):
                error = message.error.reason or f"Flower's error {message.error.code}"
            else:
                try:
                    parts = leaves(tree, self.largest)
                except ParcelError as problem:
                    error = str(problem)
                    self._forget(tree.object_id)
            answer = Arrived(ask, error, tuple(parts), tree.object_id)
            if error is None:
                self._coming[ask] = answer
            else:
                failed.append(answer)
        return failed

    def _whole(self, ids: Sequence[str]) -> list[Arrived]:
        """Those whose head is there; and those that never will be."""
        answers = []
        for ask in ids:
            if (answer := self._coming.get(ask)) is None:
                continue
            head = self._look(answer.parts[0])
            if head.object_found and not head.object_available:
                continue
            del self._coming[ask]
            gone = None if head.object_found else "it did not come whole"
            answers.append(Arrived(ask, gone, answer.parts, answer.id))
        return answers

    def forget(self, id: str) -> None:
        """Let the mailroom drop a message that is past its time; it does so when it is asked for it."""
        self._coming.pop(id, None)
        try:
            self._runtime.PullMessages(PullAppMessagesRequest(message_ids=[id]))
        except httpx.HTTPError:
            return

    def open(self, answer: Arrived) -> tuple[dict[str, Any], memoryview]:
        """Head and body of an answer; it is gone from the mailroom then.

        Raises:
            ParcelError: it is no letter of ours.
        """
        try:
            head = head_of(self._pull(answer.parts[0]))
            body = gathered(len(answer.parts) - 1, (block_of(self._pull(part)) for part in answer.parts[1:]))
        finally:
            self._forget(answer.id)
        return head, body

    def drop(self, answer: Arrived) -> None:
        """Remove an answer unread."""
        self._forget(answer.id)

    def close(self) -> None:
        """End the run."""
        self._ended.set()
        with suppress(httpx.HTTPError):  # the mailroom may be gone already
            self._runtime.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))
        self._alive.join()
        self._runtime.close()
        self._control.close()

    # -- inside

    def _client(self, token: str) -> Any:
        guards = [self._guard, RuntimeTokenHttpInterceptor(token)]
        return RuntimeHttpClient(self._url, interceptors=guards, verify=self._verify)

    def _wait(self) -> None:
        """Until the mailroom answers.

        Raises:
            RunStopped: it does not.
        """
        problem = "no answer"
        for _ in range(300):
            try:
                if httpx.get(f"{self._url}/health", verify=self._verify, timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            self._check()
            time.sleep(0.1)
        raise RunStopped(f"the mailroom (Flower) does not answer on {self._url}: {problem}; see server.log")

    def _beat(self, client: Any) -> None:
        """Keep the task alive until the run ends."""
        while not self._ended.wait(BEAT):
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError:
                continue  # the main thread meets the same trouble and says so
        client.close()

    def _push(self, name: str, content: bytes, session: str) -> None:
        request = PushObjectRequest(
            node=self._node, run_id=self._run, object_id=name, object_content=content, session_id=session
        )
        if not self._try(lambda: self._runtime.PushObject(request)).stored:
            raise RunStopped("the mailroom (Flower) did not take a block of a message; see server.log")

    def _look(self, name: str) -> Any:
        """Whether an object is there, and what it is."""
        request = PullObjectRequest(node=self._node, run_id=self._run, object_id=name)
        return self._try(lambda: self._runtime.PullObject(request))

    def _pull(self, name: str) -> bytes:
        """An object.

        Raises:
            ParcelError: it is not there.
        """
        end = time.monotonic() + LITTLE
        while True:
            found = self._look(name)
            if found.object_found and found.object_available:
                content: bytes = found.object_content
                return content
            if not found.object_found or time.monotonic() > end:
                raise ParcelError("one of its parts did not come")
            time.sleep(0.05)

    def _forget(self, id: str) -> None:
        request = ConfirmMessageReceivedRequest(node=self._node, run_id=self._run, message_object_id=id)
        self._try(lambda: self._runtime.ConfirmMessageReceived(request))

    def _try(self, call: Callable[[], T]) -> T:
        """A call in the mailroom, repeated while it does not answer.

        Raises:
            RunStopped: it does not answer for long, or refuses.
        """
        for pause in _pauses():
            try:
                return call()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
                if pause is None or 400 <= status < 500:
                    self._check()
                    words = f"answered {status}" if status else f"does not answer ({error or type(error).__name__})"
                    raise RunStopped(f"the mailroom (Flower) {words}; see server.log, then start the server again"
                                     " with the same command") from None  # fmt: skip
                time.sleep(pause)
        raise AssertionError


def _pauses() -> Iterator[float | None]:
    """Seconds to wait before each further try; None: there is none."""
    left, pause = PATIENCE, 0.1
    while left > 0:
        yield pause
        left -= pause
        pause *= 2
    yield None
