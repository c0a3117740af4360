"""`deploy-check` against real TLS servers on loopback, each with one thing wrong."""

import email.utils
import json
import os
import socket
import ssl
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedloom.deployment import certificates, network
from fedloom.deployment.checks import check_client, check_server, disk, exit_code, table
from fedloom.deployment.home import Home
from fedloom.deployment.joining import JoinFile, write
from fedloom.deployment.network import Check, clock, dates

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority():
    return certificates.make_ca(NOW)


@pytest.fixture(scope="module")
def node():
    return certificates.node_keys()[0]


@pytest.fixture
def start(tmp_path):
    """Starts an HTTPS server (HTTP without files) that answers /health; gives its port."""
    running = []

    def go(pem=None, status=200, ahead=0.0, date=None, host="127.0.0.1"):
        class Health(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response_only(status if self.path == "/health" else 404)
                said = email.utils.formatdate(time.time() + ahead, usegmt=True) if date is None else date
                if said:
                    self.send_header("Date", said)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass

        server = Quiet((host, 0), Health)
        if pem is not None:
            path = tmp_path / f"server-{len(running)}.pem"
            path.write_text("".join(pem))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server.server_address[1]

    yield go
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def invite(tmp_path, authority, node):
    """Writes a join file for a port on loopback."""

    def go(*addresses, ca=None):
        path = tmp_path / "site-a.join"
        write(path, JoinFile("site-a", addresses, authority[0] if ca is None else ca, node))
        return path

    return go


def issued(authority, hosts=(), now=NOW):
    return certificates.issue(*authority, hosts, now)


def states(rows):
    return {row.name: row.state for row in rows}


def words(rows, name):
    return next(row.words for row in rows if row.name == name)


def test_all_is_well(start, invite, authority, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"q{i}", "output": "a"}) + "\n" for i in range(7)))
    port = start(issued(authority))
    rows = check_client(invite(f"127.0.0.1:{port}"), data, "nano")
    assert states(rows) == dict.fromkeys(
        ("join file", "address", "port", "certificate", "server", "clock", "disk", "data", "model"), "ok"
    )
    assert "7 rows" in words(rows, "data")
    assert f"127.0.0.1:{port} answers after" in words(rows, "port")
    assert "823 days" in words(rows, "certificate")
    assert words(rows, "clock") == "this clock and the server's agree"
    assert exit_code(rows) == 0
    assert table(rows).splitlines()[0].startswith("ok    join file    site-a at 127.0.0.1")


def test_by_name(start, invite, authority):
    port = start(issued(authority))
    assert exit_code(check_client(invite(f"localhost:{port}"))) == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("ended", "has ended"),
        ("later", "not good yet"),
        ("authority", "another authority"),
        ("plain", "no TLS"),
    ],
)
def test_certificates_that_clients_refuse(start, invite, authority, wrong, says):
    ca = authority if wrong != "ended" else certificates.make_ca(NOW - timedelta(days=1000))
    pem = {
        "ended": lambda: issued(ca, now=NOW - timedelta(days=1000)),
        "later": lambda: issued(ca, now=NOW + timedelta(days=9)),
        "authority": lambda: issued(certificates.make_ca(NOW)),
        "plain": lambda: None,
    }[wrong]()
    rows = check_client(invite(f"127.0.0.1:{start(pem)}", ca=ca[0]))
    assert states(rows)["certificate"] == "fail"
    assert says in words(rows, "certificate")
    assert "clock" not in states(rows)
    assert exit_code(rows) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a second loopback address without being asked")
def test_a_certificate_for_other_addresses(start, invite, authority):
    port = start(issued(authority), host="127.0.0.2")
    rows = check_client(invite(f"127.0.0.2:{port}"))
    assert f"is not for 127.0.0.2: start it with --address 127.0.0.2:{port}" in words(rows, "certificate")


