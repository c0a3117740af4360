"""The link to clients on machines of their own: who is here, who was asked what, what came back, what never will.

Three clocks (`deploy`): a task's deadline, how long a client may be silent, how long too few clients are waited for.

The server alone knows which of a client's writings count. Every dispatch has a number; what a client wrote in dispatch
d is its version d; `_memories` says for each client which version is its memory, is part of the checkpoint, and goes
out with every task. So nothing has to be confirmed later: a reply that does not count, a crash on either side and a
round done again leave the pointer where it was.

A client announces itself when it starts, when it may have missed a letter, and now and then while it has nothing to do.
Whoever announces itself while its answer is awaited is asked again, and answers from its last reply.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from fedloom.channel.codec import CodecError, size
from fedloom.contracts import ClientId, Missing, Reason, Summary
from fedloom.errors import RunStopped
from fedloom.events import Event, Noted
from fedloom.runtime import letters
from fedloom.runtime.deploy_config import DeployConfig
from fedloom.runtime.letters import Answer, Declined, End, Letter, Ready, Recipe, Refused, TaskLetter, Wants
from fedloom.runtime.seats import Asked, Seat
from fedloom.runtime.site import Dispatch, Reply
from fedloom.runtime.wire import Marshal

LOOK = 1.0
"""Seconds between two looks at who is there."""
QUICK, SLOW = 0.03, 0.25
"""Seconds between two looks for answers: at first, and after a while."""
NOTICED = 20.0
"""Seconds after its last sign of life the mailroom takes to list a client no more."""
GRACE = 5.0
"""Seconds a client may not be listed while it announces itself anew."""
MOST = 1 << 50
"""What a client may count in one task."""
WORDS = 500
"""Letters of what a client says in words."""
MARGIN = 600.0
"""Seconds a letter lies in the mailroom longer than anybody waits for its answer."""


class Post(Protocol):
    """What the link needs of a mailroom; nodes are numbers, letters are JSON heads with bytes."""

    def present(self) -> Mapping[int, str]:
        """Nodes that give signs of life, each with when it last announced itself."""

    def send(self, node: int, head: dict[str, Any], body: bytes, ttl: float) -> str:
        """Put a letter into a mailbox; its id, "" where the node is unknown. The same `body` is stored once."""

    def arrived(self, ids: Sequence[str]) -> Sequence[Any]:
        """Answers to these (with `ask`, the id, and `error`, why there is none or None); each is told of once."""

    def open(self, answer: Any) -> tuple[dict[str, Any], memoryview]:
        """Head and body of an answer, which is gone then; ValueError: it is no letter."""

    def drop(self, answer: Any) -> None:
        """Remove an answer unread."""

    def forget(self, id: str) -> None:
        """Drop a letter that is past its time."""


class Remote:
    """A `Link` over a post."""

    def __init__(
        self,
        post: Post,
        nodes: Mapping[str, int],
        run: str,
        recipe: Callable[[ClientId, str], Recipe],
        marshal: Marshal,
        deploy: DeployConfig,
        least: int,
        check: Callable[[str, Ready], str | None],
        events: Callable[[Event], None] = lambda event: None,
        told: Callable[[str, str, str], None] = lambda name, state, words: None,
        tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nobody is asked yet.

        Args:
            post: the mailroom.
            nodes: node by client name, in the order of client numbers.
            run: its name.
            recipe: what a client is told of the run, given its number and a ticket.
            marshal: how messages become bytes.
            deploy: the three clocks.
            least: replies a round needs.
            check: why a client cannot take part, from what it says of itself; None: it can.
            events: where notes go.
            told: hears of every change of a client: name, state, words.
            tick: called about once a second; may stop the run.
            clock: seconds.
            sleep: waits.
        """
        self.post, self.run, self.marshal, self.deploy, self.least = post, run, marshal, deploy, least
        self.seats = [Seat(name, node) for name, node in nodes.items()]
        self._recipe, self._check, self._events, self._told, self._tick = recipe, check, events, told, tick
        self._clock, self._sleep = clock, sleep
        self._looked = -LOOK
        self.waiting = False
        """Whether there is nothing to do but wait for clients."""
        self._stale: dict[str, float] = {}
        """Letters nobody waits for any more, and until when the mailroom keeps them."""
        self._memories: dict[ClientId, int] = {}
        self._safe: dict[int, Mapping[ClientId, int]] = {}
        self._marked: Mapping[ClientId, int] = {}
        self._wrote: dict[ClientId, int] = {}

    # -- what the hub uses

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Send each; yield replies in the order of client numbers, one in memory at a time."""
        ordered = sorted(dispatches, key=lambda d: d.client)
        end = self._clock() + self.deploy.round_timeout
        self._look()
        for dispatch in ordered:
            self._wrote.pop(dispatch.client, None)
            seat = self.seats[dispatch.client]
            if seat.here:
                seat.asked = Asked(self._task(dispatch), self.marshal.down(dispatch))
                self._send(seat, seat.asked)
                self._told(seat.name, "working", dispatch.task)
        self.marshal.forget()
        for dispatch in ordered:
            yield self._await(self.seats[dispatch.client], dispatch, end)

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        """Move the pointer to what the client wrote, or leave it."""
        number = self._wrote.pop(client, None)
        if counted and number is not None:
            self._memories[client] = number

    def commit(self, *rounds: int) -> None:
        """Remember where the pointers were in the newest, for as long as there is a checkpoint of it."""
        known = {**self._safe, max(rounds, default=0): dict(self._memories)}
        self._safe = {round: memories for round, memories in known.items() if round in rounds}

    def rewind(self, round: int) -> None:
        """Nothing: the pointers come back with the federation's state."""

    def memories(self) -> Mapping[ClientId, int]:
        """Where the pointers are, for a checkpoint or for another try of a round; what they point to is kept."""
        self._marked = dict(self._memories)
        return dict(self._memories)

    def recall(self, memories: Mapping[ClientId, int]) -> None:
        """Put them back."""
        self._memories = dict(memories)

    def away(self) -> set[ClientId]:
        """Who cannot be asked now; waits while too few can.

        Raises:
            RunStopped: too few came back in time.
        """
        self.gather(self.least)
        return {i for i, seat in enumerate(self.seats) if not seat.here}

    def close(self) -> None:
        """Nothing is held; the post belongs to whoever opened it."""

    # -- what the server uses

    def gather(self, count: int, timeout: float | None = None) -> int:
        """Wait until so many clients can be asked; how many there are.

        Args:
            count: of clients.
            timeout: seconds after which fewer will do; None: after `deploy.join_timeout` the run stops.

        Raises:
            RunStopped: too few came in time.
        """
        end = self._clock() + (self.deploy.join_timeout if timeout is None else timeout)
        said = False
        self.waiting = True
        while True:
            self._look()
            found = sum(seat.here for seat in self.seats)
            if found >= count or (timeout is not None and self._clock() > end):
                self.waiting = False
                return found
            if self._clock() > end:
                raise RunStopped(
                    f"{found} clients are here, {count} are needed, and nobody more came within deploy.join_timeout="
                    f"{self.deploy.join_timeout:g} seconds; start the server again with the same command when they "
                    "are back, it goes on from the last checkpoint"
                )
            if not said:
                said = True
                self._events(Noted(f"waiting for clients: {found} of {count} are here"))
            self._sleep(SLOW)

    def farewell(self, status: str, round: int, body: bytes, seconds: float) -> None:
        """Tell everybody who is here that the run is over, and give them `body`; wait a little for them to read it."""
        self._look(now=True)
        there = [seat for seat in self.seats if seat.stamp is not None and seat.refused is None]
        for client, seat in enumerate(self.seats):
            if seat in there:
                seat.asked = Asked(partial(self._end, client, status, round), body)
                self._send(seat, seat.asked)
        end = self._clock() + seconds
        while any(seat.asked is not None and seat.asked.tickets for seat in there) and self._clock() < end:
            self._sleep(QUICK)
            self._collect()
        for seat in there:
            if seat.asked is not None and seat.asked.answer is not None:
                self.post.drop(seat.asked.answer)
            seat.asked = None

    # -- inside: asking

    def _end(self, client: ClientId, status: str, round: int, ticket: str) -> Letter:
        return End(self.run, ticket, status, round, self._memories.get(client, 0))

    def _task(self, dispatch: Dispatch) -> Callable[[str], Letter]:
        client, digest = dispatch.client, letters.digest(self.marshal.down(dispatch))
        memory = self._memories.get(client, 0)
        safe = [known[client] for known in (*self._safe.values(), self._marked) if client in known]
        keep = tuple(sorted({*safe} - {memory}))
        return lambda ticket: TaskLetter(
            self.run, ticket, dispatch.number, dispatch.round, client, dispatch.task, digest, memory, keep
        )

    def _send(self, seat: Seat, asked: Asked) -> None:
        """Send a letter, or send it again."""
        ticket = secrets.token_hex(16)
        id = self.post.send(seat.node, letters.head(asked.letter(ticket)), asked.body, self._ttl)
        asked.stamp = seat.stamp
        seat.down += len(asked.body)
        if id:
            asked.tickets[id] = ticket

    @property
    def _ttl(self) -> float:
        return max(self.deploy.round_timeout, self.deploy.join_timeout) + MARGIN

    def _await(self, seat: Seat, dispatch: Dispatch, end: float) -> Reply:
        """The answer of a client, or why there is none."""
        pause = QUICK
        while seat.asked is not None:
            if seat.asked.answer is not None:
                reply = self._read(seat, seat.asked, dispatch)
                if reply is not None:
                    return reply
            if seat.left is not None and self._clock() - seat.left > max(GRACE, self.deploy.silence_timeout - NOTICED):
                return self._missing(seat, dispatch, "silent", "it gives no sign of life")
            if self._clock() > end:
                words = f"no answer within deploy.round_timeout={self.deploy.round_timeout:g} seconds"
                return self._missing(seat, dispatch, "late", words)
            self._sleep(pause)
            pause = min(SLOW, pause * 1.2)
            self._look()
        return self._missing(seat, dispatch, "silent", seat.why)

    def _missing(self, seat: Seat, dispatch: Dispatch, reason: Reason, words: str) -> Reply:
        if seat.asked is not None:
            seat.late, seat.asked = seat.asked, None
            seat.late.body = b""  # it is not sent again
            self._told(seat.name, reason, words)
        return Reply(dispatch, None, Missing(reason, words), Summary(), 0)

    def _read(self, seat: Seat, asked: Asked, dispatch: Dispatch) -> Reply | None:
        """An answer that came; None: the client must build the recipe first, and is asked again then."""
        answer, asked.answer = asked.answer, None
        try:
            said, body = self._opened(answer, asked.ticket)
            seat.up += len(body)
            if isinstance(said, Wants):
                seat.ready, seat.joining, asked.stamp = False, None, None
                return None
            if not isinstance(said, Answer):
                raise CodecError(f"{type(said).__name__} is no answer to a task")
            up = None if said.missing is not None else self.marshal.read_up(bytes(body), dispatch)
        except ValueError as error:
            if self._came_back(seat, asked):
                return None
            return self._over(seat, Reply(dispatch, None, Missing("refused", f"unreadable: {error}"), Summary(), 0))
        if up is not None and said.wrote:
            self._wrote[dispatch.client] = dispatch.number
        bytes_up = 0 if up is None else size(up)
        return self._over(seat, Reply(dispatch, up, _tamed(said.missing), _sane(said.summary), bytes_up))

    def _came_back(self, seat: Seat, asked: Asked) -> bool:
        """Whether who sent what cannot be read ended while it did so: it is, or will be, asked again."""
        stamp = asked.stamp
        self._look(now=True)
        return asked.answer is not None or asked.stamp != stamp or seat.left is not None

    def _over(self, seat: Seat, reply: Reply) -> Reply:
        """The client has nothing to do any more."""
        if seat.asked is not None:
            self._let_go(seat.asked)
        seat.asked = None
        self._told(seat.name, "idle", "")
        return reply

    def _opened(self, answer: Any, ticket: str) -> tuple[letters.Reply, memoryview]:
        head, body = self.post.open(answer)
        said = letters.read_reply(head)
        if not secrets.compare_digest(said.ticket.encode(), ticket.encode()):
            raise CodecError("it answers another letter")
        return said, body

    def _let_go(self, asked: Asked) -> None:
        """Its further answers, if it was sent more than once, are thrown away when they come."""
        self._stale |= dict.fromkeys(asked.tickets, self._clock() + self._ttl - MARGIN / 2)
        asked.tickets.clear()

    # -- inside: looking

    def _look(self, now: bool = False) -> None:
        """What came, and who is here (once a second)."""
        self._collect()  # first: whoever answered and then announced itself is not asked again
        if now or self._clock() - self._looked >= LOOK:
            self._looked = self._clock()
            self._tick()
            present = self.post.present()
            for client, seat in enumerate(self.seats):
                self._meet(client, seat, present.get(seat.node))
            for id in [id for id, until in self._stale.items() if self._clock() > until]:
                del self._stale[id]
                self.post.forget(id)

    def _meet(self, client: ClientId, seat: Seat, stamp: str | None) -> None:
        """Note that a client is here or not; tell it the recipe; ask it again where that is due."""
        if stamp is None:
            seat.left = self._clock() if seat.left is None else seat.left
            if seat.stamp is not None and self._clock() - seat.left > GRACE:
                seat.stamp = None
                self._told(seat.name, "away", "")
            return
        if seat.stamp is None:
            self._told(seat.name, "joined", "")
        seat.stamp, seat.left = stamp, None
        if seat.refused is not None:
            if seat.joining is None or seat.joining.stamp == stamp:
                return
            seat.refused = seat.joining = None  # it was started again: perhaps its owner mended what was wrong
        if seat.late is not None and seat.late.stamp != stamp:  # whoever announces itself has nothing to do
            self._let_go(seat.late)
            seat.late = None
        if not seat.ready:
            if seat.joining is None or seat.joining.stamp != stamp or not seat.joining.tickets:
                seat.joining = seat.joining or Asked(lambda ticket: self._recipe(client, ticket), b"")
                self._send(seat, seat.joining)
            return
        asked = seat.asked
        if asked is not None and asked.answer is None and (asked.stamp != stamp or not asked.tickets):
            self._send(seat, asked)

    def _collect(self) -> None:
        """Take up what was answered."""
        awaited = {
            id: (seat, asked)
            for seat in self.seats
            for asked in (seat.asked, seat.joining, seat.late)
            if asked is not None
            for id in asked.tickets
        }
        for answer in self.post.arrived(sorted([*awaited, *self._stale])):
            seat, asked = awaited.get(answer.ask, (None, None))
            ticket = None if asked is None else asked.tickets.pop(answer.ask, None)
            if seat is None or asked is None or ticket is None:  # nobody waits for it; perhaps since the one before it
                self._stale.pop(answer.ask, None)
                self._drop(answer)
                continue
            if answer.error is not None:  # the mailroom gave the letter up; it is sent again when the client is here
                continue
            if asked is seat.joining:
                self._join(seat, answer, ticket)
            elif asked is seat.late:
                self._too_late(seat, answer)
            elif asked.answer is None:
                asked.answer, asked.ticket = answer, ticket
            else:
                self.post.drop(answer)

    def _drop(self, answer: Any) -> None:
        if answer.error is None:
            self.post.drop(answer)

    def _join(self, seat: Seat, answer: Any, ticket: str) -> None:
        """What a client says to the recipe."""
        if seat.joining is not None:
            self._let_go(seat.joining)
        try:
            said, _ = self._opened(answer, ticket)
        except ValueError as error:
            said = Declined(ticket, f"its word on the recipe cannot be read: {error}")
        if isinstance(said, Ready):
            words = self._check(seat.name, said)
            if words is None:
                seat.ready, seat.rows = True, dict(said.rows)
                self._told(seat.name, "idle", "")
                return
            refusal = Refused(self.run, secrets.token_hex(16), words)
            self.post.send(seat.node, letters.head(refusal), b"", self._ttl)
        else:
            words = said.words if isinstance(said, Declined) else f"{type(said).__name__} is no answer to a recipe"
            words = _tame(words)
        seat.refused = words
        self._told(seat.name, "refused", words)
        self._events(Noted(f"{seat.name} cannot take part: {words}", "warning"))

    def _too_late(self, seat: Seat, answer: Any) -> None:
        if seat.late is not None:
            self._let_go(seat.late)
        seat.late = None
        self.post.drop(answer)
        self._events(Noted(f"{seat.name}: its answer came too late and does not count", "warning"))
        self._told(seat.name, "idle", "")


def _sane(summary: Summary) -> Summary:
    """A client's numbers about itself, for logs: none of them negative, nor more than can be added up."""
    counts = (summary.steps, summary.skipped, summary.examples, summary.tokens)
    return summary if min(counts) >= 0 and max(counts) < MOST else Summary()


def _tamed(missing: Missing | None) -> Missing | None:
    return None if missing is None else Missing(missing.reason, _tame(missing.detail))


def _tame(words: str) -> str:
    """A client's words for logs and terminals: not endless, and nothing a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in words[:WORDS])
