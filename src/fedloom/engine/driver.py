"""Runs many clients' coroutines side by side on one engine, deterministically: no asyncio, no threads.

A coroutine runs until it awaits a `Call`. Calls to the engine are admitted in the order of the jobs while there is
room; an `Exchange` waits until every other client waits in the same phase. Replies come out in the order of the jobs,
whoever finishes first, and at most `window` jobs are begun and not yet yielded, so memory does not grow with the
cohort. (An exchange needs everybody at once: there the window is the cohort.)
"""

from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from fedloom.contracts import Call, ClientFailed, ClientId, Engine, Exchange

T = TypeVar("T")
Job = tuple[ClientId, Coroutine[Any, Any, T]]


def drive(jobs: Iterable[Job[T]], engine: Engine, window: int = 64) -> Iterator[tuple[ClientId, T | ClientFailed]]:
    """Yield (client, reply or failure) in the order of `jobs`.

    Raises:
        ValueError: a client comes twice.
        Exception: whatever a coroutine raised beyond `ClientFailed`, with the client named in a note.
    """
    if window < 1:
        raise ValueError(f"window={window}, but at least one client must be begun at a time")
    run = _Drive(iter(jobs), engine, window)
    try:
        yield from run.replies()
    finally:  # a broken or abandoned collect leaves no coroutine unawaited and no call admitted
        run.close()


class _Drive(Generic[T]):
    def __init__(self, jobs: Iterator[Job[T]], engine: Engine, window: int) -> None:
        self.jobs: Iterator[Job[T]] | None = jobs
        self.engine, self.window = engine, window
        self.begun = dict[ClientId, T | ClientFailed | None]()  # in order; the reply once its coroutine has ended
        self.seen = set[ClientId]()
        self.live = dict[ClientId, Coroutine[Any, Any, T]]()
        self.waiting = deque[Call[Any]]()  # for room in the engine
        self.admitted = set[ClientId]()
        self.talking = dict[ClientId, Exchange]()

    def replies(self) -> Iterator[tuple[ClientId, T | ClientFailed]]:
        while self.jobs is not None or self.begun:
            self._admit()
            while len(self.begun) < self.window and not self.waiting and self.engine.room() and self._begin():
                self._admit()
            if self.admitted:
                for client, value in self.engine.advance():
                    self.admitted.discard(client)
                    self._resume(client, value)
            elif self.talking:
                if not self._begin():
                    self._talk()
            elif self.waiting:
                raise RuntimeError("the engine is idle and has no room: it would never serve anybody")
            while self.begun and (first := next(iter(self.begun))) not in self.live:
                reply = self.begun.pop(first)
                assert reply is not None
                yield first, reply

    def _begin(self) -> bool:
        """Start the next job; False when there is none."""
        if self.jobs is None:
            return False
        job = next(self.jobs, None)
        if job is None:
            self.jobs = None
            return False
        client, coroutine = job
        if client in self.seen:
            coroutine.close()
            raise ValueError(f"client {client} is asked twice in one collect")
        self.seen.add(client)
        self.begun[client], self.live[client] = None, coroutine
        self._resume(client, None)
        return True

    def _admit(self) -> None:
        while self.waiting and self.engine.room():
            call = self.waiting.popleft()
            self.admitted.add(call.client)
            self.engine.admit(call)

    def _resume(self, client: ClientId, value: Any) -> None:
        coroutine = self.live[client]
        try:
            call = coroutine.throw(value) if isinstance(value, ClientFailed) else coroutine.send(value)
        except StopIteration as end:
            del self.live[client]
            if end.value is None:
                raise TypeError(
                    f"the local half of client {client} returned nothing; it must return a message"
                ) from None
            self.begun[client] = end.value
        except ClientFailed as failure:
            self.begun[client] = failure
            del self.live[client]
        except Exception as error:
            error.add_note(f"in the local half of client {client}")
            raise
        else:
            if isinstance(call.request, Exchange):
                self.talking[client] = call.request
            else:
                self.waiting.append(call)

    def _talk(self) -> None:
        """Everybody who is left waits in an exchange: hand round what they said."""
        said, self.talking = self.talking, {}
        phases = sorted({exchange.phase for exchange in said.values()})
        if len(phases) > 1:
            raise RuntimeError(f"clients wait in different exchanges ({', '.join(phases)}): they would wait for ever")
        heard = {client: said[client].payload for client in sorted(said)}  # not in the order they came to speak
        for client in heard:
            self._resume(client, heard)

    def close(self) -> None:
        for coroutine in self.live.values():
            coroutine.close()
        if isinstance(self.jobs, Generator):  # jobs not yet begun are not yet made either
            self.jobs.close()
        else:
            for _, coroutine in self.jobs or ():
                coroutine.close()
        self.engine.abandon()
