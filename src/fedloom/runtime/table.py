"""Everybody's place at the table: who is here, who has built the recipe, which letters are on their way.

A client that announces itself has nothing to do. Whoever does so while its answer is awaited is asked again; a letter
the mailroom gave up is sent again when its client is here; an answer nobody waits for any more is thrown away.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from fedloom.channel.codec import CodecError
from fedloom.contracts import ClientId
from fedloom.events import Event, Noted
from fedloom.runtime import letters
from fedloom.runtime.letters import Declined, Ready, Recipe, Refused
from fedloom.runtime.seats import Asked, Seat, nothing

LOOK = 1.0
"""Seconds between two looks at who is there."""
GRACE = 5.0
"""Seconds a client may not be listed while it announces itself anew."""
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

    def sent(self) -> None:
        """What was sent last is not sent again soon: its bytes may go."""

    def arrived(self, ids: Sequence[str]) -> Sequence[Any]:
        """Answers to these (with `ask`, the id, and `error`, why there is none or None); each is told of once."""

    def open(self, answer: Any) -> tuple[dict[str, Any], memoryview]:
        """Head and body of an answer, which is gone then; ValueError: it is no letter."""

    def drop(self, answer: Any) -> None:
        """Remove an answer unread."""

    def forget(self, id: str) -> None:
        """Drop a letter that is past its time."""


class Table:
    """The clients of a run, seen through a mailroom."""

    def __init__(
        self,
        post: Post,
        nodes: Mapping[str, int],
        run: str,
        recipe: Callable[[ClientId, str], Recipe],
        check: Callable[[str, Ready], str | None],
        patience: float,
        *,
        events: Callable[[Event], None] = lambda event: None,
        told: Callable[[str, str, str], None] = lambda name, state, words: None,
        tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nobody is asked yet.

        Args:
            post: the mailroom.
            nodes: node by client name, in the order of client numbers.
            run: its name.
            recipe: what a client is told of the run, given its number and a ticket.
            check: why a client cannot take part, from what it says of itself; None: it can.
            patience: seconds anybody waits for an answer, at most.
            events: where notes go.
            told: hears of every change of a client: name, state, words.
            tick: called about once a second; may stop the run.
            clock: seconds.
        """
        self.post, self.run, self.ttl = post, run, patience + MARGIN
        self.seats = [Seat(name, node) for name, node in nodes.items()]
        self.stale: dict[str, float] = {}
        """Letters nobody waits for any more, and until when the mailroom keeps them."""
        self._recipe, self._check, self._events, self.told, self._tick = recipe, check, events, told, tick
        self._clock, self._looked = clock, -LOOK

    # -- letters

    def send(self, seat: Seat, asked: Asked) -> None:
        """Send a letter, or send it again."""
        ticket = secrets.token_hex(16)
        body = asked.body()
        id = self.post.send(seat.node, letters.head(asked.letter(ticket)), body, self.ttl)
        asked.stamp = seat.stamp
        seat.down += len(body)
        if id:
            asked.tickets[id] = ticket

    def opened(self, answer: Any, ticket: str) -> tuple[letters.Reply, memoryview]:
        """What an answer says, and its body.

        Raises:
            ValueError: it is none, or to another letter.
        """
        head, body = self.post.open(answer)
        said = letters.read_reply(head)
        if not secrets.compare_digest(said.ticket.encode(), ticket.encode()):
            raise CodecError("it answers another letter")
        return said, body

    def let_go(self, asked: Asked) -> None:
        """Its further answers, if it was sent more than once, are thrown away when they come."""
        self.stale |= dict.fromkeys(asked.tickets, self._clock() + self.ttl - MARGIN / 2)
        asked.tickets.clear()

    # -- looking

    def look(self, now: bool = False) -> None:
        """What came, and who is here (once a second, or now)."""
        self.collect()  # first: whoever answered and then announced itself is not asked again
        if now or self._clock() - self._looked >= LOOK:
            self._looked = self._clock()
            self._tick()
            present = self.post.present()
            for client, seat in enumerate(self.seats):
                self._meet(client, seat, present.get(seat.node))
            for id in [id for id, until in self.stale.items() if self._clock() > until]:
                del self.stale[id]
                self.post.forget(id)

    def collect(self) -> None:
        """Take up what was answered."""
        awaited = {
            id: (seat, asked)
            for seat in self.seats
            for asked in (seat.asked, seat.joining, seat.late)
            if asked is not None
            for id in asked.tickets
        }
        for answer in self.post.arrived(sorted([*awaited, *self.stale])):
            seat, asked = awaited.get(answer.ask, (None, None))
            ticket = None if asked is None else asked.tickets.pop(answer.ask, None)
            if seat is None or asked is None or ticket is None:  # nobody waits for it; perhaps since the one before it
                self.stale.pop(answer.ask, None)
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

    # -- inside

    def _meet(self, client: ClientId, seat: Seat, stamp: str | None) -> None:
        """Note that a client is here or not; tell it the recipe; ask it again where that is due."""
        if stamp is None:
            seat.left = self._clock() if seat.left is None else seat.left
            if seat.stamp is not None and self._clock() - seat.left > GRACE:
                seat.stamp = None
                self.told(seat.name, "away", "")
            return
        if seat.stamp is None:
            self.told(seat.name, "joined", "")
        seat.stamp, seat.left = stamp, None
        if seat.refused is not None:
            if seat.joining is None or seat.joining.stamp == stamp:
                return
            seat.refused = seat.joining = None  # it was started again: perhaps its owner mended what was wrong
        if seat.late is not None and seat.late.stamp != stamp:  # whoever announces itself has nothing to do
            self.let_go(seat.late)
            seat.late = None
        if not seat.ready:
            if seat.joining is None or seat.joining.stamp != stamp or not seat.joining.tickets:
                seat.joining = seat.joining or Asked(partial(self._recipe, client), nothing)
                self.send(seat, seat.joining)
            return
        asked = seat.asked
        if asked is not None and asked.answer is None and (asked.stamp != stamp or not asked.tickets):
            self.send(seat, asked)

    def _drop(self, answer: Any) -> None:
        if answer.error is None:
            self.post.drop(answer)

    def _join(self, seat: Seat, answer: Any, ticket: str) -> None:
        """What a client says to the recipe."""
        if seat.joining is not None:
            self.let_go(seat.joining)
        try:
            said, _ = self.opened(answer, ticket)
        except ValueError as error:
            said = Declined(ticket, f"its word on the recipe cannot be read: {error}")
        if isinstance(said, Ready):
            words = self._check(seat.name, said)
            if words is None:
                seat.ready, seat.rows = True, dict(said.rows)
                self.told(seat.name, "idle", "")
                return
            refusal = Refused(self.run, secrets.token_hex(16), words)
            self.post.send(seat.node, letters.head(refusal), b"", self.ttl)
        else:
            words = said.words if isinstance(said, Declined) else f"{type(said).__name__} is no answer to a recipe"
            words = tame(words)
        seat.refused = words
        self.told(seat.name, "refused", words)
        self._events(Noted(f"{seat.name} cannot take part: {words}", "warning"))

    def _too_late(self, seat: Seat, answer: Any) -> None:
        if seat.late is not None:
            self.let_go(seat.late)
        seat.late = None
        self.post.drop(answer)
        self._events(Noted(f"{seat.name}: its answer came too late and does not count", "warning"))
        self.told(seat.name, "idle", "")


def tame(words: str) -> str:
    """A client's words for logs and terminals: not endless, and nothing a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in words[:WORDS])