def test_a_certificate_for_other_names(start, invite, authority, monkeypatch):
    """The name resolves here, but the certificate is not for it."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: real("127.0.0.1" if host == "fl.test" else host, *more, **named),
    )
    port = start(issued(authority, ["other.test"]))
    rows = check_client(invite(f"fl.test:{port}"))
    assert f"is not for fl.test: start it with --address fl.test:{port}" in words(rows, "certificate")
    assert words(rows, "address") == "fl.test is 127.0.0.1"


def test_a_certificate_that_ends_soon_is_a_warning(start, invite):
    old = certificates.make_ca(NOW - timedelta(days=800))
    rows = check_client(invite(f"127.0.0.1:{start(issued(old, now=NOW - timedelta(days=800)))}", ca=old[0]))
    assert states(rows)["certificate"] == "warn"
    assert "23 days" in words(rows, "certificate")
    assert exit_code(rows) == 0


@pytest.mark.parametrize(
    "ahead, state",  # of the server
    [(0, "ok"), (-3.2, "warn"), (-8, "fail"), (60, "ok"), (200, "warn"), (400, "fail")],
)
def test_clocks(start, invite, authority, ahead, state):
    rows = check_client(invite(f"127.0.0.1:{start(issued(authority), ahead=ahead)}"))
    assert states(rows)["clock"] == state
    if state == "fail":
        assert "NTP" in words(rows, "clock")
        assert ("ahead" if ahead < 0 else "behind") in words(rows, "clock").split("server")[0]


@pytest.mark.parametrize("seconds, state", [(5.4, "ok"), (5.6, "fail")])
def test_the_date_has_no_parts_of_a_second(seconds, state):
    theirs = datetime(2026, 1, 1, tzinfo=UTC)
    assert (clock(theirs.timestamp() + seconds, theirs).state == "fail") == (state == "fail")


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_server_without_a_clock(start, invite, authority, date):
    rows = check_client(invite(f"127.0.0.1:{start(issued(authority), date=date)}"))
    assert states(rows)["clock"] == "warn"


def test_another_program_answers(start, invite, authority):
    rows = check_client(invite(f"127.0.0.1:{start(issued(authority), status=404)}"))
    assert states(rows)["server"] == "fail"
    assert "404" in words(rows, "server")


def test_nobody_listens(invite):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        rows = check_client(invite(f"127.0.0.1:{one.getsockname()[1]}"))
    assert states(rows) == {"join file": "ok", "address": "ok", "port": "fail", "disk": "ok"}
    assert "refused" in words(rows, "port")


def test_silence_is_given_up(monkeypatch):
    monkeypatch.setattr(network, "TIMEOUT", 0.2)
    with socket.socket() as one:  # listens and never accepts: TCP works, nothing speaks TLS
        one.bind(("127.0.0.1", 0))
        one.listen()
        begun = time.monotonic()
        rows = network.look(f"127.0.0.1:{one.getsockname()[1]}", certificates.make_ca(NOW)[0])
    assert [row.state for row in rows] == ["ok", "ok", "fail"]
    assert time.monotonic() - begun < 5


def test_a_name_that_does_not_exist(invite):
    rows = check_client(invite("no-such-host.invalid:9092"))
    assert states(rows)["address"] == "fail"
    assert "has no IP address here" in words(rows, "address")
    assert "port" not in states(rows)


def test_one_address_of_two_is_enough(start, invite, authority):
    rows = check_client(invite("no-such-host.invalid:9092", f"127.0.0.1:{start(issued(authority))}"))
    assert [row.state for row in rows if row.name == "address"] == ["warn", "ok"]
    assert exit_code(rows) == 0


def test_without_tls(start, invite):
    rows = check_client(invite(f"127.0.0.1:{start()}", ca=""))
    assert states(rows) == {
        "join file": "warn", "address": "ok", "port": "ok", "server": "ok", "clock": "ok", "disk": "ok"
    }  # fmt: skip


def test_join_files_that_are_none_or_open_to_all(tmp_path, invite):
    foreign = tmp_path / "x.join"
    foreign.write_text("hello")
    for path in (foreign, tmp_path / "missing.join", tmp_path):
        rows = check_client(path)
        assert states(rows) == {"join file": "fail", "disk": "ok"}
    path = invite("127.0.0.1:1")
    path.chmod(0o644)
    assert f"chmod 600 {path}" in words(check_client(path), "join file")


def test_data(tmp_path, invite):
    path = invite("127.0.0.1:1")
    odd = tmp_path / "odd.csv"
    odd.write_text("a,b\n1,2\n3,4\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"instruction": ')
    found = {
        one.name: next(row for row in check_client(path, one) if row.name == "data")
        for one in (odd, broken, tmp_path / "none.jsonl")
    }
    assert {name: row.state for name, row in found.items()} == {
        "odd.csv": "warn", "broken.jsonl": "fail", "none.jsonl": "fail"
    }  # fmt: skip
    assert found["odd.csv"].words.startswith("2 rows")
    assert "line 1" in found["broken.jsonl"].words


def test_a_model_that_is_not_there(invite, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    for name in (str(tmp_path / "half"), "./nowhere"):
        rows = check_client(invite("127.0.0.1:1"), model=name)
        assert states(rows)["model"] == "fail"


def test_disks(tmp_path, monkeypatch):
    assert disk(tmp_path / "not" / "yet").state == "ok"
    for free, state in ((10**9, "warn"), (10**7, "fail")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        assert disk(tmp_path).state == state


@pytest.fixture
def home(tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return Home.create(tmp_path / "home", [f"127.0.0.1:{port}"], "127.0.0.1", port)


def test_a_server_that_can_start(home):
    rows = check_server(home.path, model="nano")
    assert states(rows) == dict.fromkeys(
        ("folder", "address", "names", "certificate", "authority", "port", "disk", "model"), "ok"
    )
    assert words(rows, "port") == f"{home.settings.port} is free"


def test_a_port_that_is_taken_and_by_whom(home):
    with socket.socket() as one:
        one.bind(("127.0.0.1", home.settings.port))
        one.listen()
        assert states(check_server(home.path))["port"] == "fail"
        with home.lock():
            rows = check_server(home.path)
    assert states(rows)["port"] == "ok"
    assert f"in use by the server of this folder (process {os.getpid()})" in words(rows, "port")
    with home.lock():
        assert states(check_server(home.path))["port"] == "warn"


def test_addresses_of_a_server(home, monkeypatch):
    rows = check_server(home.path, "fl.example.invalid")
    assert states(rows)["address"] == "fail"
    assert "not for fl.example.invalid: start the server with --address" in words(rows, "names")
    assert states(check_server(home.path, "a/b"))["address"] == "fail"
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: real("127.0.0.1", *more, **named))
    assert states(check_server(home.path, "fl.test:9092"))["address"] == "warn"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_rights_of_the_folder(home):
    home.path.chmod(0o755)
    rows = check_server(home.path)
    assert states(rows)["folder"] == "warn"
    home.key.chmod(0o640)
    rows = check_server(home.path)
    assert states(rows)["folder"] == "fail"
    assert f"chmod 600 {home.key}" in words(rows, "folder")


def test_files_of_a_server_that_are_damaged(home, tmp_path):
    home.certificate.write_text("nonsense")
    rows = check_server(home.path)
    assert states(rows)["certificate"] == "fail"
    home.certificate.unlink()
    assert states(check_server(home.path))["certificate"] == "fail"
    assert states(check_server(tmp_path)) == {"folder": "fail", "disk": "ok"}


@pytest.mark.parametrize("days, state", [(29, "warn"), (31, "ok"), (0, "warn"), (-1, "fail")])
def test_days_that_are_left(days, state):
    ends = NOW + timedelta(days=days, hours=1)
    assert dates("certificate", NOW - timedelta(days=100), ends, NOW, "it").state == state


def test_exit_code():
    assert exit_code([Check("a", "ok", ""), Check("b", "warn", "")]) == 0
    assert exit_code([Check("a", "ok", ""), Check("b", "fail", "")]) == 1
    assert table([]) == ""
