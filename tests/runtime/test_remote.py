"""The server's link by itself: who is asked, how long is waited, what counts, what is kept. Clients are puppets."""

from typing import Any

import pytest
import torch

from fedloom.channel.codec import decode, encode
from fedloom.contracts import Model
from fedloom.errors import RunStopped
from fedloom.runtime import letters
from fedloom.runtime.deploy_config import DeployConfig
from fedloom.runtime.federation import FederationState
from fedloom.runtime.letters import Declined, Ready, Seen, Wants
from runtime.mailroom_of_memory import Killed, Letter, Room
from runtime.puppets import NODE, Puppet, Table, well


def never(puppet: Puppet, letter: Letter) -> None:
    return None


def slow(seconds: float) -> Any:
    def says(puppet: Puppet, letter: Letter) -> Any:
        room = puppet.door.room
        room.faults = {**room.faults, ("answer", letter.node, room.count["answer", letter.node]): f"slow {seconds}"}
        return well(puppet, letter)

    return says


def test_all_that_answer_count_in_the_order_of_their_numbers() -> None:
    table = Table()
    table.remote.gather(3)
    got = table.ask()
    assert got.clients == (0, 1, 2)
    assert torch.equal(got.value.y, torch.full((3,), 1.0))
    assert not table.missing
    assert table.room.most_held == 1
    assert not table.room.answers


# -- three clocks


def test_whoever_is_late_is_late_at_the_deadline_and_no_sooner() -> None:
    table = Table({1: slow(500)})
    table.remote.gather(3)
    begun = table.room.now
    assert table.ask().clients == (0, 2)
    assert [e.reason for e in table.missing] == ["late"]
    assert 100 <= table.room.now - begun <= 101
    assert table.remote.away() == {1}
    table.room.sleep(500)
    assert table.remote.away() == set()
    assert [note for note in table.notes if "too late" in note] == [
        "site-1: its answer came too late and does not count"
    ]
    assert not table.room.answers


def test_an_answer_that_came_in_time_counts_though_the_server_waited_for_another() -> None:
    table = Table({0: slow(500), 1: slow(99), 2: slow(50)})
    table.remote.gather(3)
    assert table.ask().clients == (1, 2)


def test_whoever_gives_no_sign_of_life_is_silent_after_the_time_that_is_allowed() -> None:
    def dies(puppet: Puppet, letter: Letter) -> None:
        raise Killed

    table = Table({1: dies})
    table.remote.gather(3)
    begun = table.room.now
    assert table.ask().clients == (0, 2)
    assert [(e.client, e.reason) for e in table.missing] == [(1, "silent")]
    assert 55 <= table.room.now - begun <= 65
    assert table.ask().clients == (0, 2)  # at once: it is not even asked
    assert "not here" in table.missing[-1].detail


def test_too_few_clients_end_the_run_in_words() -> None:
    table = Table()
    with pytest.raises(RunStopped, match=r"3 clients are here, 4 are needed.*join_timeout=1000"):
        table.remote.gather(4)
    assert 1000 <= table.room.now <= 1002
    assert table.remote.gather(4, 5.0) == 3
    assert sum("waiting for clients" in note for note in table.notes) == 2
    assert 900 < table.ticks < 1020  # about once a second


def test_a_moment_in_which_it_is_not_listed_costs_nobody_its_place() -> None:
    """Announcing oneself anew is two calls, and the server may look between them."""
    table = Table(room=Room(gap=0.9))
    table.room.actors[NODE + 1].restless = 1.0
    table.remote.gather(3)
    for turn in range(40):
        table.remote.gather(4, 0.3 + 0.37 * (turn % 7))
        assert table.remote.away() == set()
        assert table.ask().clients == (0, 1, 2)
    assert ("site-1", "away") not in table.told


# -- lost and found


def test_two_answers_to_two_recipes_in_one_breath_are_no_harm() -> None:
    """It was told the recipe twice while it was busy, and answers both at once."""
    table = Table()
    table.room.due[NODE] = 1e9
    table.room.announce(NODE)
    table.remote.gather(9, 3.0)
    table.room.announce(NODE)
    table.remote.gather(9, 3.0)
    assert len(table.room.boxes[NODE]) == 2
    for letter in table.room.boxes[NODE]:
        table.room.answer(letter, letters.head(Ready(letter.head["ticket"], {}, {})), b"")
    assert table.remote.gather(3) == 3
    assert not table.room.answers


def test_late_answers_to_two_letters_in_one_breath_are_no_harm() -> None:
    table = Table({1: never})
    table.remote.gather(3)
    table.ask()  # client 1 announced itself all the time, so it has several letters
    seat = table.remote.seats[1]
    assert seat.late is not None
    for id in list(seat.late.tickets):
        letter = table.room.letters[id]
        table.room.answer(letter, *well(table.puppet(NODE + 1), letter))
    table.remote.gather(3)
    assert not table.room.answers


def test_a_recipe_that_got_lost_is_told_again() -> None:
    table = Table(room=Room({("letter", NODE, 0): "given up"}))
    assert table.remote.gather(3) == 3
    assert table.room.now < 10


