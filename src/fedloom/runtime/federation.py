"""The server's side of every runtime: draws cohorts, sends tasks over a link, combines replies in order.

Runtimes differ in their `Link` only. Replies enter the rules in the order of client indices whatever the order of
arrival (float64 sums do depend on it); early ones wait. A reply that does not count is named, counted, and what its
client wrote is undone.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedloom import rng
from fedloom.channel.check import fault
from fedloom.channel.codec import decode, encode, size
from fedloom.contracts import (
    HOME,
    ClientId,
    Got,
    Message,
    Missing,
    Profile,
    Rule,
    Rules,
    Stage,
    Summary,
    Task,
    TooFewReplies,
    Weighted,
)  # fmt: skip
from fedloom.events import ClientTrained, Event, ReplyMissing, RoundStarted
from fedloom.runtime.site import Dispatch, Reply, Tasks


class Link(Protocol):
    """The way to the clients."""

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Send each, yield replies as they come."""

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        """Tell a client whether its last reply counted, in `round` (from 1)."""

    def commit(self, round: int) -> None:
        """Tell the clients that the checkpoint of `round` is on disk."""

    def rewind(self, round: int) -> None:
        """Tell the clients to forget what they wrote after `round`."""

    def close(self) -> None:
        """Let go of processes and connections."""


