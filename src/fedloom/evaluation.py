"""Evaluation while training: every client scores what it would use itself on rows of its own; only scores travel.

Evaluation is a task like any other: it runs where the rows are, in every runtime. A set that belongs to nobody
(`evaluate.global_source`) is scored by the server's own worker. What is asked for, and what decides about the best
model and an early stop, is a list of looks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedloom import rng
from fedloom.aggregate.rules import Gather
from fedloom.contracts import Algorithm, Client, ClientId, Message, Model
from fedloom.engine.requests import On
from fedloom.events import Evaluated, Event
from fedloom.metrics.classes import NO_CLASS
from fedloom.metrics.config import EvaluateConfig
from fedloom.metrics.scores import Scores
from fedloom.metrics.summary import pooled, summarise
from fedloom.runtime.client import LocalClient, Split
from fedloom.runtime.federation import Hub

GLOBAL = "global"
MOST: Final = 10**15
"""Rows or tokens of one client, beyond belief."""
CLASSES: Final = 4096
"""Classes that can be told apart at most."""


@dataclass(frozen=True)
class Scored(Message):
    """What a client found."""

    scores: Scores


@dataclass(frozen=True)
class Own(Message):
    """A client's own model, for exports of a simulation."""

    model: Model


class Evaluation:
    """The client's half: tasks that stand beside the algorithm's."""

    def __init__(self, algorithm: Algorithm[Any], config: EvaluateConfig) -> None:
        self.algorithm, self.config = algorithm, config

    async def score(self, down: Model, client: Client) -> Scored:
        """Score what this client would use, on its own rows."""
        return await scored(self.config, client, await self.algorithm.personal(down, client), self.config.split)

    async def score_global(self, down: Model, client: Client) -> Scored:
        """Score the shared model on rows of nobody; runs on the server's own worker."""
        return await scored(self.config, client, down, "test")


async def scored(config: EvaluateConfig, client: Client, model: Model, split: Split, on: On = "trained") -> Scored:
    """Score a model on a client's rows of a split."""
    assert isinstance(client, LocalClient)
    c = config
    return Scored(
        await client.evaluate(model, split, c.measured, c.rows_per_client, c.batch_size, c.max_new_tokens, on)
    )


class Handing:
    """The client's half of an export; no client of a deployment knows this task."""

    def __init__(self, algorithm: Algorithm[Any]) -> None:
        self.algorithm = algorithm

    async def own(self, down: Model, client: Client) -> Own:
        """Hand over what this client would use."""
        return Own(await self.algorithm.personal(down, client))


def plausible(client: ClientId, up: Scored) -> str | None:
    """Why a client's scores cannot be true, or None; counts that no float holds could not even be added up."""
    s = up.scores
    if not all(0 <= n <= MOST for n in (s.examples, s.tokens, s.answered, s.exact, s.pairs, s.good, s.bad)):
        return f"it counts what cannot be counted: {s.examples:.6g} rows, {s.tokens:.6g} tokens"
    if s.exact > s.answered or not 0 <= s.rouge <= s.answered * (1 + 1e-9):
        return f"of {s.answered} answers, {s.exact} are said to be right and ROUGE-L to sum to {s.rouge:g}"
    if not 0 <= s.won <= s.pairs:
        return f"of {s.pairs:g} pairs, {s.won:g} are said to be in the right order"
    return _implausible_classes(s)


def _implausible_classes(s: Scores) -> str | None:
    """Classes are told apart once for each row, and they are few: their table has a place for every two of them."""
    places = [(truth, said) for truth, said, _ in s.confusion]
    if len(set(places)) < len(places) or not all(
        0 <= truth < CLASSES and NO_CLASS <= said < CLASSES for truth, said in places
    ):
        return f"its table of classes names one twice, or one that is not 0 to {CLASSES - 1}"
    if not all(count > 0 for _, _, count in s.confusion) or sum(count for *_, count in s.confusion) > s.examples:
        return f"its table of classes does not hold {s.examples} rows"
    return None


@dataclass(frozen=True)
class Look:
    """One thing to score: by which task, and what its numbers are called."""

    task: Any
    split: str
    home: bool = False
    """The server's own worker is asked, about a shared model that is `whole`; else clients are."""
    decides: bool = True
    """About the best model and an early stop, unless one before it does."""


def looks(tasks: Evaluation, clients: bool, everybody: bool) -> list[Look]:
    """What is scored of one model.

    Args:
        tasks: the client's half.
        clients: some client has rows to score.
        everybody: there is a global set too.
    """
    found = [Look(tasks.score, tasks.config.split)] if clients else []
    return found + ([Look(tasks.score_global, GLOBAL, home=True, decides=False)] if everybody else [])


class Evaluator:
    """The server's half: whom to ask, and the summary."""

    def __init__(
        self, tasks: Evaluation, hub: Hub, events: Callable[[Event], None], seed: int, looks: Sequence[Look]
    ) -> None:
        """Prepare.

        Args:
            tasks: the client's half.
            hub: the federation.
            events: where `Evaluated` goes.
            seed: root seed, for a fixed sample of clients.
            looks: what is scored, in this order.
        """
        self.tasks, self.hub, self.events, self.seed = tasks, hub, events, seed
        self.looks = looks

    def due(self, round: int, rounds: int) -> bool:
        """Whether there is an evaluation after this round (0: before the first)."""
        every = self.tasks.config.every
        return round in (0, rounds) or (every > 0 and round % every == 0)

    def __call__(self, model: Model) -> dict[str, float]:
        """Score; the numbers that decide (none when nobody has rows)."""
        summary: dict[str, float] = {}
        whom: list[ClientId] | None = None
        for look in self.looks:
            if look.home:
                found = self._at_home(look, model)
            else:
                whom = self._whom() if whom is None else whom
                found = self._at_clients(look, model, whom)
            if look.decides and not summary:
                summary = found
        return summary

    def _at_clients(self, look: Look, model: Model, whom: Sequence[ClientId]) -> dict[str, float]:
        names, begun = self.tasks.config.measured, time.perf_counter()
        found = self._ask(look.task, model, whom)
        summary = summarise(found, names)
        rows = {name: scores.row(names) for name, scores in found.items() if scores.examples}
        self._tell(look.split, summary, rows, begun)
        return summary

    def _at_home(self, look: Look, model: Model) -> dict[str, float]:
        if not model.whole or self.hub.home is None:
            return {}
        begun = time.perf_counter()
        found = pooled(self._ask(look.task, model, [self.hub.home]).values()).metrics(self.tasks.config.measured)
        self._tell(look.split, found, {}, begun)
        return found

    def _ask(self, task: Any, model: Model, to: Sequence[ClientId]) -> dict[str, Scores]:
        got = self.hub.survey(task, lambda _: model, to, Gather(), plausible)
        scores = [value for value, _ in got.value.scores] if got.clients else []
        return {self.hub.profile(i).name: s for i, s in zip(got.clients, scores, strict=True)}

    def _tell(self, split: str, metrics: dict[str, float], clients: dict[str, dict[str, float]], begun: float) -> None:
        self.events(Evaluated(self.hub.round, split, metrics, clients, time.perf_counter() - begun))

    def _whom(self) -> list[ClientId]:
        match self.tasks.config.clients:
            case "all":
                return list(self.hub.everybody)
            case "cohort":
                return list(self.hub.last_cohort) or self.hub.draw()
            case count:
                order = rng.permutation(rng.key(self.seed, "evaluated clients"), len(self.hub.everybody))
                return sorted(self.hub.everybody[i] for i in order[:count])
