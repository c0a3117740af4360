"""The driver: many coroutines on one engine, in order, within bounds, and cleared away whatever happens."""

import gc
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.contracts import Call, ClientFailed, Exchange, Message
from fedloom.engine.driver import drive

LAW = settings(deadline=None, derandomize=True, max_examples=150)


@dataclass
class Engine:
    """Serves each call (value, ticks) after so many ticks; a value that is an error is handed back as it is."""

    slots: int = 3
    at_work: dict[int, list[Any]] = field(default_factory=dict)
    admitted: list[tuple[int, Any]] = field(default_factory=list)
    most: int = 0
    abandoned: int = 0
    fails_at: int | None = None
    ticks: int = 0

    def room(self) -> int:
        return self.slots - len(self.at_work)

    def admit(self, call: Call[Any]) -> None:
        assert self.room() > 0
        assert call.client not in self.at_work
        self.at_work[call.client] = list(call.request)
        self.admitted.append((call.client, call.request[0]))

    def advance(self) -> list[tuple[int, Any]]:
        assert self.at_work, "advanced with nothing to do"
        self.ticks += 1
        if self.ticks == self.fails_at:
            raise OSError("the device is gone")
        self.most = max(self.most, len(self.at_work))
        for job in self.at_work.values():
            job[1] -= 1
        done = [(client, value) for client, (value, left) in self.at_work.items() if left <= 0]
        for client, _ in done:
            del self.at_work[client]
        return list(reversed(done))  # in an order of its own

    def abandon(self) -> None:
        self.abandoned += 1
        self.at_work.clear()


@dataclass(frozen=True)
class Word(Message):
    n: int


@dataclass
class Clients:
    """Coroutines by script, and what became of them."""

    begun: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    """By whatever way: returned, failed, or closed."""

    async def run(self, client: int, script: Any) -> tuple[Any, ...]:
        self.begun.append(client)
        try:
            results = []
            for step in script:
                match step:
                    case int():  # so many ticks of the engine
                        results.append(await Call(client, (f"{client}:{len(results)}", step)))
                    case str():  # an exchange of that name
                        heard = await Call(client, Exchange(step, Word(client * 10 + len(results))))
                        results.append([(peer, word.n) for peer, word in heard.items()])
                    case Exception():
                        raise step
            return (client, *results)
        finally:
            self.ended.append(client)

    def jobs(self, scripts: Any) -> Any:
        for client, script in enumerate(scripts):
            yield client, self.run(client, script)


def outcome(scripts, slots=3, window=64):
    clients, engine = Clients(), Engine(slots)
    replies = list(drive(clients.jobs(scripts), engine, window))
    return replies, clients, engine


@pytest.fixture(autouse=True)
def nothing_is_left_unawaited():
    """A coroutine that was made and never begun warns when it is collected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(w.message) for w in caught if "never awaited" in str(w.message)] == []


scripts = st.lists(st.lists(st.integers(1, 4), max_size=3), max_size=12)


# -- order and bounds


@LAW
@given(scripts, st.integers(1, 5), st.integers(1, 6))
def test_replies_come_in_the_order_of_jobs_whatever_the_room(jobs, slots, window):
    replies, _, engine = outcome(jobs, slots, window)
    assert replies == [(i, (i, *(f"{i}:{k}" for k in range(len(script))))) for i, script in enumerate(jobs)]
    assert engine.most <= slots
    assert engine.abandoned == 1
    assert sorted(engine.admitted) == sorted(
        (i, f"{i}:{k}") for i, script in enumerate(jobs) for k in range(len(script))
    )


@LAW
@given(scripts, st.integers(1, 5), st.integers(1, 6))
def test_no_more_are_begun_than_the_window_allows(jobs, slots, window):
    """Whoever is begun and not yet yielded holds memory."""
    clients = Clients()
    for count, _ in enumerate(drive(clients.jobs(jobs), Engine(slots), window)):
        assert len(clients.begun) - count <= window
    assert len(clients.begun) == len(jobs)


@LAW
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=1), max_size=12), st.integers(1, 5))
def test_first_calls_are_admitted_in_the_order_of_jobs(jobs, slots):
    _, _, engine = outcome(jobs, slots)
    assert [client for client, _ in engine.admitted] == list(range(len(jobs)))


def test_the_engine_is_kept_full():
    """Nine calls of 2 ticks on 3 slots: 6 ticks, and not one more."""
    _, _, engine = outcome([[2]] * 9, slots=3)
    assert (engine.ticks, engine.most) == (6, 3)


def test_a_slow_first_client_does_not_hold_up_the_others():
    """4 slots: client 0 works all the time while the others pass through; it is still yielded first."""
    replies, clients, engine = outcome([[8], *[[2]] * 12], slots=4)
    assert engine.ticks == 8
    assert clients.ended[-1] == 0
    assert [client for client, _ in replies] == list(range(13))


def test_nobody_is_begun_before_there_is_room():
    """With one slot the second client's vectors need not exist while the first one trains."""
    clients, engine = Clients(), Engine(1)
    seen = []

    def jobs():
        for client in range(3):
            seen.append(dict(engine.at_work))
            yield client, clients.run(client, [2])

    list(drive(jobs(), engine))
    assert seen == [{}, {}, {}]


