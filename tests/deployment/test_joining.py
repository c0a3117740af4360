"""Join files: what is written is read, and everything else is refused in words that say what to do."""

import datetime
import json
import os
import stat

import pytest

from fedloom.deployment import certificates, joining
from fedloom.deployment.joining import JoinFile, parse
from fedloom.errors import UserError

CA, CA_KEY = certificates.make_ca(datetime.datetime.now(datetime.UTC))
KEY, PUBLIC = certificates.node_keys()
JOIN = JoinFile("site-a", ("fl.example.org:9092", "[2001:db8::7]:1"), CA, KEY)


def changed(**fields):
    """The text with these fields instead; None leaves one out."""
    found = {**json.loads(JOIN.text), **fields}
    return json.dumps({name: value for name, value in found.items() if value is not None})


def test_what_is_written_is_read(tmp_path):
    joining.write(tmp_path / "new" / "site-a.join", JOIN)
    assert joining.read(tmp_path / "new" / "site-a.join") == JOIN


def test_the_text_is_json_of_few_lines_and_warns_first():
    lines = JOIN.text.splitlines()
    assert lines[1] == ' "note": "private key: hand over by a safe way, one machine only",'
    assert lines[2] == ' "format": 1,'
    assert len(lines) == 8
    assert JOIN.text.isascii()
    assert list(json.loads(JOIN.text)) == ["note", "format", "name", "addresses", "ca", "key"]


def test_only_the_owner_reads_the_file(tmp_path):
    previous = os.umask(0)
    try:
        joining.write(tmp_path / "a.join", JOIN)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a.join").stat().st_mode) == 0o600


def test_a_file_others_could_read_becomes_private(tmp_path):
    (tmp_path / "a.join").write_text("old")
    (tmp_path / "a.join").chmod(0o644)
    joining.write(tmp_path / "a.join", JOIN)
    assert stat.S_IMODE((tmp_path / "a.join").stat().st_mode) == 0o600


def test_the_public_half_and_no_secret_in_a_log():
    assert JOIN.public == PUBLIC
    assert "KEY" not in repr(JOIN)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_other_systems_ways_to_save_text(tmp_path, coding):
    (tmp_path / "a.join").write_bytes(JOIN.text.replace("\n", "\r\n").encode(coding))
    assert joining.read(tmp_path / "a.join") == JOIN


def test_a_server_without_tls_is_on_this_machine():
    local = JoinFile("a", ("127.0.0.1:9092", "localhost:9092", "[::1]:9092"), "", KEY)
    assert parse(local.text, "here") == local
    with pytest.raises(UserError, match=r"fl\.example\.org:9092 is another machine's.*without TLS.*tunnel"):
        parse(changed(ca=""), "here")


def test_every_beginning_of_a_file_is_refused():
    """A file that was cut off anywhere, in steps; without the last line's end it is whole."""
    for end in range(0, len(JOIN.text) - 2, 7):
        with pytest.raises(UserError, match=r"^here (is empty|is no join file|is a join file that was cut off)"):
            parse(JOIN.text[:end], "here")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" \n", "^here is empty"),
        ("hello", "^here is no join file .*Copy the file again"),
        (KEY, "^here is no join file"),
        ("[]", "^here is no join file, though it is JSON.*fedloom invite"),
        ('{"a": 1}', "^here is no join file, though it is JSON"),
        ("3", "^here is no join file, though it is JSON"),
        ("[" * 100_000, "^here is no join file"),
        (JOIN.text[:200], "^here is a join file that was cut off"),
        (changed(format=2), r"^here is a join file of format 2; .*reads format 1.*same version"),
        (changed(format=True), "format True"),
        (changed(format=None), "format None"),
        (changed(key=None, ca=None), "^here lacks ca and key"),
        (changed(addres="x"), "^here: 'addres' is no field of a join file. Did you mean addresses"),
        (changed(name=3), "^here: name is not text"),
        (changed(addresses="fl.example.org:9092"), "^here: addresses is not a list of texts"),
        (changed(addresses=[3]), "^here: addresses is not a list of texts"),
        (changed(addresses=[]), "^here names no address"),
        (changed(addresses=["fl.example.org"]), "^here: .*names no port"),
        (changed(name="../x"), r"^here: '\.\./x' cannot be the name"),
        (changed(key=""), "^the private key in here holds no private key"),
        (changed(key=KEY[:100]), "^the private key in here holds no private key"),
        (changed(key=CA_KEY.replace("A", "B", 3)), "^the private key in here"),
        (changed(key=PUBLIC), "^the private key in here holds no private key"),
        (changed(ca=KEY), "^the CA in here holds no certificate"),
        (changed(ca=CA[:200]), "^the CA in here holds no certificate"),
        (changed(ca=CA.replace("M", "N", 4)), "^the CA in here"),
    ],
)
def test_what_is_no_join_file(text, words):
    with pytest.raises(UserError, match=words):
        parse(text, "here")


def test_the_note_may_be_gone():
    assert parse(changed(note=None), "here") == JOIN


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"a\.join cannot be read: No such file"):
        joining.read(tmp_path / "a.join")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        joining.read(tmp_path)
    (tmp_path / "b.join").write_bytes(b"\xff\x00\x81")
    with pytest.raises(UserError, match=r"b\.join is no join file: it is no text"):
        joining.read(tmp_path / "b.join")
    with pytest.raises(UserError, match="cannot be written"):
        joining.write(tmp_path / "b.join" / "c.join", JOIN)


@pytest.mark.parametrize("name", ["a", "site-a", "Site_1.b", "_", "9" * 64])
def test_names(name):
    joining.check_name(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "ä", "a\n", "9" * 65, "a\x00"])
def test_what_is_no_name(name):
    with pytest.raises(UserError, match="cannot be the name of a client"):
        joining.check_name(name)
