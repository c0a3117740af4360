"""Who is invited, also while several processes change that."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from fedloom.deployment import invitations
from fedloom.deployment.certificates import public_of
from fedloom.deployment.invitations import Invitations
from fedloom.deployment.locking import held
from fedloom.errors import UserError

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
MANY = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from fedloom.deployment.invitations import Invitations
known = Invitations(Path(sys.argv[1]))
for number in range(8):
    known.add(f"{sys.argv[2]}-{number}", datetime.now(UTC))
known.revoke(f"{sys.argv[2]}-3")
"""


@pytest.fixture
def known(tmp_path):
    return Invitations(tmp_path / "invited.json")


def test_who_is_invited_is_known_by_the_public_key_only(known):
    private = known.add("site-a", NOW)
    entry = known.read()["site-a"]
    assert entry.public == public_of(private, "here")
    assert (entry.since, entry.revoked) == ("2026-05-04T03:02:01+00:00", False)
    assert "PRIVATE" not in known.path.read_text()
    assert json.loads(known.path.read_text()) == {
        "site-a": {"public": entry.public, "since": "2026-05-04T03:02:01+00:00", "revoked": False}
    }


def test_nobody_at_first(known):
    assert known.read() == {}


def test_a_name_is_invited_once(known):
    known.add("site-a", NOW)
    before = known.path.read_text()
    with pytest.raises(UserError, match=r"site-a was invited already, on 2026-05-04.*fedloom revoke site-a"):
        known.add("site-a", NOW)
    with pytest.raises(UserError, match="differs from site-a only in capitals"):
        known.add("Site-A", NOW)
    with pytest.raises(UserError, match="cannot be the name"):
        known.add(".x", NOW)
    assert known.path.read_text() == before


def test_revoked_and_invited_anew(known):
    known.add("site-a", NOW)
    known.add("site-b", NOW)
    old = known.read()["site-a"]
    known.revoke("site-a")
    known.revoke("site-a")
    assert known.read()["site-a"].revoked
    assert known.read()["site-a"].public == old.public
    assert not known.read()["site-b"].revoked
    private = known.add("site-a", NOW)
    new = known.read()["site-a"]
    assert not new.revoked
    assert new.public == public_of(private, "here") != old.public
    assert list(known.read()) == ["site-a", "site-b"]


def test_a_name_nobody_has_cannot_be_revoked(known):
    known.add("site-a", NOW)
    with pytest.raises(UserError, match=r"'site_a' was never invited\. Did you mean site-a"):
        known.revoke("site_a")


def test_several_processes_lose_nothing(known):
    command = [sys.executable, "-c", MANY, str(known.path)]
    processes = [subprocess.Popen([*command, name]) for name in ("a", "b", "c")]
    while any(process.poll() is None for process in processes):
        known.read()  # never half a file
    assert [process.returncode for process in processes] == [0, 0, 0]
    found = known.read()
    assert sorted(found) == [f"{name}-{number}" for name in "abc" for number in range(8)]
    assert [name for name, entry in sorted(found.items()) if entry.revoked] == ["a-3", "b-3", "c-3"]
    assert len({entry.public for entry in found.values()}) == 24


def test_who_waits_too_long_is_told_for_whom(known, monkeypatch):
    monkeypatch.setattr(invitations, "_PATIENCE", 0.05)
    with held(known.path.with_suffix(".lock"), 0), pytest.raises(UserError, match=r"being changed by process [0-9]+"):
        known.add("site-a", NOW)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"a": 3}', '{"a": {}}', '{"a": {"public": "x", "since": "y", "revoked": 0}}', "\udcff",
     '{"a": {"public": "x", "since": "y", "revoked": false, "more": 1}}', '{"a": {"public": 1, "since": "y"}}'],
)  # fmt: skip
def test_a_damaged_file_is_not_taken_for_an_empty_one(known, text):
    known.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"invited\.json cannot be read .*changed by hand or is damaged"):
        known.add("site-a", NOW)
    assert known.path.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="cannot be changed: No such file"):
        Invitations(tmp_path / "gone" / "invited.json").add("site-a", NOW)
