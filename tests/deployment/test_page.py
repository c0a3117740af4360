"""The page: only looks, only for this machine, whole in every phase, and nobody's text becomes markup."""

import base64
import hashlib
import http.client
import json
import re
import socket
import urllib.error
import urllib.request
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from fedloom.deployment.board import Board
from fedloom.deployment.page import render, serve
from fedloom.errors import UserError
from fedloom.events import (
    ClientTrained,
    Evaluated,
    Noted,
    ReplyMissing,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
)

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(HTMLParser):
    """Elements nest; what is seen and what is referred to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.references = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in {"src", "href", "action"}]
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path, ["north", EVIL])
    board.member("north", number=0, state="joined")
    return board


@pytest.fixture
def address(board):
    return serve(board)


def ask(address, method="GET", path="/", headers=(("Host", "127.0.0.1"),)):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def run_a_round(board, name="trial"):
    board(RunStarted(name, f"runs/{name}", "fedavg", "nano", "reference", "cpu", "float32", 10, 2, 2, 2, 10))
    board(RoundStarted(1, (0, 1)))
    board(ClientTrained(1, 0, "north", 8, 90, 2, 0, 0.75))
    board(ReplyMissing(1, 1, EVIL, "silent", EVIL))
    board(RoundFinished(1, 1, 1, 0.75, 8, 90, 2, 0, 1e-3, 1500, 700, 62.0))
    board(Evaluated(1, "test", {"loss": 1.5, "exact_match": 0.25, "loss_std": 9.0}, {}, 0.1))
    board(Noted(f"careful: {EVIL}", "warning"))
    board(RoundStarted(2, (0, 1)))


def test_the_page_over_http(board, address):
    run_a_round(board)
    with urllib.request.urlopen(address, timeout=10) as answer:
        found = Outline(answer.read().decode())
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    for words in ("Round 2 of 10: 0 of 2 replies", "25.0 %", "1 of 10", "1 silent", "1 reply counted, 1 missing"):
        assert words in found.text.replace("\u00a0", " ")
    assert "loss_std" not in found.text
    assert found.references == []


def test_the_same_as_json(board, address):
    run_a_round(board)
    with urllib.request.urlopen(address + "status.json", timeout=10) as answer:
        found = json.load(answer)
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    mine = board.picture()
    assert {**found, "written": 0} == {**mine, "written": 0}


def test_nobodys_text_becomes_markup(board):
    run_a_round(board, EVIL)
    board.member(EVIL, state="refused", refusal=EVIL)
    board.member("x" * 300)
    page = render(board.picture(), 2e9)
    found = Outline(page)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert "alert(1)" not in re.search(r"<script>(.*?)</script>", page, re.S).group(1)
    assert page.count("&lt;script&gt;alert(1)") == 6  # title, heading, folder, name, refusal, note


def test_every_phase_has_a_page(tmp_path):
    board = Board(tmp_path)
    pages = [render(board.picture(), 0.0)]
    board.waiting(2)
    pages.append(render(board.picture(), 0.0))
    board.waiting(None)
    run_a_round(board)
    (tmp_path / "stop").touch()
    pages.append(render(board.picture(), 0.0))
    board(RoundFinished(2, 0, 2, None, 0, 0, 0, 0, 1e-3, 0, 0, 0.0))
    board(Evaluated(2, "test", {"perplexity": float("inf")}, {}, 0.1))
    pages.append(render(board.picture(), 0.0))
    board(RunFinished(2, 1.0, "interrupted"))
    pages.append(render(board.picture(), 0.0))
    seen = [Outline(page).text for page in pages]
    assert "Nobody is invited yet" in seen[0]
    assert "Waiting for clients: 0 of 2 have joined" in seen[1]
    assert "It was asked to stop" in seen[2]
    assert "∞" in seen[3]
    assert "Stopped after round 2 of 10: interrupted" in seen[4]


def test_it_can_do_without_script(board):
    page = render(board.picture(), 0.0)
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page


def test_only_our_own_style_and_script_may_run(address):
    answer, page = ask(address)
    policy = answer.headers["Content-Security-Policy"]
    for kind, tag in (("style-src", "style"), ("script-src", "script")):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/", "/status.json", "/nothing"])
def test_every_answer_is_guarded(address, path):
    answer, _ = ask(address, path=path)
    for name, value in (
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
    ):
        assert answer.headers[name] == value
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Python" not in answer.headers["Server"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_it_only_looks(address, method):
    answer, _ = ask(address, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8080"])
def test_names_of_this_machine(address, host):
    assert ask(address, headers=(("Host", host),))[0].status == 200


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["evil.example"],
        ["localhost.evil.example"],
        ["evil.example:80"],
        ["127.0.0.1@evil.example"],
        ["evil.example@127.0.0.1"],
        ["[::1"],
        ["0.0.0.0"],
        ["localhost", "evil.example"],
    ],
)
def test_other_names_are_refused(address, hosts):
    for path in ("/", "/status.json"):
        answer, body = ask(address, path=path, headers=[("Host", host) for host in hosts])
        assert answer.status == 403
        assert "trial" not in body


def test_other_paths_are_not_there_and_not_repeated(address):
    answer, body = ask(address, path="/<script>alert(1)</script>?x=../etc/passwd")
    assert answer.status == 404
    assert "alert" not in body
    assert ask(address, path="/?from=bookmark")[0].status == 200


def test_garbage_is_answered_without_repeating_it(address):
    with socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=10) as one:
        one.sendall(b"GET <evil> and more HTTP/1.1 x\r\n\r\n")
        answer = one.recv(65536)
    assert answer.startswith(b"Bad Request")
    assert b"evil" not in answer


def test_it_listens_on_loopback_only(address):
    port = urlsplit(address).port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address this machine has outside
        except OSError:
            pytest.skip("this machine has no other address")
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((own, port), timeout=3).close()


@pytest.mark.parametrize("wrong", ["taken", 70000])
def test_a_port_that_cannot_be_had(board, address, wrong):
    port = urlsplit(address).port if wrong == "taken" else wrong
    with pytest.raises(UserError, match=f"cannot use port {port}"):
        serve(board, port)
