"""A client's side by itself: one training for one task, few versions, and a server that may say anything."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedloom.channel.codec import encode
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.runtime import letters, station
from fedloom.runtime.letters import Answer, Declined, End, Refused, Seen, Wants
from fedloom.runtime.station import Lost, Station
from runtime.desk import ME, RECIPE, Desk
from runtime.federation_of_memory import NODE, RUN, rows
from runtime.mailroom_of_memory import Door, Room


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(station, "JITTER", random.Random(0))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.joins()
    return made


# -- one task, one training


@pytest.mark.parametrize("killed", [False, True])
def test_a_task_that_comes_again_gets_the_same_answer_without_training(desk: Desk, killed: bool) -> None:
    first, body = desk.hears(*desk.task(0))
    if killed:
        desk.restart()
    again, same = desk.hears(*desk.task(0))
    assert (replace(first, ticket=""), body) == (replace(again, ticket=""), same)
    assert (first.ticket, again.ticket) == ("ticket-1", "ticket-2")
    assert desk.run.trained == [(ME, 0)]
    assert first.wrote
    assert encode(desk.marshal.read_up(body, desk.heard[0][0])) == desk.heard[0][1]


def test_the_same_task_on_another_memory_is_done_anew(desk: Desk) -> None:
    """A server that goes on from an earlier round may have counted other replies since."""
    desk.does(0)
    desk.does(1, keep=(desk.heard[0][0].number,))
    desk.does(1, memory=0, keep=(desk.heard[0][0].number,))
    assert desk.run.trained == [(ME, 0), (ME, 1), (ME, 1)]


def test_an_answer_whose_writing_is_gone_is_worked_out_anew(desk: Desk) -> None:
    """Round 1's reply did not count, round 2 failed, and a server that was killed asks for round 1 again."""
    zero, one = (dispatch.number for dispatch, _ in desk.heard[:2])
    desk.does(0)
    assert desk.does(1).wrote
    letter, _ = desk.task(2)
    failed, _ = desk.hears(replace(letter, memory=zero, digest=letters.digest(b"?")), b"?")
    assert failed.missing is not None
    assert desk.does(1).wrote
    assert one in desk.versions
    assert desk.does(2).missing is None


@pytest.mark.parametrize("file", ["recipe.json", f"answer-{ME}"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"\xff\n", b'{"what": "Recipe"}\n'])
def test_a_file_that_cannot_be_read_is_as_good_as_none(desk: Desk, file: str, content: bytes) -> None:
    desk.does(0)
    (desk.place / file).write_bytes(content)
    desk.restart()
    said, _ = desk.hears(*desk.task(0))
    if file == "recipe.json":
        assert isinstance(said, Wants)
        desk.joins()
        said, _ = desk.hears(*desk.task(0))
    assert isinstance(said, Answer)
    assert said.missing is None


def test_a_run_it_does_not_know_is_asked_for(desk: Desk) -> None:
    said, _ = desk.hears(*desk.task(0, run="another"))
    assert said == Wants("ticket-1")


# -- memory