@dataclass
class Traffic:
    """What one round cost and gave, for its event."""

    bytes_down: int = 0
    bytes_up: int = 0
    counted: int = 0
    missing: int = 0
    steps: int = 0
    skipped: int = 0
    examples: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    """Training losses times examples."""
    loss_examples: int = 0


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

    dispatched: int
    clock: float
    flight: tuple[Flight, ...]


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
        home: Link | None = None,
        stages: Sequence[Stage] = (),
        events: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.link, self.tasks, self.clients, self.root, self.events = link, tasks, clients, root, events
        self.round, self.attempt, self.traffic = 0, 0, Traffic()
        self._profile, self._cohort, self._min_replies, self._stages = profile, cohort, min_replies, tuple(stages)
        self._home = home
        self._dispatched, self._clock = 0, 0.0
        self._flight: list[_InFlight] = []
        self.last_cohort: tuple[ClientId, ...] = ()

    # -- what an algorithm's page sees

    @property
    def home(self) -> ClientId | None:
        """The server's own worker, when there is one."""
        return HOME if self._home is not None else None

    def profile(self, client: ClientId) -> Profile:
        """What is known of a client."""
        return self._profile(client)

    def cohort(self) -> list[ClientId]:
        """This round's clients: drawn uniformly without replacement, sorted."""
        chosen = self.draw()
        self.last_cohort = tuple(chosen)
        self.events(RoundStarted(self.round + 1, self.last_cohort, self.attempt))
        return chosen

    def draw(self) -> list[ClientId]:
        """The cohort of this round and attempt, whether or not it is asked."""
        order = rng.permutation(rng.key(self.root, "cohort", self.round, self.attempt), len(self.clients))
        return sorted(self.clients[i] for i in order[: self._cohort])

    def collect(
        self, task: Task[Any, Any], down: Callable[[ClientId], Message], to: Sequence[ClientId], rule: Rules,
        *, quorum: int | None = None,
    ) -> Got:  # fmt: skip
        """Send `down` to each, run `task` there, combine the replies.

        Args:
            task: a coroutine of the page.
            down: the message for each client.
            to: who is asked.
            rule: one for all fields, or one for each.
            quorum: replies needed; default: `federation.min_replies`.

        Raises:
            TooFewReplies: the round must be tried again.
        """
        return self._receive([(0.0, d) for d in self._dispatches(task, down, to)], rule, None, quorum)

    def send(self, task: Task[Any, Any], down: Callable[[ClientId], Message], to: Sequence[ClientId]) -> None:
        """Begin tasks without waiting; each is due after 1 / speed units of virtual time."""
        for dispatch in self._dispatches(task, down, to):
            due = self._clock + 1.0 / self.profile(dispatch.client).speed
            heapq.heappush(self._flight, _InFlight(due, dispatch.client, dispatch))

    def receive(self, count: int, rule: Rules, weigh: Callable[[Any], float] | None = None) -> Got:
        """The next `count` replies in virtual time."""
        ready = [heapq.heappop(self._flight) for _ in range(min(count, len(self._flight)))]
        if ready:
            self._clock = max(flying.due for flying in ready)
        return self._receive([(flying.due, flying.dispatch) for flying in ready], rule, weigh, None)

    def busy(self) -> frozenset[ClientId]:
        """Clients with work in flight."""
        return frozenset(flying.client for flying in self._flight)

    # -- what the round loop sees

    def commit(self, round: int) -> None:
        """The checkpoint of `round` is on disk."""
        for link in self._links():
            link.commit(round)

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
        return FederationState(self._dispatched, self._clock, flights)

    def restore(self, state: FederationState) -> None:
        """Go on from a checkpoint."""
        self._dispatched, self._clock = state.dispatched, state.clock
        self._flight = []
        for f in state.flight:
            down: Message = decode(self.tasks.messages(f.task)[0], f.down)
            dispatch = Dispatch(f.number, f.round, f.client, f.task, down)
            heapq.heappush(self._flight, _InFlight(f.due, f.client, dispatch))

    # -- inside

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
        asked = [client for client in to if client in self.busy()]
        if asked:
            raise ValueError(f"round {self.round + 1}: clients {asked} still have work in flight")
        # one number for all of a send: a client's randomness does not depend on who else was asked
        number, self._dispatched = self._dispatched, self._dispatched + 1
        return [Dispatch(number, self.round, client, name, down(client)) for client in sorted(to)]

    def _receive(
        self,
        ready: Sequence[tuple[float, Dispatch]],
        rule: Rules,
        weigh: Callable[[Any], float] | None,
        quorum: int | None,
    ) -> Got:
        dispatches = sorted((dispatch for _, dispatch in ready), key=lambda d: d.client)
        fold = _Fold(rule, weigh, self._stages)
        missing: dict[ClientId, Missing] = {}
        sizes = _Sizes()
        self.traffic.bytes_down += sum(sizes(dispatch.down) for dispatch in dispatches)
        for reply in self._in_order(dispatches):
            why = self._add(fold, reply)
            self._link(reply.dispatch.client).settle(reply.dispatch.client, self.round + 1, why is None)
            self._note(reply, why)
            if why is not None:
                missing[reply.dispatch.client] = why
        for dispatch in dispatches:
            if dispatch.client not in missing and dispatch.client not in fold.clients:
                missing[dispatch.client] = why = Missing("silent", "no reply came")
                self._note(Reply(dispatch, None, why, _NOTHING, 0), why)
        wanted = min(self._min_replies if quorum is None else quorum, len(dispatches))
        if len(fold.clients) < wanted:
            raise TooFewReplies(len(fold.clients), wanted, missing)
        return fold.got(missing)

    def _add(self, fold: "_Fold", reply: Reply) -> Missing | None:
        """Count a reply, or say why not."""
        if reply.up is None:
            return reply.missing
        why = fault(reply.up, hidden=any(stage.hides for stage in self._stages))
        if why is None:
            up = reply.up
            for stage in reversed(self._stages):
                up = stage.incoming(up)
            fold.add(reply.dispatch.client, up)
        return why

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
            while position < len(order) and order[position] in early:
                yield early.pop(order[position])
                position += 1
        yield from (early[client] for client in sorted(early))

    def _note(self, reply: Reply, why: Missing | None) -> None:
        client, summary = reply.dispatch.client, reply.summary
        name = self.profile(client).name
        self.traffic.bytes_up += reply.bytes_up
        if why is not None:
            self.traffic.missing += 1
            self.events(ReplyMissing(self.round + 1, client, name, why.reason, why.detail))
        elif summary.steps or summary.skipped:
            self._tally(reply)
            self.events(
                ClientTrained(
                    self.round + 1, client, name, summary.examples, summary.tokens, summary.steps, summary.skipped,
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


_NOTHING = Summary()


class _Fold:
    """Replies on their way into the rules, field by field."""

    def __init__(self, rule: Rules, weigh: Callable[[Any], float] | None, stages: Sequence[Stage]) -> None:
        self._given, self._weigh, self._stages = rule, weigh, stages
        self._rules: dict[str, Rule] = {}
        self._accs: dict[str, Any] = {}
        self.clients: list[ClientId] = []
        self.weight = 0.0

    def add(self, client: ClientId, up: Message) -> None:
        fields = {name: value for name, value in vars(up).items() if name != "weight"}
        if not self._rules:
            self._rules = self._match(up, fields)
            self._accs = {name: rule.start() for name, rule in self._rules.items()}
        weight = up.weight if isinstance(up, Weighted) else None
        if self._weigh is not None:
            weight = (1.0 if weight is None else weight) * self._weigh(up)
        for name, rule in self._rules.items():
            self._accs[name] = rule.add(self._accs[name], fields[name], weight)
        self.clients.append(client)
        self.weight += 1.0 if weight is None else weight

    def got(self, missing: Mapping[ClientId, Missing]) -> Got:
        fields = {name: rule.finish(self._accs[name]) for name, rule in self._rules.items()}
        return Got(fields, tuple(self.clients), missing, self.weight)

    def _match(self, up: Message, fields: Mapping[str, Any]) -> dict[str, Rule]:
        given = self._given if isinstance(self._given, Mapping) else dict.fromkeys(fields, self._given)
        if set(given) != set(fields):
            raise ValueError(
                f"rules are given for {sorted(given)}, but {type(up).__name__} has the fields {sorted(fields)}; "
                "each field needs its rule"
            )
        return {name: self._staged(name, rule) for name, rule in given.items()}

    def _staged(self, name: str, rule: Rule) -> Rule:
        for stage in self._stages:
            if stage.hides and rule.reveals == "each":
                raise ValueError(f"field {name}: its rule looks at single replies, but a stage hides them")
            rule = stage.combine(rule)
        return rule


class _Sizes:
    """Bytes of messages; one message sent to many is measured once."""

    def __init__(self) -> None:
        self._last: tuple[Message, int] | None = None

    def __call__(self, message: Message) -> int:
        if self._last is None or not same(self._last[0], message):
            self._last = message, size(message)
        return self._last[1]


def same(left: Message, right: Message) -> bool:
    """Whether two messages hold the very same objects, as those of one cohort mostly do."""
    if left is right:
        return True
    ours, theirs = vars(left), vars(right)
    return type(left) is type(right) and all(ours[name] is theirs[name] for name in ours)