def test_nothing_is_begun_before_the_first_reply_is_asked_for():
    clients = Clients()
    replies = drive(clients.jobs([[1]]), Engine())
    assert clients.begun == []
    assert next(replies) == (0, (0, "0:0"))


def test_clients_that_need_no_engine_reply_too():
    assert outcome([[]] * 5, slots=1, window=2)[0] == [(i, (i,)) for i in range(5)]


def test_nobody_at_all():
    assert outcome([])[0] == []


# -- failures


def failed(reply):
    return reply.missing.reason, reply.missing.detail


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("script", [[ClientFailed("no rows")], [2, ClientFailed("no rows")]])
def test_a_declared_failure_is_a_reply_and_leaves_the_neighbours_alone(slots, script):
    replies, _, _ = outcome([[1, 2], script, [3]], slots)
    assert [client for client, _ in replies] == [0, 1, 2]
    assert failed(replies[1][1]) == ("failed", "no rows")
    assert replies[0][1] == (0, "0:0", "0:1")
    assert replies[2][1] == (2, "2:0")


class FailingEngine(Engine):
    """Says of client 1's first call that its loss is not finite."""

    def advance(self):
        return [
            (client, ClientFailed("loss is nan", "nonfinite") if value == "1:0" else value)
            for client, value in super().advance()
        ]


def test_a_failure_in_the_engine_is_raised_where_the_client_waits():
    replies = list(drive(Clients().jobs([[1], [2, 5], [1]]), FailingEngine(2)))
    assert failed(replies[1][1]) == ("nonfinite", "loss is nan")
    assert [replies[0][1], replies[2][1]] == [(0, "0:0"), (2, "2:0")]


def test_a_page_may_go_on_after_a_failure():
    async def careful(client):
        try:
            return await Call(client, ("1:0", 1))
        except ClientFailed:
            return await Call(client, ("smaller step", 1))

    assert list(drive(((1, careful(1)) for _ in range(1)), FailingEngine(1))) == [(1, "smaller step")]


def test_a_bug_names_the_client_and_ends_everything():
    clients, engine = Clients(), Engine(3)
    replies = drive(clients.jobs([[1], [9], [2, KeyError("coffee")], [9], [9], [9]]), engine)
    assert next(replies)[0] == 0
    with pytest.raises(KeyError, match="coffee") as caught:
        list(replies)
    assert caught.value.__notes__ == ["in the local half of client 2"]
    assert sorted(clients.ended) == sorted(clients.begun)
    assert (engine.abandoned, engine.at_work) == (1, {})


def test_a_bug_in_the_engine_ends_everything():
    clients, engine = Clients(), Engine(2, fails_at=3)
    with pytest.raises(OSError, match="device"):
        list(drive(clients.jobs([[5]] * 4), engine))
    assert sorted(clients.ended) == sorted(clients.begun)
    assert engine.abandoned == 1


