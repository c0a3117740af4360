"""The server's side: cohorts, order, counting, failures, virtual time. Replies come from a table, not from training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedloom.aggregate.rules import Gather, Max, Mean, Sum
from fedloom.algorithms.fedavg import Start
from fedloom.algorithms.fedbuff import FedBuff
from fedloom.channel.codec import decode, encode
from fedloom.contracts import HOME, Client, Message, Missing, Profile, Summary, TooFewReplies, Weighted
from fedloom.events import ClientTrained, ReplyMissing, RoundStarted
from fedloom.params import Layout, Leaf
from fedloom.runtime.federation import FederationState, Hub
from fedloom.runtime.link import Near
from fedloom.runtime.site import Dispatch, Reply, Tasks
from seam.quadratic import World
from seam.table import rows

LAW = settings(deadline=None, derandomize=True, max_examples=50)
LAYOUT = Layout.of([Leaf("w", (1,))])


@dataclass(frozen=True)
class Down(Message):
    x: Tensor


@dataclass(frozen=True)
class Up(Weighted):
    y: Tensor
    n: float = 0.0


@dataclass(frozen=True)
class Bare(Message):
    y: float


@dataclass(frozen=True)
class Scale(Message):
    x: float
    weight: float


class Page:
    async def scale(self, down: Down, client: Client) -> Scale:
        raise AssertionError("the link answers")

    async def local(self, down: Down, client: Client) -> Up:
        raise AssertionError("the link answers")

    async def bare(self, down: Down, client: Client) -> Bare:
        raise AssertionError("the link answers")


PAGE = Page()


@dataclass
class Table(Near):
    """A link that answers from a function and writes down what it is told."""

    answer: Callable[[Dispatch], Any]
    arrival: Callable[[list[Reply]], list[Reply]] = lambda replies: replies
    summary: Callable[[int], Summary] = lambda client: Summary()
    told: list[Any] = field(default_factory=list)
    asked: list[Dispatch] = field(default_factory=list)

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        self.asked += dispatches
        replies = []
        for d in dispatches:
            up = self.answer(d)
            if isinstance(up, Missing):
                replies.append(Reply(d, None, up, self.summary(d.client), 0))
            elif up is not None:
                replies.append(Reply(d, up, None, self.summary(d.client), len(encode(up))))
        return iter(self.arrival(replies))

    def settle(self, client: int, round: int, counted: bool) -> None:
        self.told.append((client, round, counted))

    def commit(self, *rounds: int) -> None:
        self.told.append(("commit", *rounds))

    def rewind(self, round: int) -> None:
        self.told.append(("rewind", round))

    def close(self) -> None:
        self.told.append("close")


def hub(answer: Any = lambda d: Up(weight=1.0, y=torch.tensor([float(d.client)])), **changes: Any) -> Hub:
    link = changes.pop("link", None) or Table(answer)
    speeds = changes.pop("speeds", {})
    settings = {
        "link": link, "tasks": Tasks(PAGE), "clients": range(6), "cohort": 3, "root": 0, "min_replies": 1,
        "profile": lambda i: Profile(i, f"name-{i}", LAYOUT, speeds.get(i, 1.0)),
    }  # fmt: skip
    return Hub(**{**settings, **changes})


def down(client: int) -> Down:
    return Down(torch.zeros(1))


def collect(made: Hub, to: Sequence[int] = range(6), rule: Any = None, task: Any = PAGE.local) -> Any:
    return made.collect(task, down, to, rule or Mean())


# -- cohorts


def test_a_cohort_is_some_of_the_clients_once_each():
    made, counts = hub(clients=[3, 5, 8, 13, 21, 34]), dict.fromkeys((3, 5, 8, 13, 21, 34), 0)
    for made.round in range(600):
        cohort = made.cohort()
        assert cohort == sorted(set(cohort))
        assert len(cohort) == 3
        for client in cohort:
            counts[client] += 1
    assert all(240 < count < 360 for count in counts.values())  # 300 each, standard deviation 12


def test_a_cohort_is_a_matter_of_root_round_and_attempt_alone():
    made = hub()
    first = [made.draw() for made.round in range(5)]
    collect(made)
    made.send(PAGE.local, down, [1])
    made.round = 0
    assert [made.draw() for made.round in range(5)] == first
    assert [hub(link=Table(lambda d: None), min_replies=3).draw()] == first[:1]


@pytest.mark.parametrize("what", ["root", "round", "attempt"])
def test_other_roots_rounds_and_attempts_draw_otherwise(what):
    """20 choose 5 is 15,504: five cohorts in a row are hardly alike."""
    drawn = []
    for value in range(5):
        made = hub(clients=range(20), cohort=5, root=value if what == "root" else 0)
        if what != "root":
            setattr(made, what, value)
        drawn.append(tuple(made.draw()))
    assert len(set(drawn)) == 5


def test_a_cohort_is_the_same_in_whatever_order_clients_joined():
    """In a deployment they join as they come; the run must not depend on it."""
    shuffled = hub(clients=[4, 0, 5, 2, 1, 3])
    for round in range(5):
        plain = hub()
        plain.round = shuffled.round = round
        assert shuffled.draw() == plain.draw()


def test_a_page_may_ask_for_fewer_or_more_and_leave_some_out():
    made = hub(clients=[3, 5, 8, 13, 21, 34])
    for made.round in range(20):
        assert len(made.cohort(2)) == 2
        assert made.cohort(6) == made.cohort(60) == [3, 5, 8, 13, 21, 34]
        assert made.cohort(0) == []
        left = made.cohort(4, without=[5, 21])
        assert made.last_cohort == tuple(left)
        assert left == [3, 8, 13, 34]
        assert not set(made.cohort(without={3, 8})) & {3, 8}
        assert made.cohort(without=range(40)) == []
        assert made.cohort(without=[99]) == made.cohort()  # who is not there cannot be missed


def test_who_is_left_out_gives_the_others_equal_chances():
    """3 of the 4 that are left, 600 times: 450 each, standard deviation 11."""
    made, counts = hub(clients=range(6)), dict.fromkeys(range(6), 0)
    for made.round in range(600):
        for client in made.cohort(3, without=(0, 4)):
            counts[client] += 1
    assert counts[0] == counts[4] == 0
    assert all(395 < counts[i] < 505 for i in (1, 2, 3, 5))


def test_held_out_clients_are_known_and_never_drawn():
    made = hub(clients=[0, 2, 5], everybody=range(6), cohort=3)
    drawn = {client for made.round in range(50) for client in made.cohort()}
    assert drawn == {0, 2, 5}
    assert list(made.everybody) == [0, 1, 2, 3, 4, 5]
    assert hub(clients=[0, 2, 5]).everybody == [0, 2, 5]
    assert made.survey(PAGE.local, down, list(made.everybody), Gather()).clients == (0, 1, 2, 3, 4, 5)


def test_notes_belong_to_the_round_and_not_to_a_failed_attempt():
    made = hub()
    made.note(drift=1.0, staleness=2.0)
    made.note(drift=3.0, broken=float("nan"), endless=float("inf"))
    assert made.traffic.figures == {"drift": 3.0, "staleness": 2.0}  # what is no number is not noted
    made.survey(PAGE.local, down, [0], Gather())
    assert made.traffic.figures == {"drift": 3.0, "staleness": 2.0}
    assert made.traffic.again().figures == {}
    assert hub().traffic.figures == {}  # nothing is shared between federations


def test_more_than_there_are_is_everybody():
    assert hub(cohort=6).draw() == hub(cohort=60).draw() == [0, 1, 2, 3, 4, 5]


def test_drawing_changes_nothing_and_the_cohort_of_a_round_is_remembered():
    made = hub()
    assert made.draw() == made.draw()
    assert made.last_cohort == ()
    cohort = made.cohort()
    assert made.last_cohort == tuple(cohort) == tuple(made.draw())


def test_every_attempt_of_a_round_is_announced_once_when_its_first_task_is_sent():
    heard = []
    made = hub(events=lambda e: heard.append(e) if isinstance(e, RoundStarted) else None)
    made.cohort()
    assert heard == []
    for made.round, made.attempt in ((4, 0), (4, 1), (5, 0)):
        collect(made, [2, 1])
        collect(made, [3])
    assert heard == [RoundStarted(5, (1, 2), 0), RoundStarted(5, (1, 2), 1), RoundStarted(6, (1, 2), 0)]
    made.round = 6
    made.survey(PAGE.local, down, [0], Gather())
    assert len(heard) == 3
    made.send(PAGE.local, down, [5])
    assert heard[3:] == [RoundStarted(7, (5,), 0)]


# -- collect


def test_a_collect_by_hand():
    """Clients 1 and 4 with weights 30 and 10: 0.75 * 1 + 0.25 * 4."""
    made = hub(lambda d: Up(weight={1: 30.0, 4: 10.0}[d.client], y=torch.tensor([float(d.client)])))
    got = collect(made, [4, 1])
    assert got.value.y.tolist() == [1.75]
    assert (got.clients, got.missing, got.weight) == ((1, 4), {}, 40.0)
    assert [(d.client, d.round, d.task) for d in made.link.asked] == [(1, 0, "local"), (4, 0, "local")]


def test_every_client_gets_its_own_message():
    made = hub()
    made.collect(PAGE.local, lambda i: Down(torch.tensor([10.0 * i])), [5, 2], Mean())
    assert [(d.client, d.down.x.item()) for d in made.link.asked] == [(2, 20.0), (5, 50.0)]


@LAW
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_replies_enter_in_the_order_of_clients_whoever_comes_first(order, silent):
    """float64 sums depend on the order; some never come."""
    link = Table(
        lambda d: None if d.client in silent else Up(weight=1.0, y=torch.tensor([float(d.client)])),
        arrival=lambda replies: sorted(replies, key=lambda r: order.index(r.dispatch.client)),
    )
    got = hub(link=link).survey(PAGE.local, down, range(6), Gather())
    there = [i for i in range(6) if i not in silent]
    assert list(got.clients) == there
    assert set(got.missing) == silent
    assert there == [] or [value.item() for value, _ in got.value.y] == there


def test_who_never_answers_is_silent_and_nothing_is_settled_for_it():
    heard, link = [], Table(lambda d: None if d.client == 2 else Up(weight=1.0, y=torch.ones(1)))
    made = hub(link=link, events=lambda e: heard.append(e) if isinstance(e, ReplyMissing) else None)
    made.round = 4
    got = collect(made)
    assert got.missing == {2: Missing("silent", "no reply came")}
    assert heard == [ReplyMissing(5, 2, "name-2", "silent", "no reply came")]
    assert link.told == [(i, 5, True) for i in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize(
    ("up", "reason"),
    [
        (Missing("failed", "no rows"), "failed"),
        (Missing("late", "asleep"), "late"),
        (Up(weight=1.0, y=torch.tensor([float("nan")])), "nonfinite"),
        (Up(weight=float("inf"), y=torch.ones(1)), "nonfinite"),
        (Up(weight=-1.0, y=torch.ones(1)), "refused"),
        (Up(weight=0.0, y=torch.ones(1)), "failed"),
    ],
)
def test_a_reply_that_does_not_count_is_named_undone_and_left_out(up, reason):
    heard = []
    made = hub(
        lambda d: up if d.client == 3 else Up(weight=1.0, y=torch.tensor([7.0])),
        events=lambda e: heard.append(e) if isinstance(e, ReplyMissing) else None,
    )
    got = collect(made)
    assert got.value.y.tolist() == [7.0]
    assert got.clients == (0, 1, 2, 4, 5)
    assert got.missing[3].reason == reason
    assert (3, 1, False) in made.link.told
    assert [(e.client, e.reason) for e in heard] == [(3, reason)]
    assert (made.traffic.missing, got.weight) == (1, 5.0)


def test_each_field_has_its_own_rule():
    made = hub(lambda d: Up(weight=1.0 + d.client, y=torch.tensor([1.0]), n=float(d.client)))
    got = collect(made, [0, 1, 2], {"y": Sum(), "n": Max()})
    assert (got.value.y.tolist(), got.value.n) == ([3.0], 2.0)


@pytest.mark.parametrize(
    "rule", [{"y": Mean()}, {"y": Mean(), "n": Max(), "m": Max()}, {"y": Mean(), "weight": Sum()}, {}]
)
def test_rules_that_do_not_fit_the_message_are_refused(rule):
    with pytest.raises(ValueError, match=r"rules are given for .* but Up has the fields \['n', 'y'\]"):
        hub().collect(PAGE.local, down, [0], rule)


def test_a_weight_is_a_field_like_any_other_where_messages_carry_none():
    """Only `Weighted` gives the name a meaning."""
    made = hub(lambda d: Scale(float(d.client), weight=10.0 * d.client))
    got = collect(made, [1, 2], Mean(uniform=True), PAGE.scale)
    assert (got.value.x, got.value.weight, got.weight) == (1.5, 15.0, 2.0)


def test_a_message_without_weight_counts_one():
    got = collect(hub(lambda d: Bare(float(d.client))), [1, 2], Mean(uniform=True), PAGE.bare)
    assert (got.value.y, got.weight) == (1.5, 2.0)


def test_a_client_asked_twice_in_one_collect_is_refused():
    made = hub()
    with pytest.raises(ValueError, match=r"round 1: a client is asked twice in one collect: \[1, 3, 3\]"):
        collect(made, [3, 1, 3])
    assert made.link.asked == []


def test_asking_nobody_gives_nothing_and_is_no_failure():
    got = collect(hub(min_replies=3), [])
    assert (got.clients, got.missing, got.weight) == ((), {}, 0.0)
    with pytest.raises(LookupError, match="no reply counted"):
        got.value  # noqa: B018


# -- how many are enough


@pytest.mark.parametrize(
    ("good", "min_replies", "enough"),
    [(3, 3, True), (2, 3, False), (0, 1, False), (5, 6, False), (6, 6, True), (6, 9, True)],
)
def test_how_many_replies_are_enough(good, min_replies, enough):
    """Six are asked; of a page that asks fewer than `min_replies`, no more than that are needed."""
    made = hub(
        lambda d: Up(weight=1.0, y=torch.ones(1)) if d.client < good else Missing("failed", f"why {d.client}"),
        min_replies=min_replies,
    )
    if enough:
        assert len(collect(made).clients) == good
    else:
        with pytest.raises(TooFewReplies, match=f"{good} replies counted.*client {good}: failed, why {good}") as few:
            collect(made)
        assert set(few.value.missing) == set(range(good, 6))
    assert len(made.survey(PAGE.local, down, range(6), Gather()).clients) == good


# -- the server's own worker


def test_home_is_asked_over_its_own_link():
    clients, own = (
        Table(lambda d: Up(weight=1.0, y=torch.ones(1))),
        Table(lambda d: Up(weight=3.0, y=torch.ones(1) * 5)),
    )
    made = hub(link=clients, home=own)
    assert made.home == HOME
    got = collect(made, [2, HOME, 0])
    assert got.clients == (HOME, 0, 2)
    assert [d.client for d in own.asked] == [HOME]
    assert [d.client for d in clients.asked] == [0, 2]
    assert own.told == [(HOME, 1, True)]


def test_there_is_no_home_unless_the_run_has_one():
    made = hub()
    assert made.home is None
    with pytest.raises(ValueError, match="no worker of the server's own"):
        collect(made, [HOME])


@pytest.mark.parametrize("own", [None, "same", "other"])
def test_every_link_is_told_once(own):
    link = Table(lambda d: None)
    other = {None: None, "same": link, "other": Table(lambda d: None)}[own]
    made = hub(link=link, home=other)
    made.commit(2, 3)
    made.rewind(2)
    made.close()
    for each in {id(x): x for x in (link, other) if x is not None}.values():
        assert each.told == [("commit", 2, 3), ("rewind", 2), "close"]


# -- traffic


def test_bytes_are_those_of_the_encoded_messages():
    """Down: to everybody asked, also who is silent. Up: from everybody who replied, also who does not count."""
    answers = {
        0: None,
        1: Missing("failed", "-"),
        2: Up(weight=0.0, y=torch.ones(9)),
        3: Up(weight=1.0, y=torch.ones(5)),
    }
    made = hub(lambda d: answers[d.client])
    downs = {i: Down(torch.zeros(10 + 100 * i)) for i in range(4)}
    made.collect(PAGE.local, downs.__getitem__, range(4), Sum())
    assert made.traffic.bytes_down == sum(len(encode(d)) for d in downs.values())
    assert made.traffic.bytes_up == len(encode(answers[2])) + len(encode(answers[3]))
    assert (made.traffic.missing, made.traffic.counted) == (3, 0)


@pytest.mark.parametrize("shared", [True, False])
def test_a_message_for_many_is_counted_for_each(shared):
    made, one = hub(), Down(torch.zeros(50))
    made.collect(PAGE.local, lambda i: one if shared else Down(one.x), range(6), Mean())
    assert made.traffic.bytes_down == 6 * len(encode(one))


def test_bytes_are_the_same_in_a_real_round():
    row = rows()["fedavg"]
    made, seen = row.world.hub(row.algorithm), []
    ask = made.link.ask
    made.link.ask = lambda ds: (seen.append((r.dispatch.down, r.up)) or r for r in ask(ds))  # type: ignore[method-assign]
    row.algorithm.round(row.algorithm.init(row.world.start()), made)
    assert len(seen) == row.world.cohort
    assert made.traffic.bytes_down == sum(len(encode(d)) for d, _ in seen)
    assert made.traffic.bytes_up == sum(len(encode(up)) for _, up in seen)


def test_training_is_added_up():
    """Losses 1 over 30 examples and 3 over 10: 60 / 40 in the end. Who trained nothing says nothing."""
    summaries = {
        0: Summary(2, 1, 30, 300, 1.0), 1: Summary(1, 0, 10, 50, 3.0), 2: Summary(0, 2, 0, 0, None), 3: Summary(),
        4: Summary(9, 9, 9, 9, 9.0),
    }  # fmt: skip
    heard = []
    link = Table(
        lambda d: Missing("late", "-") if d.client == 4 else Up(weight=1.0, y=torch.ones(1)),
        summary=summaries.__getitem__,
    )
    made = hub(link=link, events=heard.append)
    collect(made, range(5))
    t = made.traffic
    assert (t.counted, t.missing, t.steps, t.skipped, t.examples, t.tokens) == (3, 1, 3, 3, 40, 350)
    assert (t.loss_sum, t.loss_examples) == (60.0, 40)
    assert [(e.client, e.loss) for e in heard if isinstance(e, ClientTrained)] == [(0, 1.0), (1, 3.0), (2, None)]


# -- randomness of tasks


def test_all_of_one_send_share_a_number_and_no_two_sends_do():
    """With the client it keys the task: whoever else was asked does not matter."""
    made, numbers = hub(), []
    for made.round, made.attempt in ((0, 0), (0, 1), (1, 0)):
        collect(made, [0, 4])
        collect(made, [3])
        collect(made, [3], Mean(uniform=True), PAGE.bare)
        asked = [d.number for d in made.link.asked]
        assert asked[0] == asked[1]
        numbers += asked[1:]
        made.link.asked.clear()
    made.send(PAGE.local, down, [1, 2])
    one, other = (flight.number for flight in made.snapshot().flight)
    assert one == other
    assert len({*numbers, one}) == 10
    assert len({hub(root=root)._dispatches(PAGE.local, down, [0])[0].number for root in range(5)}) == 5


def test_a_client_trains_the_same_whoever_else_is_asked():
    row = rows()["fedavg"]

    def reply_of_client_2(to):
        made = row.world.hub(row.algorithm)
        state = row.algorithm.init(row.world.start())
        got = made.collect(row.algorithm.local, lambda i: Start(state.x, (), 0), to, Gather())
        return got.value.y[got.clients.index(2)][0]

    assert torch.equal(reply_of_client_2([2]), reply_of_client_2([0, 2, 3, 4]))


def test_looking_at_a_model_between_rounds_does_not_change_the_training():
    """An evaluation is a collect too; how often a run is evaluated must not decide which batches it trains on."""
    row = rows()["fedavg"]
    ends = []
    for evaluated in (False, True):
        made, state = row.world.hub(row.algorithm), row.algorithm.init(row.world.start())
        look = Look()
        made.tasks = made.link.site.tasks = Tasks(row.algorithm, look)  # type: ignore[attr-defined]
        for made.round in range(3):
            state = row.algorithm.round(state, made)
            if evaluated:
                made.round += 1
                made.survey(look.score, lambda i: Down(torch.zeros(1)), [0, 1], Gather())
        ends.append(state.x)
    assert torch.equal(*ends)


def test_a_survey_counts_no_traffic_and_belongs_to_the_round_that_is_over():
    heard = []
    made = hub(
        lambda d: Missing("failed", "-") if d.client == 1 else Up(weight=1.0, y=torch.ones(1)), events=heard.append
    )
    made.round = 3
    collect(made, [0])
    traffic = replace(made.traffic)
    heard.clear()
    got = made.survey(PAGE.local, down, [0, 1], Gather())
    assert (got.clients, set(got.missing)) == ((0,), {1})
    assert made.traffic == traffic
    assert heard == [ReplyMissing(3, 1, "name-1", "failed", "-")]
    assert made.link.told[-2:] == [(0, 3, True), (1, 3, False)]


def test_a_survey_that_goes_wrong_loses_no_traffic():
    made = hub()
    collect(made, [0])
    traffic = replace(made.traffic)
    with pytest.raises(ValueError, match="each field needs its rule"):
        made.survey(PAGE.local, down, [0, 1], {})
    assert made.traffic == traffic


def test_clients_with_work_in_flight_can_be_evaluated():
    """A run of buffered rounds is evaluated like any other: between rounds somebody is always at work."""
    made = hub()
    made.send(PAGE.local, down, [1, 4])
    assert made.survey(PAGE.bare, down, range(6), Gather()).clients == (0, 1, 2, 3, 4, 5)
    assert made.busy() == {1, 4}


class Look:
    async def score(self, down: Down, client: Client) -> Bare:
        return Bare(0.5)


# -- work in flight


SPEEDS = {0: 1.0, 1: 0.5, 2: 0.25, 3: 1.0}  # due after 1, 2, 4 and 1 units


def test_replies_come_in_virtual_time():
    """Both fast ones first (by client), then 1 and 2; the fast one sent again at time 1 is due at 2, with client 1."""
    made = hub(speeds=SPEEDS)
    made.send(PAGE.local, down, [0, 1, 2, 3])
    assert made.busy() == {0, 1, 2, 3}
    assert made.link.asked == []
    assert made.receive(2, Mean()).clients == (0, 3)
    assert made.snapshot().clock == 1.0
    made.send(PAGE.local, down, [0])
    assert made.receive(1, Mean()).clients == (0,)
    assert made.receive(1, Mean()).clients == (1,)
    assert made.busy() == {2}
    assert made.receive(9, Mean()).clients == (2,)  # no more than there are
    assert made.snapshot() == FederationState(4.0, ())
    assert made.receive(2, Mean()).clients == ()


def test_who_is_at_work_cannot_be_asked():
    made = hub()
    made.send(PAGE.local, down, [1, 4])
    for again in (lambda: collect(made, [0, 4]), lambda: made.send(PAGE.local, down, [1])):
        with pytest.raises(ValueError, match=r"round 1: clients \[[14]\] still have work in flight"):
            again()


def test_weights_are_multiplied_on_arrival():
    """Staleness (1 + 3)^(-1/2) and 1, weights 2 and 3: (0.5 * 2 * 1 + 1 * 3 * 4) / 4."""
    made = hub(lambda d: Up(weight={1: 2.0, 4: 3.0}[d.client], y=torch.tensor([float(d.client)])))
    made.send(PAGE.local, down, [1, 4])
    got = made.receive(2, Mean(), weigh=lambda up: 0.5 if up.y.item() == 1 else 1.0)
    assert got.value.y.item() == pytest.approx(13 / 4)
    assert got.weight == 4.0
    bare = hub(lambda d: Bare(float(d.client)))
    bare.send(PAGE.bare, down, [1, 4])
    assert bare.receive(2, Mean(), weigh=lambda up: up.y).value.y == pytest.approx((1 * 1 + 4 * 4) / 5)


def test_a_collect_is_a_send_and_a_receive_of_all():
    at_once, apart = hub(), hub()
    together = collect(at_once, [4, 0, 2])
    apart.send(PAGE.local, down, [4, 0, 2])
    received = apart.receive(3, Mean())
    assert torch.equal(together.value.y, received.value.y)
    assert replace(together, fields={}) == replace(received, fields={})
    assert at_once.traffic == apart.traffic


def test_work_in_flight_keeps_the_round_and_message_it_was_sent_with():
    made = hub(speeds=SPEEDS)
    made.round = 2
    made.send(PAGE.local, lambda i: Down(torch.tensor([2.5])), [2])
    made.round = 6
    made.receive(1, Mean())
    (dispatch,) = made.link.asked
    assert (dispatch.round, dispatch.down.x.item()) == (2, 2.5)
    assert made.link.told == [(2, 7, True)]  # counted in the round that is going on


def test_work_in_flight_is_in_the_checkpoint():
    made = hub(speeds=SPEEDS)
    made.round = 2
    made.send(PAGE.local, lambda i: Down(torch.tensor([1.0 + i])), [0, 1, 2, 3])
    made.receive(1, Mean())
    state = decode(FederationState, encode(made.snapshot()))
    assert state == made.snapshot()
    again = hub(speeds=SPEEDS)
    again.restore(state)
    assert again.snapshot() == state
    assert again.busy() == made.busy() == {1, 2, 3}
    for each in (made, again):
        each.round = 3
        each.send(PAGE.local, down, [0])
        each.link.asked.clear()
        each.receive(4, Mean())
    told = [[(d.number, d.client, d.round, d.task, d.down.x.item()) for d in each.link.asked] for each in (made, again)]
    assert told[0] == told[1]
    assert made.snapshot() == again.snapshot()


@pytest.mark.parametrize("after", [1, 3])
def test_buffered_rounds_go_on_to_the_same_bits(after):
    """FedBuff stopped between two rounds with clients at work, its federation's state carried over as bytes."""
    page, world = FedBuff(buffer=2, concurrency=4, server_lr=0.7), World()
    whole, state = world.hub(page), page.init(world.start())
    for whole.round in range(6):
        if whole.round == after:
            kept, middle = encode(whole.snapshot()), state
        state = page.round(state, whole)
    again = world.hub(page)
    again.restore(decode(FederationState, kept))
    for again.round in range(after, 6):
        middle = page.round(middle, again)
    assert encode(middle) == encode(state)
    assert again.snapshot() == whole.snapshot()


# -- stages


@dataclass(frozen=True)
class Times:
    """Multiplies and adds on the server's end."""

    factor: float
    term: float
    hides: bool = False

    async def outgoing(self, up: Any, client: Client, down: Any) -> Any:
        return up

    def incoming(self, up: Any, down: Any) -> Any:
        return replace(up, y=up.y * self.factor + self.term)

    def combine(self, rule: Any) -> Any:
        return rule


def test_stages_are_undone_from_the_last_to_the_first():
    """Client 3's 3: the second stage's end first, 3 * 10 + 0, then the first's, 30 * 1 + 2."""
    made = hub(stages=[Times(1.0, 2.0), Times(10.0, 0.0)])
    assert collect(made, [3]).value.y.item() == 32.0


@pytest.mark.parametrize("rule", [Gather(), Max(), {"y": Mean(), "n": Gather()}])
def test_a_rule_that_sees_each_reply_is_refused_where_a_stage_hides(rule):
    with pytest.raises(ValueError, match=r"field [yn]: its rule looks at single replies"):
        hub(stages=[Times(1.0, 0.0, hides=True)]).collect(PAGE.local, down, [0], rule)
    assert collect(hub(stages=[Times(1.0, 0.0, hides=True)]), [2]).value.y.item() == 2.0
