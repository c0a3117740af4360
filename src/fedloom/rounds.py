"""The round loop, for any algorithm on any runtime: rounds, retries, commits.

It knows neither models nor files; the experiment hangs evaluation and checkpoints on it.
"""

from collections.abc import Callable
from typing import Any

from fedloom.contracts import Algorithm, NobodyReplied, TooFewReplies
from fedloom.errors import RunStopped
from fedloom.events import Noted
from fedloom.runtime.federation import Hub


def one_round(algorithm: Algorithm[Any], state: Any, hub: Hub, retries: int) -> Any:
    """The next state; a round with too few replies is tried again with a new cohort and leaves no trace.

    A round in which nobody was asked, or nobody had to reply, changes nothing.

    Raises:
        RunStopped: it failed once more than `retries` allows.
    """
    before = hub.snapshot()
    for attempt in range(retries + 1):
        hub.attempt = attempt
        try:
            return algorithm.round(state, hub)
        except NobodyReplied as nobody:
            hub.rewind(hub.round)
            hub.restore(before)
            hub.events(Noted(f"round {hub.round + 1} changes nothing: {nobody}", "warning"))
            return state
        except TooFewReplies as few:
            hub.rewind(hub.round)
            hub.restore(before)
            hub.traffic = hub.traffic.again()
            problem = str(few)
    raise RunStopped(
        f"round {hub.round + 1} failed {retries + 1} times: {problem}. Ask more clients (federation.cohort), want "
        "fewer replies (federation.min_replies, aggregate.rule), or see above why replies are missing"
    )


def advance(
    algorithm: Algorithm[Any],
    state: Any,
    hub: Hub,
    rounds: int,
    retries: int,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[Any], None] = lambda state: None,
    stop: Callable[[], bool] = lambda: False,
) -> Any:
    """Rounds until `rounds` are behind us or `stop` says so.

    `before` is called when a round begins, `after` sees each new state (evaluation, checkpoint, commit).
    """
    while hub.round < rounds and not stop():
        before()
        state = one_round(algorithm, state, hub, retries)
        hub.round += 1
        after(state)
    return state
