"""The server's side of every runtime: draws cohorts, sends tasks over a link, combines replies in order.

Runtimes differ in their `Link` only. Replies enter the rules in the order of client indices whatever the order of
arrival (float64 sums do depend on it); early ones wait. A reply that does not count is named, counted, and what its
client wrote is undone.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedloom import rng
from fedloom.channel.check import NO_LIMITS, Limits
from fedloom.channel.codec import decode, encode
from fedloom.contracts import (
    HOME,
    ClientId,
    Fits,
    Got,
    Message,
    Missing,
    Profile,
    Rules,
    Stage,
    Summary,
    Task,
    TooFewReplies,
)  # fmt: skip
from fedloom.events import ClientTrained, Event, Noted, ReplyMissing, RoundStarted
from fedloom.runtime.folding import Fold, Sizes, Traffic
from fedloom.runtime.gate import Gate
from fedloom.runtime.link import Link, Reducer
from fedloom.runtime.sampling import Sampler, Uniform
from fedloom.runtime.site import Dispatch, Reply, Tasks

EXCHANGED = (
    "runtime.reduce=sums, but this method's rules need every reply, or its stages hide them: replies are exchanged as "
    "with runtime.reduce=replies, and the bits are those of one process"
)


@dataclass(frozen=True)
class Flight:
    """A task that was sent and not yet received."""

    due: float
    """Virtual time of its return."""
    number: int
    round: int
    client: ClientId
    task: str
    down: bytes


@dataclass(frozen=True)
class FederationState:
    """What a checkpoint holds of a federation."""

    clock: float
    flight: tuple[Flight, ...]
    memories: Mapping[int, int] = field(default_factory=dict)
    """Which of its versions is each client's memory, where clients are on machines of their own."""


@dataclass(order=True)
class _InFlight:
    due: float
    client: ClientId
    dispatch: Dispatch = field(compare=False)


