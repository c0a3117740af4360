"""What stands before Flower's application: who may ask for what, how much, and how often.

Flower's SuperLink serves nodes, operators and apps on one port and asks only nodes who they are. The guard lets nodes
through and everybody else only with a token that this server's own process knows, wherever the request comes from:
behind a reverse proxy all of them seem to come from this machine.
"""

import base64
import hashlib
import hmac
import logging
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
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

QUOTA, WINDOW = 4 << 30, 600.0
"""Bytes of blocks that one client may send in so many seconds: what it sends lies in memory until it is read."""
KEYS = 10_000
"""Clients whose quota is counted at a time; strangers can claim any number."""

log = logging.getLogger("fedloom.guard")


class Meter:
    """What each client sent in the current window."""

    def __init__(self, quota: int, clock: Callable[[], float]) -> None:
        self.quota, self._clock, self._since, self._sent = quota, clock, clock(), dict[bytes, int]()

    def full(self, who: bytes, length: int) -> bool:
        """Count so many bytes; whether that is more than the client may send."""
        if self._clock() - self._since > WINDOW or len(self._sent) > KEYS:
            self._since, self._sent = self._clock(), {}
        self._sent[who] = self._sent.get(who, 0) + length
        return self._sent[who] > self.quota


class Guard:
    """ASGI middleware: who may ask for what, how much may be sent, and a line in the log for everything refused.

    A node signs the time and nothing else, and Flower takes a signature as often as it is shown. Here it opens once, so
    that whoever overhears a request, at a proxy that ends TLS for example, cannot send it or another in its place.
    """

    def __init__(self, app: Any, token: str, quota: int = QUOTA, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.token, self._clock, self._meter = app, token.encode(), clock, Meter(quota, clock)
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
        if path == BLOCKS and self._meter.full(_header(scope, SIGNER), int(length)):
            return 429, f"more than {self._meter.quota} bytes in {WINDOW:.0f} seconds"
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