def test_a_bug_where_jobs_are_made_ends_everything():
    clients, engine = Clients(), Engine(3)

    def jobs():
        yield 0, clients.run(0, [5])
        raise LookupError("no such row")

    with pytest.raises(LookupError):
        list(drive(jobs(), engine))
    assert clients.ended == [0]
    assert engine.abandoned == 1


def test_a_page_that_returns_nothing_is_told_so():
    async def forgetful():
        return None

    with pytest.raises(TypeError, match="client 4 returned nothing"):
        list(drive(((4, forgetful()) for _ in range(1)), Engine()))


@pytest.mark.parametrize("window", [1, 2, 64])
@pytest.mark.parametrize("between", [0, 1, 3])
def test_a_client_that_comes_twice_is_refused(window, between):
    clients = Clients()
    order = [7, *range(between), 7]
    with pytest.raises(ValueError, match="client 7 is asked twice"):
        list(drive(((client, clients.run(client, [1])) for client in order), Engine(), window))
    assert sorted(clients.ended) == sorted(clients.begun)


# -- given up half-way


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_replies_nobody_wants_any_more(taken):
    """The collect was broken off: coroutines are closed, the engine forgets, no further job is made."""
    clients, engine = Clients(), Engine(2)
    replies = drive(clients.jobs([[2], [3], [1], [4], [1], [1]]), engine, window=4)
    for _ in range(taken):
        next(replies)
    replies.close()
    assert sorted(clients.ended) == sorted(clients.begun)
    assert engine.at_work == {}
    assert len(clients.begun) < 6


@pytest.mark.parametrize("taken", [1, 2])
def test_coroutines_that_are_all_made_beforehand_are_closed_too(taken):
    """Jobs may be a plain list; those that were never begun are closed like the others."""
    clients = Clients()
    replies = drive([(i, clients.run(i, [2])) for i in range(5)], Engine(1), window=2)
    for _ in range(taken):
        next(replies)
    replies.close()
    assert sorted(clients.ended) == sorted(clients.begun)


# -- exchanges


def test_all_hear_all_in_the_order_of_clients():
    """Whoever comes to speak first: clients work 3, 1 and 2 ticks before."""
    replies, _, _ = outcome([[3, "keys"], [1, "keys"], [2, "keys"]], slots=2)
    everything = [(0, 1), (1, 11), (2, 21)]
    assert [reply[-1] for _, reply in replies] == [everything] * 3


@LAW
@given(st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=7), st.integers(1, 4), st.integers(1, 4))
def test_an_exchange_needs_everybody_however_small_the_window(before, slots, window):
    replies, _, _ = outcome([[*work, "a", 1, "b"] for work in before], slots, window)
    for name, place in (("a", 0), ("b", 2)):
        said = [(i, 10 * i + len(work) + place) for i, work in enumerate(before)]
        heard = [reply[1 + len(before[client]) + place] for client, reply in replies]
        assert heard == [said] * len(before), name
    assert [client for client, _ in replies] == list(range(len(before)))


def test_who_failed_or_ended_before_is_not_waited_for():
    replies, _, _ = outcome([["keys"], [2, ClientFailed("gone")], [1], [1, "keys"]], slots=2)
    assert [reply for i, reply in replies if i in (0, 3)] == [(0, [(0, 0), (3, 31)]), (3, "3:0", [(0, 0), (3, 31)])]
    assert failed(replies[1][1]) == ("failed", "gone")


def test_who_is_alone_hears_itself():
    assert outcome([["keys"]])[0] == [(0, (0, [(0, 0)]))]


def test_a_second_phase_hears_only_who_is_left():
    replies, _, _ = outcome([["a", "b"], ["a", ClientFailed("gone")], ["a", 2, "b"]])
    assert replies[0][1][2] == [(0, 1), (2, 22)]


def test_clients_in_different_exchanges_would_wait_for_ever():
    clients, engine = Clients(), Engine()
    with pytest.raises(RuntimeError, match=r"different exchanges \(keys, masks\)"):
        list(drive(clients.jobs([["keys"], ["masks"], [1, "keys"]]), engine))
    assert sorted(clients.ended) == [0, 1, 2]
