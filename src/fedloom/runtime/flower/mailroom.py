"""The process that holds everybody's mailbox: Flower's SuperLink, behind a guard.

    python -m fedloom.runtime.flower.mailroom      # settings as one line of JSON on its input; ends when that closes

Flower's SuperLink serves nodes, operators and apps on one port and asks only nodes who they are. The guard lets nodes
through and everybody else only with a token that this server's own process knows, wherever the request comes from:
behind a reverse proxy all of them seem to come from this machine. Mailboxes are in memory; what must last is in the
run folder, and clients register anew with every start.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

from fedloom.runtime.flower.parcels import BLOCK

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TOKEN = "x-fedloom-token"
NODES = "/v1/fleet/"
CLOSED = ("/v1/fleet/register-node", "/v1/fleet/unregister-node")
"""What a node could ask for, but not here: keys are registered by the server alone."""
HEALTH = "/health"
BLOCKS = "/v1/fleet/push-object"
LARGEST, SMALL = BLOCK + (1 << 20), 128 << 10
"""Bytes of one request of a node: with a block, and any other; the names of 500 blocks are 40 kB."""
SIGNER, SIGNED_AT = FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), TIMESTAMP_HEADER.lower().encode()
"""Names of Flower's headers."""
VALID = TIMESTAMP_TOLERANCE + 2 * SYSTEM_TIME_TOLERANCE
"""Seconds for which Flower takes a signature for fresh."""
KNOWN = frozenset({200, 403, 412})
"""What Flower answers only after it has found a signature to be right."""
Mark: TypeAlias = tuple[bytes, bytes]
"""What makes a signed request that one: whose it is, and when it was signed."""

log = logging.getLogger("fedloom.guard")


@dataclass(frozen=True)
class Settings:
    """What the process is told."""

    host: str
    port: int
    token: str
    certificate: str | None = None
    """Path of the server's certificate chain; None: without TLS."""
    key: str | None = None

    def line(self) -> bytes:
        """As the process reads them."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Guard:
    """ASGI middleware: who may ask for what, how much may be sent, and a line in the log for everything refused.

    A node signs the time and nothing else, and Flower takes a signature as often as it is shown. Here it opens once, so
    that whoever overhears a request, at a proxy that ends TLS for example, cannot send it or another in its place.
    """

    def __init__(self, app: Any, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.token, self._clock = app, token.encode(), clock
        self._seen: dict[Mark, float] = {}
        """Signed requests that may still be fresh, and until when, oldest first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(scope, send, *refusal)
            return
        mark = _mark(scope)
        if mark is not None and not self._ours(scope) and not self._first(mark):
            await _answer(scope, send, 401, "this request was made before")
            return

        said: list[int] = []
        try:
            await self.app(scope, _counted(receive, self._bound(scope)), _watched(scope, send, said))
        finally:
            if mark is not None and not KNOWN.intersection(said):  # else strangers could fill the memory
                self._seen.pop(mark, None)

    def _first(self, mark: Mark) -> bool:
        """Whether a signature is shown for the first time; it is remembered for as long as it is valid."""
        now = self._clock()
        while self._seen and (oldest := next(iter(self._seen.items())))[1] < now:
            del self._seen[oldest[0]]
        if mark in self._seen:
            return False
        self._seen[mark] = now + VALID
        return True

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and words, or None: it may pass."""
        if scope["type"] != "http":
            return 403, "only requests over HTTP are served"
        if self._ours(scope):
            return None
        path = scope["path"]
        if scope["method"] == "GET" and path == HEALTH:
            return None
        if scope["method"] != "POST" or not path.startswith(NODES) or path in CLOSED:
            return 403, "forbidden"
        length = _header(scope, b"content-length")
        if not length.isdigit():
            return 411, "a length is required"
        if int(length) > self._bound(scope):
            return 413, f"more than {self._bound(scope)} bytes"
        return None

    def _bound(self, scope: Scope) -> int:
        if self._ours(scope):
            return sys.maxsize
        return LARGEST if scope["path"] == BLOCKS else SMALL

    def _ours(self, scope: Scope) -> bool:
        return hmac.compare_digest(_header(scope, TOKEN.encode()), self.token)


def _header(scope: Scope, name: bytes) -> bytes:
    found = [value for key, value in scope["headers"] if key.lower() == name]
    return bytes(found[0]) if len(found) == 1 else b""


def _counted(receive: Receive, most: int) -> Receive:
    """Ends a request that sends more than it said."""
    seen = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal seen
        event = await receive()
        seen += len(event.get("body", b""))
        return {"type": "http.disconnect"} if seen > most else event

    return counted


def _mark(scope: Scope) -> Mark | None:
    """What a request is signed with; None: with nothing that Flower would take."""
    key, when = _header(scope, SIGNER), _header(scope, SIGNED_AT)
    try:
        return (hashlib.sha256(base64.b64decode(key, validate=True)).digest(), when) if key and when else None
    except ValueError:
        return None


def _watched(scope: Scope, send: Send, said: list[int]) -> Send:
    """Notes what Flower says, and tells what it refuses."""

    async def watched(event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            said.append(event["status"])
            if event["status"] >= 400:
                _tell(scope, event["status"])
        await send(event)

    return watched


async def _answer(scope: Scope, send: Send, status: int, words: str) -> None:
    _tell(scope, status)
    if scope["type"] == "http":
        body = words.encode()
        head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": 1008})


def _tell(scope: Scope, status: int) -> None:
    peer = (scope.get("client") or ("?", 0))[0]
    log.warning("refused %d %s %r from %s", status, scope.get("method", scope["type"]), scope["path"][:200], peer)


def application(settings: Settings) -> Any:
    """Flower's application behind the guard."""
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        control_address="", health_server_address=None, host=settings.host, port=settings.port,
        insecure=settings.certificate is None, certificates=None, superexec_auth_secret=None,
        authn_plugin=load_control_authn_plugin(), event_log_plugin=None, fleet_event_log_plugin=None,
        enable_event_log=False, artifact_provider=None, enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE, fleet_api_address=None, simulation=False, ssl_ca_certfile=None,
        ssl_certfile=settings.certificate, ssl_keyfile=settings.key, database=FLWR_IN_MEMORY_DB_NAME,
        isolation=ISOLATION_MODE_PROCESS, runtime_dependency_install=False,
    )  # fmt: skip
    return Guard(create_app(config, SuperLinkLifespan), settings.token)


def main() -> int:
    """Serve until the input closes."""
    import uvicorn

    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("flwr").handlers.clear()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    settings = Settings(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with, args=(sys.stdin.buffer.fileno(),), daemon=True).start()
    uvicorn.run(
        application(settings), host=settings.host, port=settings.port, ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key, log_config=None, log_level="warning", access_log=False, server_header=False,
        ws="none", lifespan="on", timeout_graceful_shutdown=2,
    )  # fmt: skip
    return 0


def _end_with(source: int) -> None:
    """End this process when the one that started it is gone."""
    while os.read(source, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