def test_versions_stay_few_whatever_the_server_keeps(desk: Desk) -> None:
    """Memory, two of checkpoints, one that is being written."""
    numbers = [dispatch.number for dispatch, _ in desk.heard]
    for turn in range(40):
        keep = tuple({numbers[turn // 7 % 6], numbers[turn // 5 % 6]} & {*desk.versions})
        memory = numbers[(turn - 1) % 6] if turn else 0
        said = desk.does(turn % 6, memory=memory, keep=keep)
        assert said.missing is None
        assert len(desk.versions) <= 4


def test_a_version_that_is_gone_is_told_in_words(desk: Desk) -> None:
    desk.does(0)
    for version in desk.versions:
        desk.run.shelf(ME).drop(ME, version)
    said = desk.does(1)
    assert said.missing is not None
    assert said.missing.reason == "failed"
    assert "not in its folder" in said.missing.detail
    assert desk.does(1, memory=0).missing is None  # it goes on


@pytest.mark.parametrize("kind", [KeyError, IndexError, ValueError, RuntimeError, UserError, OSError])
def test_what_goes_wrong_in_training_is_told_the_server_as_a_kind_only(tmp_path: Path, kind: type[Exception]) -> None:
    def broken(client: int, site: Any) -> None:
        def run(dispatches: Any) -> Any:
            raise kind("patient Jones")

        site.run = run

    desk = Desk(tmp_path, alter=broken)
    desk.joins()
    said = desk.does(0)
    assert said.missing is not None
    assert said.missing.reason == "failed"
    assert kind.__name__ in said.missing.detail
    assert "Jones" not in json.dumps(letters.head(said))
    assert "Jones" in desk.words
    assert desk.versions == []


# -- the end


@pytest.mark.parametrize("killed", [False, True])
def test_the_final_model_comes_home_even_after_a_restart(desk: Desk, killed: bool) -> None:
    desk.does(0)
    if killed:
        desk.restart()
    model = encode(Model(rows()["ditto"].world.start()))
    said, _ = desk.hears(End(RUN, "t", "finished", 1, desk.heard[0][0].number), model)
    assert said == Seen("t")
    assert encode(desk.run.final[ME]) == model
    assert NODE + ME not in desk.room.actors


@pytest.mark.parametrize("body", [b"garbage", b""])
def test_the_end_is_the_end_whatever_comes_with_it(desk: Desk, body: bytes) -> None:
    said, _ = desk.hears(End(RUN, "t", "finished", 1, 77), body)
    assert said == Seen("t")
    assert NODE + ME not in desk.room.actors
    assert not desk.room.ended
    assert bool(body) == ("CodecError" in desk.words)


def test_a_server_that_has_left_is_not_waited_for_at_the_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: Any) -> None:
        raise Lost("connection refused")

    monkeypatch.setattr(Door, "answer", gone)
    desk.say(End(RUN, "t", "finished", 1, 0), b"")
    desk.room.sleep(4.0)
    assert NODE + ME not in desk.room.actors


def test_a_refusal_ends_it_in_words(desk: Desk) -> None:
    desk.say(Refused(RUN, "t", "another base model"))
    desk.room.sleep(4.0)
    with pytest.raises(UserError, match="another base model"):
        raise desk.room.ended[NODE + ME]


@pytest.mark.parametrize("kind", [UserError, KeyError])
def test_a_recipe_that_cannot_be_built_is_declined(tmp_path: Path, kind: type[Exception]) -> None:
    def broken(client: int, site: Any) -> None:
        raise kind("no column 'text'")

    desk = Desk(tmp_path, alter=broken)
    said, _ = desk.hears(RECIPE)
    assert isinstance(said, Declined)
    assert ("column" in said.words) == (kind is UserError)  # only what was written for people is told
    assert isinstance(desk.room.ended[NODE + ME], kind)


@pytest.mark.parametrize("private", ["the patient fell", "it's hers", 'she said "no"', 'it\'s "hers"', "a/b c", "\n"])
def test_what_a_mistake_quotes_stays_here(tmp_path: Path, private: str) -> None:
    """Where the wrong column is read as the label, the label that is none may be a whole text."""

    def broken(client: int, site: Any) -> None:
        raise UserError(f"12 of the clients' rows have the label {private!r}, which is not in Ann's map (a, b)")

    desk = Desk(tmp_path, alter=broken)
    said, _ = desk.hears(RECIPE)
    assert isinstance(said, Declined)
    assert said.words == "12 of the clients' rows have the label (...), which is not in Ann's map (a, b)"
    assert private in str(desk.room.ended[NODE + ME]) or repr(private) in str(desk.room.ended[NODE + ME])


# -- lines that break


def test_whoever_has_nothing_to_do_announces_itself_now_and_then(desk: Desk) -> None:
    first = desk.room.stamps[NODE + ME]
    desk.room.sleep(25.0)
    assert desk.room.stamps[NODE + ME] == first
    desk.room.sleep(10.0)
    assert desk.room.stamps[NODE + ME] != first


def test_a_letter_that_waits_is_read_before_another_announcement(desk: Desk) -> None:
    """One process may serve several clients: while one trains, the others' letters wait, and are not lost."""
    desk.room.due[NODE + ME] = desk.room.now + 100.0
    stamp = desk.room.stamps[NODE + ME]
    desk.say(*desk.task(0))
    desk.room.sleep(101.0)
    assert desk.room.stamps[NODE + ME] == stamp
    assert desk.run.trained == [(ME, 0)]


def test_a_server_that_forgot_everything_finds_its_clients_back(desk: Desk) -> None:
    desk.room.forget_all()
    desk.room.sleep(5.0)
    assert desk.does(0).missing is None
    assert desk.words.count("trying again") == 1


def test_a_stranger_gives_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any) -> None:
        raise station.Stranger("its key was revoked")

    monkeypatch.setattr(Room, "announce", unknown)
    desk = Desk(tmp_path)
    desk.room.sleep(100.0)
    assert not desk.room.ended
    desk.room.sleep(100.0)
    with pytest.raises(UserError, match="revoked"):
        raise desk.room.ended[NODE + ME]
    assert isinstance(desk.run.station(ME), Station)
