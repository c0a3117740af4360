"""The round loop: retries with another cohort, a stop in words, one state after the other."""

from dataclasses import dataclass, field

import pytest
import torch

from contract.links import Passing
from fedloom.algorithms.ditto import Ditto
from fedloom.algorithms.fedbuff import FedBuff, Start
from fedloom.channel.codec import encode
from fedloom.contracts import Missing, NobodyReplied, TooFewReplies
from fedloom.errors import RunStopped
from fedloom.rounds import advance, one_round
from fedloom.runtime.folding import Traffic
from fedloom.runtime.site import Reply
from fedloom.spaces.factors import Factors
from seam.quadratic import PLAIN, World


@dataclass
class Hub:
    """What the loop touches of a hub."""

    round: int = 0
    attempt: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    flight: int = 0
    rewound: list[int] = field(default_factory=list)
    told: list[object] = field(default_factory=list)

    def events(self, event: object) -> None:
        self.told.append(event)

    def rewind(self, round: int) -> None:
        self.rewound.append(round)

    def snapshot(self) -> int:
        return self.flight

    def restore(self, flight: int) -> None:
        self.flight = flight


@dataclass
class Page:
    """Counts on; fails in a round as often as is written for it."""

    fails: dict[int, int] = field(default_factory=dict)
    tried: list[tuple[int, int, int]] = field(default_factory=list)

    def round(self, state: int, hub: Hub) -> int:
        self.tried.append((hub.round, hub.attempt, state))
        hub.flight += 1
        hub.traffic.bytes_down += 100
        hub.traffic.missing += 1
        hub.traffic.examples += 8
        if hub.attempt < self.fails.get(hub.round, 0):
            raise TooFewReplies(1, 2, {7: Missing("late", "asleep")})
        return state + 10


def test_rounds_follow_each_other():
    """Each round sees the state of the one before; `after` sees it when the round is counted."""
    page, hub, seen = Page(), Hub(), []
    assert advance(page, 0, hub, 3, retries=2, after=lambda s: seen.append((hub.round, s))) == 30
    assert page.tried == [(0, 0, 0), (1, 0, 10), (2, 0, 20)]
    assert seen == [(1, 10), (2, 20), (3, 30)]
    assert hub.rewound == []


def test_a_finished_run_has_nothing_left_to_do():
    page = Page()
    assert advance(page, 5, Hub(round=3), 3, retries=2) == 5
    assert page.tried == []


def test_a_failed_round_is_tried_again_from_the_same_state():
    page, hub = Page({1: 2}), Hub()
    assert advance(page, 0, hub, 3, retries=2) == 30
    assert page.tried == [(0, 0, 0), (1, 0, 10), (1, 1, 10), (1, 2, 10), (2, 0, 20)]
    assert hub.rewound == [1, 1]  # everything clients wrote after the one round that is behind us
    assert hub.flight == 3  # the work of the attempts that count


def test_what_a_failed_attempt_cost_is_counted_and_what_it_trained_is_not():
    """Two failed attempts and one that counts: bytes were sent three times, eight examples were learned from."""
    hub = Hub()
    one_round(Page({0: 2}), 0, hub, retries=2)
    assert (hub.traffic.bytes_down, hub.traffic.missing, hub.traffic.examples) == (300, 3, 8)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_round_that_keeps_failing_stops_the_run_in_words(retries):
    page, hub, seen = Page({1: 99}), Hub(), []
    with pytest.raises(
        RunStopped, match=rf"round 2 failed {retries + 1} times: 1 replies counted, 2 are needed.*asleep"
    ):
        advance(page, 0, hub, 3, retries, after=seen.append)
    assert len(page.tried) == 1 + retries + 1
    assert hub.rewound == [1] * (retries + 1)
    assert hub.round == 1
    assert seen == [10]


def test_a_bug_is_not_tried_again():
    page, hub = Page(), Hub()
    page.round = lambda state, hub: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        one_round(page, 0, hub, retries=3)
    assert hub.rewound == []


