"""The mailroom as a real process: its guard over real HTTP, its log, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node as ProtoNode

from deployment.processes import free_port
from fedloom.errors import RunStopped, UserError
from fedloom.runtime.flower.guard import LARGEST, SMALL, TOKEN
from fedloom.runtime.flower.mailroom import Settings
from fedloom.runtime.flower.process import Mailroom
from runtime.flower.rooms import Room, until

SPY = """
import os, socket
real = socket.getaddrinfo
def spied(host, *rest, **more):
    with open(os.environ["SPIED"], "a") as file:
        print(host, file=file)
    return real(host, *rest, **more)
socket.getaddrinfo = spied
open(os.environ["SPIED"], "a").close()
"""
STARTER = """
import json, pathlib, sys, time
from fedloom.runtime.flower.mailroom import Settings
from fedloom.runtime.flower.process import Mailroom
room = Mailroom(Settings("127.0.0.1", int(sys.argv[1]), "token"), pathlib.Path(sys.argv[2]))
print(room.pid, flush=True)
time.sleep(600)
"""
FLEET = "/v1/fleet/pull-messages"
PROTOBUF = "application/protobuf"
INSIDE = (
    "/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-nodes", "/v1/control/stop-run",
    "/v1/runtime/acquire-task", "/v1/runtime/push-messages", "/v1/runtime/get-nodes",
)  # fmt: skip


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """Where the process writes which names it looks up."""
    return tmp_path_factory.mktemp("spy") / "looked"


@pytest.fixture(scope="module")
def room(tmp_path_factory, looked):
    (looked.parent / "sitecustomize.py").write_text(SPY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(looked.parent), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("SPIED", str(looked))
        room = Room(tmp_path_factory.mktemp("room") / "server.log")
    yield room
    room.process.stop()


@pytest.fixture
def told(room):
    """What is written into the log since the test began."""
    begun = len(room.lines())

    def told():
        return [line for line in room.lines()[begun:] if "fedloom.guard" in line]

    return told


def refused(told, *words):
    """There is one line in the log, and it says this."""
    until(told)
    time.sleep(0.05)
    (line,) = told()
    for part in words:
        assert part in line
    assert line.endswith("from 127.0.0.1")


@pytest.mark.parametrize("path", INSIDE)
@pytest.mark.parametrize("headers", [{}, {"x_fedloom_token": "wrong"}, {"x_fedloom_token": ""}])
def test_what_is_the_servers_own(room, told, path, headers):
    assert room.ask("POST", path, content_type=PROTOBUF, **headers) == (403, b"forbidden")
    refused(told, "refused 403 POST", repr(path))


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/", "/v1", "/v1/responses", "/docs/oauth2-redirect"])
def test_what_is_for_nobody(room, told, path):
    assert room.ask("GET", path) == (403, b"forbidden")
    refused(told, "refused 403 GET", repr(path))


def test_the_token_opens(room):
    status, body = room.ask("GET", "/openapi.json", x_fedloom_token=room.token)
    assert (status, json.loads(body)["info"]["title"]) == (200, "SuperLink API")
    assert room.ask("POST", "/v1/control/list-runs", content_type=PROTOBUF, x_fedloom_token=room.token)[0] == 200


def test_a_token_given_twice_is_none(room, told):
    lines = [f"GET /docs HTTP/1.1\r\nHost: x\r\n{TOKEN}: {room.token}\r\n{TOKEN}: {room.token}\r\n\r\n".encode()]
    assert room.say(lines).startswith(b"HTTP/1.1 403")
    refused(told, "/docs")


def test_health_is_for_everybody(room, told):
    status, _ = room.ask("GET", "/health")
    assert status == 200
    assert room.ask("POST", "/health")[0] == 403
    refused(told, "POST", "/health")


@pytest.mark.parametrize("path", ["/v1/fleet/register-node", "/v1/fleet/unregister-node"])
def test_nobody_lets_himself_in(room, told, path):
    body = RegisterNodeFleetRequest(public_key=b"mine").SerializeToString()
    assert room.ask("POST", path, body, content_type=PROTOBUF) == (403, b"forbidden")
    refused(told, "refused 403", path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet//../../control/list-runs",
        "/v1/fleet/register-node/",
        "/v1/fleet/REGISTER-NODE",
        "/v1/fleet/register%2Dnode",
        "/v1/fleet/unregister-node?x=/v1/fleet/pull-messages",
        "//v1/control/list-runs",
        "/v1/fleet;/v1/control/list-runs",
    ],
)
def test_no_way_round(room, told, path):
    assert room.ask("POST", path, content_type=PROTOBUF)[0] in (307, 403, 404)
    if told():
        refused(told)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_nodes_only_post(room, told, method):
    status = room.ask(method, FLEET)[0]
    if method == "BREW":  # no method at all
        assert status in (400, 403)
    else:
        assert status == 403
        refused(told, f"refused 403 {method}", FLEET)


def test_a_stranger_is_told_nothing(room, told):
    body = PullMessagesRequest(node=ProtoNode(node_id=1)).SerializeToString()
    status, words = room.ask("POST", FLEET, body, content_type=PROTOBUF)
    assert (status, json.loads(words)) == (401, {"detail": "Invalid SuperNode authentication"})
    refused(told, "refused 401 POST", FLEET)


@pytest.mark.parametrize("body", [b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", os.urandom(1000)])
def test_garbage(room, told, body):
    status, words = room.ask("POST", FLEET, body, content_type=PROTOBUF)
    assert status in (400, 401, 415, 422)
    assert len(words) < 300
    refused(told, FLEET)


def head(path=FLEET, *lines):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {PROTOBUF}", *lines, "", ""]).encode()


def test_a_length_is_required(room, told):
    answer = room.say(head(FLEET, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 411") and answer.endswith(b"a length is required")
    refused(told, "refused 411")


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "1_000", "5, 5", "٣"])
def test_a_length_that_is_none(room, length):
    answer = room.say(head(FLEET, f"Content-Length: {length}") + b"hello")
    assert answer.startswith((b"HTTP/1.1 411", b"HTTP/1.1 400"))


def test_two_lengths(room):
    answer = room.say(head(FLEET, "Content-Length: 5", "Content-Length: 50") + b"hello")
    assert answer.startswith((b"HTTP/1.1 411", b"HTTP/1.1 400"))


BOUNDS = pytest.mark.parametrize("path, most", [("/v1/fleet/push-object", LARGEST), (FLEET, SMALL)])


@BOUNDS
def test_too_much(room, told, path, most):
    began = time.monotonic()
    answer = room.say(head(path, f"Content-Length: {most + 1}"))
    assert answer.startswith(b"HTTP/1.1 413") and answer.endswith(f"more than {most} bytes".encode())
    assert time.monotonic() - began < 3
    refused(told, "refused 413", path)


def test_too_much_is_not_read(room, told):
    """It is refused while it is still being sent."""
    sent = [head(FLEET, f"Content-Length: {10 * LARGEST}"), *[bytes(1 << 20)] * 50]
    assert room.say(sent).startswith((b"HTTP/1.1 413", b""))
    refused(told, "refused 413")


@BOUNDS
def test_as_much_as_there_may_be(room, told, path, most):
    assert room.ask("POST", path, bytes(most), content_type=PROTOBUF)[0] in (400, 401)
    refused(told, path)


def test_longer_than_announced(room, told):
    """What follows is another request, and is none."""
    answer = room.say(head(FLEET, "Content-Length: 5") + bytes(5) + b"and more of it " * 1000)
    assert answer.count(b"HTTP/1.1 200") == 0


def test_two_ways_to_say_how_long(room):
    """Smuggling: a length for us, chunks for the parser."""
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    data = [head(FLEET, "Content-Length: 5", "Transfer-Encoding: chunked"), *[chunk] * 12, b"0\r\n\r\n"]
    answer = room.say(data)
    assert b"HTTP/1.1 200" not in answer
    assert room.ask("GET", "/health")[0] == 200


def test_a_websocket(room, told):
    asks = "GET /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    answer = room.say(
        (asks + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Ng==\r\n\r\n").encode()
    )
    assert answer.startswith(b"HTTP/1.1 403")
    refused(told, "refused 403 GET")


def test_no_http_at_all(room):
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"hello\r\n\r\n", os.urandom(500), b"GET / HTTP/9.9\r\n\r\n"):
        assert b"HTTP/1.1 200" not in room.say(data)
    assert room.ask("GET", "/health")[0] == 200


def test_a_line_in_the_log_is_one_line(room, told):
    room.ask("GET", "/x%0A2026-01-01%20fedloom.guard%20WARNING%20forged" + "y" * 300)
    refused(told, "\\n2026")
    assert len(told()[0]) < 400


def test_idle_connections_do_not_keep_others_out(room):
    wires = [socket.create_connection(("127.0.0.1", room.port), 5) for _ in range(100)]
    try:
        for wire in wires:
            wire.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")
        assert room.ask("GET", "/health")[0] == 200
    finally:
        for wire in wires:
            wire.close()


def test_nothing_is_looked_up_outside(room, looked):
    room.post().close()
    assert looked.exists()
    assert set(looked.read_text().split()) <= {"127.0.0.1", "localhost", "None"}


def test_flower_is_told_to_be_silent():
    said = subprocess.run(
        [sys.executable, "-c", "import fedloom.runtime.flower.mailroom, flwr.supercore.telemetry as t, os;"
         "print(t.FLWR_TELEMETRY_ENABLED, os.environ['FLWR_DISABLE_UPDATE_CHECK'])"],
        env={k: v for k, v in os.environ.items() if not k.startswith("FLWR")}, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    assert said.stdout.split() == ["0", "1"]


# -- its life


def gone(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_it_ends_when_its_starter_dies(tmp_path):
    port = free_port()
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(port), str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, 60)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    until(lambda: gone(pid), 5)
    starter.stdout.close()


def test_a_port_that_is_taken(tmp_path, room):
    with pytest.raises(UserError, match=f"port {room.port} of 127.0.0.1 cannot be used .*--port"):
        Mailroom(Settings("127.0.0.1", room.port, "token"), tmp_path / "log")


def test_why_it_ended(tmp_path):
    room = Mailroom(Settings("127.0.0.1", free_port(), "token", "/no/such/file", "/nor/this"), tmp_path / "log")
    with pytest.raises(RunStopped, match=r"ended with code [1-9](.|\n)*FileNotFoundError"):
        until(lambda: room.check(), 60)
    room.stop()