class Hub:
    """A `Federation` over a link."""

    def __init__(
        self,
        *,
        link: Link,
        tasks: Tasks,
        clients: Sequence[ClientId],
        profile: Callable[[ClientId], Profile],
        cohort: int,
        root: int,
        min_replies: int = 1,
        everybody: Sequence[ClientId] | None = None,
        sampler: Sampler | None = None,
        home: Link | None = None,
        stages: Sequence[Stage] = (),
        limits: Limits = NO_LIMITS,
        reducer: Reducer | None = None,
        events: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.link, self.tasks, self.clients, self.root, self.events = link, tasks, clients, root, events
        self.everybody = clients if everybody is None else everybody
        self.sampler: Sampler = sampler if sampler is not None else Uniform()
        self.round, self.attempt, self.traffic = 0, 0, Traffic()
        self._profile, self._cohort, self._min_replies = profile, cohort, min_replies
        self._gate = Gate(tasks, tuple(stages), limits)
        self._home, self._reducer, self._exchanged = home, reducer, False
        self._clock = 0.0
        self._sent: Counter[str] = Counter()
        self._sent_in: tuple[int, int] | None = None
        self._flight: list[_InFlight] = []
        self._told: tuple[int, int] | None = None
        self.last_cohort: tuple[ClientId, ...] = ()

    # -- what an algorithm's page sees

    @property
    def home(self) -> ClientId | None:
        """The server's own worker, when there is one."""
        return HOME if self._home is not None else None

    def profile(self, client: ClientId) -> Profile:
        """What is known of a client."""
        return self._profile(client)

    def cohort(self, count: int | None = None, without: Collection[ClientId] = ()) -> list[ClientId]:
        """This round's clients by the sampling policy, sorted; may be empty."""
        chosen = self.draw(count, without)
        self.last_cohort = tuple(chosen)
        return chosen

    def draw(self, count: int | None = None, without: Collection[ClientId] = ()) -> list[ClientId]:
        """The cohort of this round and attempt, whether or not it is asked."""
        missing = {*without, *self.link.away()}
        known = sorted(set(self.clients) - missing) if missing else self._known()
        key = rng.key(self.root, "cohort", self.round, self.attempt)
        wanted = min(self._cohort if count is None else count, len(known))
        return self.sampler.draw(known, wanted, key, self.round)

    def note(self, **numbers: float) -> None:
        """Numbers about this round for logs and the report."""
        self.traffic.figures.update({name: value for name, value in numbers.items() if math.isfinite(value)})

    def collect(
        self,
        task: Task[Any, Any],
        down: Callable[[ClientId], Message],
        to: Sequence[ClientId],
        rule: Rules,
        fits: Fits | None = None,
    ) -> Got:
        """Send `down` to each, run `task` there, combine the replies.

        Args:
            task: a coroutine of the page.
            down: the message for each client.
            to: who is asked.
            rule: one for all fields, or one for each.
            fits: says of a reply why it cannot be combined, or None.

        Raises:
            TooFewReplies: fewer than `federation.min_replies`; the round must be tried again.
        """
        dispatches = self._dispatches(task, down, to)
        self._round_begins(dispatches)
        self._say_if_exchanged(rule)
        return self._receive(dispatches, rule, None, self.round + 1, self._min_replies, fits)

    def survey(
        self,
        task: Task[Any, Any],
        down: Callable[[ClientId], Message],
        to: Sequence[ClientId],
        rule: Rules,
        fits: Fits | None = None,
    ) -> Got:
        """A collect between rounds (evaluation, export): any number of replies will do, no traffic is counted."""
        traffic, self.traffic = self.traffic, Traffic()
        try:
            return self._receive(self._dispatches(task, down, to), rule, None, self.round, 0, fits)
        finally:
            self.traffic = traffic

    def send(self, task: Task[Any, Any], down: Callable[[ClientId], Message], to: Sequence[ClientId]) -> None:
        """Begin tasks without waiting; each is due after 1 / speed units of virtual time."""
        dispatches = self._dispatches(task, down, to)
        self._round_begins(dispatches)
        for dispatch in dispatches:
            due = self._clock + 1.0 / self.profile(dispatch.client).speed
            heapq.heappush(self._flight, _InFlight(due, dispatch.client, dispatch))

    def receive(
        self, count: int, rule: Rules, weigh: Callable[[Any], float] | None = None, fits: Fits | None = None
    ) -> Got:
        """The next `count` replies in virtual time.

        Any number of them may not count: sent again they would fail again, so the page goes on with those it has.
        """
        ready = [heapq.heappop(self._flight) for _ in range(min(count, len(self._flight)))]
        self._say_if_exchanged(rule)
        if ready:
            self._clock = max(flying.due for flying in ready)
        return self._receive([flying.dispatch for flying in ready], rule, weigh, self.round + 1, 0, fits)

    def busy(self) -> frozenset[ClientId]:
        """Clients with work in flight."""
        return frozenset(flying.client for flying in self._flight)

    # -- what the round loop sees

    def commit(self, *rounds: int) -> None:
        """The checkpoints on disk are those of `rounds`."""
        for link in self._links():
            link.commit(*rounds)

    def rewind(self, round: int) -> None:
        """Forget what clients wrote after `round`."""
        for link in self._links():
            link.rewind(round)

    def close(self) -> None:
        """Let go of processes and connections."""
        for link in self._links():
            link.close()

    def snapshot(self) -> FederationState:
        """What a checkpoint must hold."""
        flights = tuple(
            Flight(f.due, f.dispatch.number, f.dispatch.round, f.client, f.dispatch.task, encode(f.dispatch.down))
            for f in sorted(self._flight)
        )
        return FederationState(self._clock, flights, self.link.memories())

    def restore(self, state: FederationState) -> None:
        """Go on from a checkpoint."""
        self._clock, self._flight = state.clock, []
        self.link.recall(state.memories)
        for f in state.flight:
            down: Message = decode(self.tasks.messages(f.task)[0], f.down)
            dispatch = Dispatch(f.number, f.round, f.client, f.task, down)
            heapq.heappush(self._flight, _InFlight(f.due, f.client, dispatch))

    # -- inside

    def _known(self) -> Sequence[ClientId]:
        """All that may train, by number, so that the order in which they joined does not matter."""
        return self.clients if isinstance(self.clients, range) else sorted(self.clients)

    def _links(self) -> list[Link]:
        return [self.link] if self._home is None or self._home is self.link else [self.link, self._home]

    def _link(self, client: ClientId) -> Link:
        return self._home if client == HOME and self._home is not None else self.link

    def _dispatches(
        self, task: Task[Any, Any], down: Callable[[ClientId], Message], to: Sequence[ClientId]
    ) -> list[Dispatch]:
        name = self.tasks.name(task)
        if len(set(to)) != len(to):
            raise ValueError(f"round {self.round + 1}: a client is asked twice in one collect: {sorted(to)}")
        # keyed by what is sent and when: who else is asked, or whether rounds are evaluated, changes nobody's numbers
        if self._sent_in != (self.round, self.attempt):
            self._sent_in, self._sent = (self.round, self.attempt), Counter()
        number = rng.key(self.root, "dispatch", self.round, self.attempt, name, self._sent[name])
        self._sent[name] += 1
        return [Dispatch(number, self.round, client, name, down(client)) for client in sorted(to)]

    def _round_begins(self, dispatches: Sequence[Dispatch]) -> None:
        """Say so once in every attempt of a round.

        Raises:
            ValueError: a client is asked that still has work in flight.
        """
        busy = sorted({d.client for d in dispatches} & self.busy())
        if busy:
            raise ValueError(f"round {self.round + 1}: clients {busy} still have work in flight")
        if self._told != (self.round, self.attempt):
            self._told = self.round, self.attempt
            self.events(RoundStarted(self.round + 1, tuple(d.client for d in dispatches), self.attempt))

    def _say_if_exchanged(self, rule: Rules) -> None:
        """Say once where sums were asked for and cannot be had."""
        if self._reducer is None or self._exchanged or Fold(rule, None, self._gate.stages).mergeable:
            return
        self._exchanged = True
        self.events(Noted(EXCHANGED))

    def _receive(
        self,
        ready: Sequence[Dispatch],
        rule: Rules,
        weigh: Callable[[Any], float] | None,
        round: int,
        quorum: int,
        fits: Fits | None = None,
    ) -> Got:
        """Combine the replies to these; `round` (from 1) is the one they count in, 0 to that many rounds behind us."""
        dispatches = sorted(ready, key=lambda d: d.client)
        fold = Fold(rule, weigh, self._gate.staged(dispatches))
        missing: dict[ClientId, Missing] = {}
        sizes = Sizes()
        self.traffic.bytes_down += sum(sizes(d.down) for d in dispatches if d.client != HOME)
        for reply, why in self._verdicts(dispatches, fold, fits):
            self._link(reply.dispatch.client).settle(reply.dispatch.client, round, why is None)
            self._note(reply, why, round)
            if why is not None:
                missing[reply.dispatch.client] = why
        for dispatch in dispatches:
            if dispatch.client not in missing and dispatch.client not in fold.clients:
                missing[dispatch.client] = why = Missing("silent", "no reply came")
                self._note(Reply(dispatch, None, why, Summary(), 0), why, round)
        wanted = min(quorum, len(dispatches))
        if len(fold.clients) < wanted:
            raise TooFewReplies(len(fold.clients), wanted, missing)
        return fold.got(missing)

    def _verdicts(
        self, dispatches: Sequence[Dispatch], fold: Fold, fits: Fits | None
    ) -> Iterator[tuple[Reply, Missing | None]]:
        """Replies in the order of client indices, each in the fold, or with the reason why not."""
        if self._reducer is not None and dispatches and fold.mergeable:
            return self._reducer.reduce(dispatches, fold, lambda reply: self._add(fold, reply, fits))
        return self._one_by_one(dispatches, fold, fits)

    def _one_by_one(
        self, dispatches: Sequence[Dispatch], fold: Fold, fits: Fits | None
    ) -> Iterator[tuple[Reply, Missing | None]]:
        """Replies without their messages: none is held while the next one comes."""
        for reply in self._in_order(dispatches):
            why = self._add(fold, reply, fits)
            reply = replace(reply, up=None)
            yield reply, why

    def _add(self, fold: Fold, reply: Reply, fits: Fits | None) -> Missing | None:
        """Count a reply, or say why not."""
        return self._gate.add(fold, reply, fits)

    def _in_order(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Replies by client index; one that comes early waits, and nobody waits for one that never comes."""
        home = [d for d in dispatches if d.client == HOME]
        away = [d for d in dispatches if d.client != HOME]
        if home:
            if self._home is None:
                raise ValueError("this run has no worker of the server's own (fed.home), but one was asked")
            yield from self._home.ask(home)
        early: dict[ClientId, Reply] = {}
        order = [d.client for d in away]
        position = 0
        for reply in self.link.ask(away) if away else ():
            early[reply.dispatch.client] = reply
            del reply
            while position < len(order) and order[position] in early:
                yield early.pop(order[position])
                position += 1
        yield from (early[client] for client in sorted(early))

    def _note(self, reply: Reply, why: Missing | None, round: int) -> None:
        client, summary = reply.dispatch.client, reply.summary
        name = self.profile(client).name
        self.traffic.bytes_up += reply.bytes_up if client != HOME else 0  # what it hears and says travels nowhere
        if why is not None:
            self.traffic.missing += 1
            self.events(ReplyMissing(round, client, name, why.reason, why.detail))
        elif summary.steps or summary.skipped:
            self._tally(reply)
            self.events(
                ClientTrained(
                    round, client, name, summary.examples, summary.tokens, summary.steps, summary.skipped,
                    summary.loss,
                )
            )  # fmt: skip

    def _tally(self, reply: Reply) -> None:
        summary, traffic = reply.summary, self.traffic
        traffic.counted += 1
        traffic.steps += summary.steps
        traffic.skipped += summary.skipped
        traffic.examples += summary.examples
        traffic.tokens += summary.tokens
        if summary.loss is not None and math.isfinite(summary.loss):
            traffic.loss_sum += summary.loss * summary.examples
            traffic.loss_examples += summary.examples
