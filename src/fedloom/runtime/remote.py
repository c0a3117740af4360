"""The link to clients on machines of their own: who is here, who was asked what, what came back, what never will.

Three clocks (`deploy`): a task's deadline, how long a client may be silent, how long too few clients are waited for.

The server alone knows which of a client's writings count. Every dispatch has a number; what a client wrote in dispatch
d is its version d; `_memories` says for each client which version is its memory, is part of the checkpoint, and goes
out with every task. So nothing has to be confirmed later: a reply that does not count, a crash on either side and a
round done again leave the pointer where it was.

A client announces itself when it starts, when it may have missed a letter, and now and then while it has nothing to do
(`runtime/table.py` keeps count). Whoever does so while its answer is awaited is asked again, and answers from its last
reply.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from fedloom.channel.codec import CodecError, size
from fedloom.contracts import ClientId, Missing, Reason, Summary
from fedloom.errors import RunStopped
from fedloom.events import Event, Noted
from fedloom.runtime import letters
from fedloom.runtime.deploy_config import DeployConfig
from fedloom.runtime.letters import Answer, End, Letter, Ready, Recipe, TaskLetter, Wants
from fedloom.runtime.seats import Asked, Seat, nothing
from fedloom.runtime.site import Dispatch, Reply
from fedloom.runtime.table import GRACE, Post, Table, tame
from fedloom.runtime.wire import Marshal

QUICK, SLOW = 0.03, 0.25
"""Seconds between two looks for answers: at first, and after a while."""
NOTICED = 20.0
"""Seconds after its last sign of life the mailroom takes to list a client no more."""
MOST = 1 << 50
"""What a client may count in one task."""


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
        self.run, self.marshal, self.deploy, self.least = run, marshal, deploy, least
        patience = max(deploy.round_timeout, deploy.join_timeout)
        self.table = Table(post, nodes, run, recipe, check, patience, events=events, told=told, tick=tick, clock=clock)
        self._events, self._clock, self._sleep = events, clock, sleep
        self.waiting = False
        """Whether there is nothing to do but wait for clients."""
        self._memories: dict[ClientId, int] = {}
        self._safe: dict[int, Mapping[ClientId, int]] = {}
        self._marked: Mapping[ClientId, int] = {}
        self._wrote: dict[ClientId, int] = {}

    @property
    def seats(self) -> list[Seat]:
        """The clients, by number."""
        return self.table.seats

    # -- what the hub uses

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Send each; yield replies in the order of client numbers, one in memory at a time."""
        ordered = sorted(dispatches, key=lambda d: d.client)
        end = self._clock() + self.deploy.round_timeout
        self.table.look()
        for dispatch in ordered:
            self._wrote.pop(dispatch.client, None)
            seat = self.seats[dispatch.client]
            if seat.here:
                seat.asked = Asked(self._task(dispatch), partial(self.marshal.down, dispatch))
                self.table.send(seat, seat.asked)
                self.table.told(seat.name, "working", dispatch.task)
        self._sent()
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
            self.table.look()
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
        self.table.look(now=True)
        there = [seat for seat in self.seats if seat.stamp is not None and seat.refused is None]
        for client, seat in enumerate(self.seats):
            if seat in there:
                seat.asked = Asked(partial(self._end, client, status, round), lambda: body)
                self.table.send(seat, seat.asked)
        end = self._clock() + seconds
        while any(seat.asked is not None and seat.asked.tickets for seat in there) and self._clock() < end:
            self._sleep(QUICK)
            self.table.collect()
        for seat in there:
            if seat.asked is not None and seat.asked.answer is not None:
                self.table.post.drop(seat.asked.answer)
            seat.asked = None

    # -- inside: asking

    def _sent(self) -> None:
        """Let go of the bytes of what was sent; whoever must be asked again gets them made again."""
        self.marshal.forget()
        self.table.post.sent()

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

    def _await(self, seat: Seat, dispatch: Dispatch, end: float) -> Reply:
        """The answer of a client, or why there is none."""
        pause = QUICK
        while seat.asked is not None:
            if seat.asked.answer is not None:
                reply = self._read(seat, seat.asked, dispatch)
                if reply is not None:
                    return reply
            silent = max(GRACE, self.deploy.silence_timeout - NOTICED)
            if seat.left is not None and self._clock() - seat.left > silent:
                return self._missing(seat, dispatch, "silent", "it gives no sign of life")
            if self._clock() > end:
                words = f"no answer within deploy.round_timeout={self.deploy.round_timeout:g} seconds"
                return self._missing(seat, dispatch, "late", words)
            self._sleep(pause)
            pause = min(SLOW, pause * 1.2)
            self.table.look()
            self._sent()
        return self._missing(seat, dispatch, "silent", seat.why)

    def _missing(self, seat: Seat, dispatch: Dispatch, reason: Reason, words: str) -> Reply:
        if seat.asked is not None:
            seat.late, seat.asked = seat.asked, None
            seat.late.body = nothing  # it is not sent again
            self.table.told(seat.name, reason, words)
        return Reply(dispatch, None, Missing(reason, words), Summary(), 0)

    def _read(self, seat: Seat, asked: Asked, dispatch: Dispatch) -> Reply | None:
        """An answer that came; None: the client must build the recipe first, and is asked again then."""
        try:
            said, body = self.table.opened(asked.answer, asked.ticket)
            seat.up += len(body)
            if isinstance(said, Wants):
                seat.ready, seat.joining, asked.stamp, asked.answer = False, None, None, None
                return None
            if not isinstance(said, Answer):
                raise CodecError(f"{type(said).__name__} is no answer to a task")
            up = None if said.missing is not None else self.marshal.read_up(body, dispatch)
        except ValueError as error:
            if self._came_back(seat, asked):
                return None
            return self._over(seat, Reply(dispatch, None, Missing("refused", f"unreadable: {error}"), Summary(), 0))
        if up is not None and said.wrote:
            self._wrote[dispatch.client] = dispatch.number
        bytes_up = 0 if up is None else size(up)
        return self._over(seat, Reply(dispatch, up, _tamed(said.missing), _sane(said.summary), bytes_up))

    def _came_back(self, seat: Seat, asked: Asked) -> bool:
        """Whether who sent what cannot be read ended while it did so; if it did, it is asked again."""
        self.table.look(now=True)  # while the answer lies there, nothing is sent again
        if seat.stamp == asked.stamp and seat.left is None:
            return False
        asked.answer = None
        return True

    def _over(self, seat: Seat, reply: Reply) -> Reply:
        """The client has nothing to do any more."""
        if seat.asked is not None:
            self.table.let_go(seat.asked)
        seat.asked = None
        self.table.told(seat.name, "idle", "")
        return reply


def _sane(summary: Summary) -> Summary:
    """A client's numbers about itself, for logs: none of them negative, nor more than can be added up."""
    counts = (summary.steps, summary.skipped, summary.examples, summary.tokens)
    return summary if min(counts) >= 0 and max(counts) < MOST else Summary()


def _tamed(missing: Missing | None) -> Missing | None:
    return None if missing is None else Missing(missing.reason, tame(missing.detail))
