"""A real mailroom on a free port, with keys for nodes and plain requests, for tests."""

import http.client
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deployment.processes import free_port
from fedloom.deployment.home import Home
from fedloom.runtime.flower.mailroom import Settings
from fedloom.runtime.flower.node import Node
from fedloom.runtime.flower.post import Post
from fedloom.runtime.flower.process import Mailroom

LARGEST = 32 << 20


def until(found, seconds=15.0):
    """Wait for something to become true; what it was."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


@dataclass
class Room:
    """The process, and the ways in."""

    log: Path
    home: Home | None = None
    """With TLS by its certificates; None: without."""
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self):
        files = (str(self.home.certificate), str(self.home.key)) if self.home else (None, None)
        self.process = Mailroom(Settings("127.0.0.1", self.port, self.token, *files), self.log)
        until(self._listens, 60)

    def _listens(self):
        self.process.check()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def ca(self):
        return self.home.ca.read_bytes() if self.home else None

    def post(self):
        return Post("127.0.0.1", self.port, self.token, self.ca, LARGEST, self.process.check)

    def node(self, key, **more):
        return Node(self.address, more.get("ca", self.ca), key, LARGEST)

    def lines(self):
        return self.log.read_text().splitlines()

    def ask(self, method, path, body=b"", **headers):
        """Status and body of the answer to one request over plain HTTP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def say(self, data, pause=0.0):
        """What is answered to bytes on a new connection, until it is closed or nothing comes any more."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as wire:
            sender = threading.Thread(target=self._send, args=(wire, data, pause))
            sender.start()
            wire.settimeout(3)
            answer = b""
            with suppress(TimeoutError, ConnectionError):
                while more := wire.recv(1 << 16):
                    answer += more
            sender.join()
        return answer

    @staticmethod
    def _send(wire, data, pause):
        with suppress(OSError):  # it may have been refused before its end
            for part in data if isinstance(data, list) else [data]:
                wire.sendall(part)
                time.sleep(pause)