class Empty:
    """A page whose cohort is sometimes nobody: it asks, counts, and finds no value."""

    def __init__(self, empty):
        self.empty, self.tried = empty, []

    def round(self, state, hub):
        self.tried.append((hub.round, hub.attempt))
        hub.flight += 1
        if hub.round in self.empty:
            raise NobodyReplied("no reply counted")
        return state + 10


def test_a_round_in_which_nobody_replied_changes_nothing_and_counts():
    page, hub, seen = Empty({0, 2}), Hub(), []
    assert advance(page, 0, hub, 4, retries=3, after=lambda s: seen.append((hub.round, s))) == 20
    assert page.tried == [(0, 0), (1, 0), (2, 0), (3, 0)]  # it is not tried again
    assert seen == [(1, 0), (2, 10), (3, 10), (4, 20)]
    assert hub.rewound == [0, 2]
    assert hub.flight == 2  # the work of the two that changed something
    assert [type(event).__name__ for event in hub.told] == ["Noted", "Noted"]


class Nobody:
    """A sampler that asks nobody in the rounds of a list."""

    def __init__(self, rounds):
        self.rounds = rounds

    def draw(self, known, count, key, round):
        return [] if round in self.rounds else sorted(known)[:count]


def test_an_empty_cohort_of_a_real_page_keeps_the_state_and_every_memory():
    world = World(clients=6, cohort=3)
    page, asked = Ditto(Factors(PLAIN)), []
    hub = world.hub(page, events=lambda e: asked.append(getattr(e, "cohort", None)))
    hub.sampler = Nobody({1})
    states, memories = [], []
    store = hub.link.site.store  # type: ignore[attr-defined]

    def after(state):
        states.append(state)
        memories.append({i: encode(store.open(i).memory) for i in range(6)})

    advance(page, page.init(world.start()), hub, 3, retries=2, after=after)
    assert states[0] is states[1]
    assert memories[0] == memories[1] != memories[2]
    assert not torch.equal(states[1].x, states[2].x)


class LosingFirst(Passing):
    """Loses the last `lost` replies of the first collect, after the others were counted."""

    lost, asked = 2, 0

    def ask(self, dispatches):
        self.asked += 1
        for place, reply in enumerate(self.inner.ask(dispatches)):
            gone = self.asked == 1 and place >= len(dispatches) - self.lost
            yield Reply(reply.dispatch, None, Missing("late", "-"), reply.summary, 0) if gone else reply


def test_a_failed_attempt_leaves_no_trace_in_memories():
    """Clients that counted in the attempt that failed, and are not asked again, remember nothing."""
    world = World(clients=12, cohort=3, min_replies=3)
    page, asked = Ditto(Factors(PLAIN)), []
    hub = world.hub(page, wrap=LosingFirst, events=lambda e: asked.append(getattr(e, "cohort", None)))
    one_round(page, page.init(world.start()), hub, retries=1)
    first, second = (set(cohort) for cohort in asked if cohort)
    assert first != second
    store = hub.link.inner.site.store  # type: ignore[attr-defined]
    assert {i for i in range(12) if store.open(i).memory.entries} == second


class Vain(FedBuff):
    """Puts two to work and gives up."""

    def round(self, s, fed):
        fed.send(self.local, lambda _: Start(s.x, s.t), [0, 1])
        raise TooFewReplies(0, 1, {})


def test_a_failed_attempt_leaves_no_work_in_flight():
    """What is in flight after the stop is what was before the round: nothing."""
    world, page = World(), Vain(buffer=2, concurrency=2)
    hub = world.hub(page)
    before = hub.snapshot()
    with pytest.raises(RunStopped, match=r"federation\.cohort"):
        one_round(page, page.init(world.start()), hub, retries=1)
    assert hub.snapshot() == before
    assert hub.busy() == frozenset()


def test_what_is_lost_in_flight_makes_room_for_what_comes_next():
    """Of four at work two are lost: the other two fill the buffer, whatever `min_replies` says of collects."""
    world = World(min_replies=2)
    page = FedBuff(buffer=2, concurrency=4)
    hub = world.hub(page, wrap=LosingFirst)
    state = one_round(page, page.init(world.start()), hub, retries=0)
    assert state.t == 1
    assert not torch.equal(state.x, world.start())
    assert hub.busy() == frozenset()
