"""The server's folder from its making to its later life."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deployment.homes import HOST, NOW, create, files, spoken
from fedloom import atomic
from fedloom.deployment import joining
from fedloom.deployment.home import CurrentRun, Home
from fedloom.errors import UserError


@pytest.fixture
def home(tmp_path):
    return create(tmp_path / "home")


def test_a_new_folder_holds_all_and_is_private(tmp_path):
    previous = os.umask(0)
    try:
        home = create(tmp_path / "deep" / "home")
        home.invite("site-a")
        home.new_token()
        home.begin(CurrentRun(tmp_path, "abc"))
        home.update(["new.example.org"])
    finally:
        os.umask(previous)
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in home.path.iterdir()} == {0o600}
    assert set(files(home.path)) == {
        "home.json", "ca.pem", "ca.key", "server.pem", "server.key", "invited.json", "invited.lock", "server.lock",
        "token", "run",
    }  # fmt: skip


def test_an_empty_folder_becomes_private(tmp_path):
    """A mounted one, which cannot be replaced, has just that inside."""
    (tmp_path / "home" / "lost+found").mkdir(parents=True)
    (tmp_path / "home").chmod(0o755)
    home = create(tmp_path / "home")
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_it_is_opened_as_it_was_made(home):
    found = Home.open(home.path).settings
    assert (found.addresses, found.host, found.port, found.tls) == (("fl.example.org:9092",), "0.0.0.0", 9092, "own")
    assert home.secure


def test_clients_accept_it_by_the_join_file(tmp_path):
    home = create(tmp_path / "home", [HOST, "192.0.2.7:1", "[2001:db8::7]", "FL.example.org:9092"])
    join = joining.parse(home.invite("site-a").text, "here")
    assert join.addresses == ("fl.example.org:9092", "192.0.2.7:1", "[2001:db8::7]:9092")
    for host in (HOST, "192.0.2.7", "2001:db8::7", "localhost", "127.0.0.1"):
        assert spoken(home, host, join.ca) == ""
    assert spoken(home, "other.example.org", join.ca) != ""


@pytest.mark.parametrize("nth", range(1, 6))
def test_an_interrupted_creation_is_no_home_and_can_be_done_again(tmp_path, monkeypatch, nth):
    """Killed at any of the five files; what lies there then is no reason to refuse."""
    written, real = [], atomic.write_bytes

    def write(path, *rest):
        written.append(path)
        if len(written) == nth:
            path.with_name(f".{path.name}.partial").write_text("half")
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr(atomic, "write_bytes", write)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "home")
    monkeypatch.undo()
    assert not Home.exists(tmp_path / "home")
    with pytest.raises(UserError, match="is no server's folder"):
        Home.open(tmp_path / "home")
    assert spoken(create(tmp_path / "home"), HOST) == ""


def test_what_cannot_become_a_home(tmp_path, home):
    with pytest.raises(UserError, match="is a server's folder already"):
        create(home.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis.txt\)"):
        create(tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        create(tmp_path / "full" / "thesis.txt")
    with pytest.raises(UserError, match=r"cannot be made: Not a directory"):
        create(tmp_path / "full" / "thesis.txt" / "home")
    for addresses, words in (((), "no address is given"), (("https://x",), "host and port alone")):
        with pytest.raises(UserError, match=words):
            create(tmp_path / "new", addresses)
    with pytest.raises(UserError, match="cannot listen at port 0"):
        Home.create(tmp_path / "new", [HOST + ":1"], "0.0.0.0", 0)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is no server's folder.*fedloom server RECIPE --home"),
        ("{", "is no JSON"),
        ("[]", "another version of fedloom .format None"),
        ('{"format": 2}', "another version of fedloom .format 2, this version reads 1"),
        ('{"format": 1}', "cannot be used .*changed by hand"),
        ('{"format": 1, "addresses": ["a:1"], "host": "::", "port": 1, "tls": "maybe"}', "tls is 'maybe'"),
        ('{"format": 1, "addresses": ["a"], "host": "::", "port": "1", "tls": "own"}', "cannot be used"),
        ('{"format": 1, "addresses": ["a:1"], "host": "::", "port": 1, "tls": "own", "more": 1}', "more"),
    ],
)
def test_what_is_no_home(tmp_path, text, words):
    if text is not None:
        (tmp_path / "home.json").write_text(text)
    with pytest.raises(UserError, match=words):
        Home.open(tmp_path)


def test_invited_and_revoked(home):
    join = home.invite("site-a", NOW)
    assert home.invited()["site-a"].public == join.public
    assert home.invited()["site-a"].since == NOW.isoformat(timespec="seconds")
    assert all(join.key.encode() not in data for data in files(home.path).values())
    home.revoke("site-a")
    assert home.invited()["site-a"].revoked


def test_one_server_at_a_time(home):
    assert home.holder() is None
    script = "import sys; from pathlib import Path; from fedloom.deployment.home import Home\n"
    script += "with Home.open(Path(sys.argv[1])).lock(): pass"
    with home.lock():
        assert home.holder() == os.getpid()
        found = subprocess.run([sys.executable, "-c", script, home.path], capture_output=True, text=True)
        assert f"UserError: a server runs with the folder {home.path} already (process {os.getpid()})" in found.stderr
        home.invite("site-a")  # a running server keeps nobody from inviting
    assert home.holder() is None
    subprocess.run([sys.executable, "-c", script, home.path], check=True)


def test_a_token_is_new_each_time(home):
    first, second = home.new_token(), home.new_token()
    assert first != second == home.token.read_text()
    assert len(bytes.fromhex(second)) == 32


def test_the_run_to_go_on_with(home, tmp_path, monkeypatch):
    assert home.run is None
    home.end()
    monkeypatch.chdir(tmp_path)
    home.begin(CurrentRun(Path("runs/x"), "abc"))
    assert Home.open(home.path).run == CurrentRun(tmp_path / "runs" / "x", "abc")
    home.end()
    assert home.run is None
    for text in ("", "3", "{}"):
        (home.path / "run").write_text(text)
        with pytest.raises(UserError, match="delete it to begin a new run"):
            _ = home.run
