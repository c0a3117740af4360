"""Events of made-up runs."""

from collections.abc import Sequence

from fedloom.events import Evaluated, RoundFinished, RunStarted
from fedloom.metrics.scores import Scores
from fedloom.metrics.summary import summarise

NAMES = ("loss", "perplexity", "exact_match")


def evaluation(round: int, clients: Sequence[str], split: str = "test", names=NAMES) -> Evaluated:
    """Client i of n: loss (3 + i) / (1 + round); right answers round + i of 20, at most 20.

    Classes and pairs are the same in every round: 3 of 4 rows right; 2.5 of 4 pairs, rewards 0.5 and -0.25.
    """
    told = Scores(
        pairs=4.0, won=2.5, chosen_reward=2.0, rejected_reward=-1.0, confusion=((0, 0, 2), (1, 0, 1), (1, 1, 1))
    )
    scores = {
        name: told + Scores(20, 10, 10 * (3 + i) / (1 + round), 20, min(20, round + i), 0.0)
        for i, name in enumerate(clients)
    }
    per_client = {name: one.row(names) for name, one in scores.items()}
    return Evaluated(round, split, summarise(scores, names), per_client, seconds=1.0)


def finished(round: int, clients: int, **changes) -> RoundFinished:
    fields = {
        "round": round, "clients": clients, "missing": 0, "loss": 3 / round, "examples": 80, "tokens": 800, "steps": 10,
        "skipped": 0, "lr": 0.1, "bytes_down": 2000 * clients, "bytes_up": 1000 * clients, "seconds": 2.0,
    }  # fmt: skip
    return RoundFinished(**fields | changes)


def started(name: str, clients: int, rounds: int) -> RunStarted:
    return RunStarted(name, "", "fedavg", "nano", "reference", "cpu", "float32", 1000, 10, clients, clients, rounds)
