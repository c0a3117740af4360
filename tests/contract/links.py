"""Links with faults: what a network does to replies."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from torch import Tensor

from fedloom import rng
from fedloom.contracts import ClientId, Missing
from fedloom.runtime.link import Link, Near
from fedloom.runtime.site import Dispatch, Reply


class Passing(Near):
    """A link that hands everything on to another."""

    def __init__(self, inner: Link) -> None:
        self.inner = inner

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        return self.inner.ask(dispatches)

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        self.inner.settle(client, round, counted)

    def commit(self, *rounds: int) -> None:
        self.inner.commit(*rounds)

    def rewind(self, round: int) -> None:
        self.inner.rewind(round)

    def close(self) -> None:
        self.inner.close()


class Losing(Passing):
    """One client's replies never arrive (from round `since`), although it did the work."""

    def __init__(self, inner: Link, client: ClientId, since: int = 0) -> None:
        super().__init__(inner)
        self.client, self.since = client, since

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        for reply in self.inner.ask(dispatches):
            if reply.dispatch.client == self.client and reply.dispatch.round >= self.since:
                yield Reply(reply.dispatch, None, Missing("late", "it came after the deadline"), reply.summary, 0)
            else:
                yield reply


class Misshaping(Passing):
    """One client's tensors come back with a number missing, as from another adapter."""

    def __init__(self, inner: Link, client: ClientId) -> None:
        super().__init__(inner)
        self.client = client

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        for reply in self.inner.ask(dispatches):
            wrong = reply.dispatch.client == self.client and reply.up is not None
            yield replace(reply, up=cut(reply.up)) if wrong else reply


def cut(up: Any) -> Any:
    """The message with the last tensor of every field shortened."""
    changed: dict[str, Any] = {}
    for name, value in vars(up).items():
        if isinstance(value, Tensor):
            changed[name] = value[:-1]
        elif isinstance(value, tuple):
            changed[name] = (*value[:-1], value[-1][..., :-1])
        elif is_dataclass(value):
            last = [field for field, item in vars(value).items() if isinstance(item, Tensor)][-1]
            changed[name] = replace(value, **{last: getattr(value, last)[..., :-1]})  # type: ignore[type-var]
    return replace(up, **changed)


class Shuffling(Passing):
    """Replies arrive in another order in every collect."""

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        replies = list(self.inner.ask(dispatches))
        number = dispatches[0].number if dispatches else 0
        yield from (replies[i] for i in rng.permutation(rng.key(1, "arrival", number), len(replies)))


class Watching(Passing):
    """Calls `after(settled so far)` whenever a reply was settled."""

    def __init__(self, inner: Link, after: Callable[[int, int], None]) -> None:
        super().__init__(inner)
        self.after, self.count = after, 0

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        self.inner.settle(client, round, counted)
        self.count += 1
        self.after(round, self.count)