def test_an_answer_cut_off_by_a_crash_is_asked_for_again() -> None:
    """It was killed while it sent its answer, and is back when the server reads that."""
    table = Table(room=Room({("answer", NODE + 1, 1): "garbage"}))

    def dying(puppet: Puppet, letter: Letter) -> Any:
        if table.room.count["answer", NODE + 1] == 1:
            table.room.born[NODE + 1] = table.room.now + 3.0
        return well(puppet, letter)

    table.room.actors[NODE].says, table.room.actors[NODE + 1].says = slow(8), dying
    table.remote.gather(3)
    assert table.ask().clients == (0, 1, 2)


def test_who_forgot_the_recipe_is_told_it_again() -> None:
    def forgetful(puppet: Puppet, letter: Letter) -> Any:
        puppet.says = well
        return letters.head(Wants(letter.head["ticket"])), b""

    table = Table({1: forgetful})
    table.remote.gather(3)
    assert table.ask().clients == (0, 1, 2)
    assert table.room.now < 20


def test_who_was_refused_and_is_started_again_gets_another_chance() -> None:
    """Its owner read why, mended it, and started it again."""
    tried = []

    def check(name: str, ready: Ready) -> str | None:
        tried.append(name)
        return "another base model" if name == "site-1" and tried.count(name) == 1 else None

    table = Table(check=check)
    assert table.remote.gather(3, 20.0) == 2
    assert "another base model" in table.ask().missing[1].detail
    table.room.kill(NODE + 1, 1.0)
    assert table.remote.gather(3) == 3
    assert tried.count("site-1") == 2


def test_what_a_client_says_in_words_is_tamed() -> None:
    words = "no \x1b[31mdata\x07 " + "x" * 5000
    table = Table(joins={1: lambda puppet, letter: (letters.head(Declined(letter.head["ticket"], words)), b"")})
    table.remote.gather(2)
    table.remote.gather(3, 5.0)
    (note,) = [note for note in table.notes if "cannot take part" in note]
    assert note.isprintable()
    assert len(note) < 600


# -- pointers


def test_pointers_move_with_what_counted_and_come_back_with_a_checkpoint() -> None:
    table = Table({1: never})
    table.remote.gather(3)
    table.ask()
    first = dict(table.remote.memories())
    assert set(first) == {0, 2}
    state = decode(FederationState, encode(table.hub.snapshot()))
    assert dict(state.memories) == first
    table.ask([0])
    assert table.remote.memories()[0] != first[0]
    table.hub.restore(state)
    assert dict(table.remote.memories()) == first


def test_letters_name_the_memory_and_what_may_be_asked_for_again() -> None:
    seen: list[tuple[int, list[int]]] = []

    def noting(puppet: Puppet, letter: Letter) -> Any:
        seen.append((letter.head["memory"], list(letter.head["keep"])))
        return well(puppet, letter)

    table = Table({0: noting}, clients=1)
    table.remote.gather(1)
    known = [0]
    for round in range(1, 9):
        before = table.hub.snapshot().memories.get(0, 0)
        table.ask()
        assert seen[-1][0] == before
        known.append(table.remote.memories()[0])
        if round % 3 == 0:
            table.hub.commit(*[r for r in (round - 3, round) if r])
    assert known[0] == 0
    assert seen[7] == (known[7], sorted({known[3], known[6]}))
    assert all(len(keep) <= 3 for _, keep in seen)


def test_a_second_collect_of_a_round_keeps_what_the_round_began_with() -> None:
    """Else it could not be tried again; with a checkpoint every round nobody would notice."""
    kept: list[list[int]] = []

    def noting(puppet: Puppet, letter: Letter) -> Any:
        kept.append(list(letter.head["keep"]))
        return well(puppet, letter)

    table = Table({0: noting}, clients=1)
    table.remote.gather(1)
    table.ask()
    begun = table.hub.snapshot().memories[0]
    table.ask()
    table.ask()
    assert begun in kept[2]


# -- the end


def test_everybody_is_told_the_end_and_nobody_is_waited_for_long() -> None:
    bodies = []

    def says(puppet: Puppet, letter: Letter) -> Any:
        bodies.append(bytes(letter.body))
        puppet.over = "done"
        return letters.head(Seen(letter.head["ticket"])), b""

    table = Table({0: says, 1: never, 2: says})
    table.remote.gather(3)
    begun = table.room.now
    table.remote.farewell("finished", 3, encode(Model(torch.zeros(3))), 20.0)
    assert 20 <= table.room.now - begun <= 21
    assert bodies == [encode(Model(torch.zeros(3)))] * 2


def test_a_thousand_rounds_leave_nothing_behind() -> None:
    """Tickets and letters nobody waits for are forgotten when the mailroom has forgotten them."""
    table = Table(clients=2, deploy=DeployConfig(round_timeout=20, join_timeout=20))
    stale, tickets = 0, 0
    table.remote.gather(2)
    for round in range(1000):
        table.room.faults = {("letter", NODE, table.room.count["letter", NODE]): ("lost", "", "twice")[round % 3]}
        if round % 3 == 0:
            table.room.actors[NODE].restless = 1.0
        assert table.ask().clients == (0, 1)
        table.room.actors[NODE].restless = 30.0
        stale = max(stale, len(table.remote.table.stale))
        tickets = max(tickets, *(len(a.tickets) for s in table.remote.seats for a in (s.asked, s.late) if a), 0)
    assert stale < 400
    assert tickets <= 2
    assert len(table.room.answers) == 0
    table.room.sleep(1000)
    table.remote.gather(2)
    assert table.remote.table.stale == {}
    assert table.room.most_held == 1
