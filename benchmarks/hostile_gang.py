"""Hostile clients with real keys: they join as they should and answer as they should not."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from hostile_answers import KINDS, Draft

from fedloom.contracts import Summary, Weighted
from fedloom.deployment.client import LARGEST, Place, Workshop
from fedloom.runtime import letters
from fedloom.runtime.flower.node import Letter, Node
from fedloom.runtime.letters import Answer, End, Ready, Recipe, Refused, Seen, TaskLetter
from fedloom.runtime.station import Built, Lost, Stranger


@dataclass
class Mallory:
    """One hostile client: joins as it should, answers as it should not."""

    number: int
    place: Place
    plot: "Plot"
    node: Node = field(init=False)
    over: bool = False
    announced: bool = False

    def __post_init__(self) -> None:
        join = self.place.join
        self.node = Node(join.addresses[0], join.ca.encode(), join.key.encode(), LARGEST)

    def step(self) -> None:
        """Take a letter, if there is one, and answer it."""
        try:
            if not self.announced:
                self.node.announce()
                self.announced = True
            letter = self.node.letter()
            if letter is not None:
                self._answer(letter)
        except (Lost, Stranger) as problem:
            self.announced = False
            self.plot.troubles[str(problem)[:80]] += 1

    def _answer(self, letter: Letter) -> None:
        said = letters.read_letter(letter.head)
        self.plot.run = letter.metadata.run_id
        match said:
            case Recipe():
                self._join(letter, said)
            case TaskLetter():
                self._lie(letter, said)
            case End() | Refused():
                self.node.answer(letter, letters.head(Seen(said.ticket)), b"")
                self.over = True
        self.node.done(letter)

    def _join(self, letter: Letter, recipe: Recipe) -> None:
        ready: Ready = self.plot.built(self.place, recipe).ready(recipe.ticket)
        head = letters.head(ready)
        if self.number < 0:  # cannot even say hello
            heads = ({**head, "ticket": "x"}, {"what": "Answer"}, {**head, "rows": {"train": "many"}})
            head = heads[self.number % len(heads)]
        self.node.answer(letter, head, b"")

    def _lie(self, letter: Letter, task: TaskLetter) -> None:
        name, plot = self.place.join.name, self.plot
        honest = plot.honest(task, lambda: bytes(self.node.body(letter)), plot.others(name, task.ticket))
        if honest is None:  # a task that trains nothing, such as scoring
            answer = Answer(task.ticket, Summary(), None, False)
            self.node.answer(letter, letters.head(answer), os.urandom(100))
            return
        turn = (task.round * plot.clients + self.number) % len(plot.schedule)
        kind = plot.schedule[turn]
        head, body = KINDS[kind](honest, plot.turn(kind)).sent()
        plot.sent[task.round + 1, name] = kind
        self.node.answer(letter, head, body)
        with suppress(Lost):
            self.node.answer(letter, *honest.sent())
        self.plot.second += 1


@dataclass
class Plot:
    """What the hostile clients know together."""

    clients: int
    say: Any = lambda words: None
    run: int = 0
    second: int = 0
    sent: dict[tuple[int, str], str] = field(default_factory=dict)
    troubles: Counter[str] = field(default_factory=Counter)
    _made: Built | None = None
    _model: tuple[str, Any] | None = None
    _tickets: dict[str, str] = field(default_factory=dict)
    _turns: Counter[str] = field(default_factory=Counter)

    @property
    def schedule(self) -> list[str]:
        """Kinds in turn; there are many sorts of those against the codec."""
        return [*KINDS, "crafted against the codec"]

    def turn(self, kind: str) -> int:
        """How many of this kind there were before."""
        self._turns[kind] += 1
        return self._turns[kind] - 1

    def built(self, place: Place, recipe: Recipe) -> Built:
        if self._made is None:
            self._made = Workshop().build(place, recipe, place.folder)
        return self._made

    def others(self, name: str, ticket: str) -> str:
        """The ticket of somebody else."""
        self._tickets[name] = ticket
        return next((other for whose, other in self._tickets.items() if whose != name), "0" * 32)

    def honest(self, task: TaskLetter, body: Any, foreign: str) -> Draft | None:
        """What an honest client would send of its training."""
        assert self._made is not None
        marshal = self._made.marshal
        reply = marshal.tasks.messages(task.task)[1]
        if not issubclass(reply, Weighted):
            return None
        if self._model is None or self._model[0] != task.digest:
            self._model = task.digest, marshal.read_down(task.task, task.round, body())
        envelope = marshal.envelope(reply, task.round, task.number, task.client)
        y = self._model[1].x + torch.linspace(-0.5, 0.5, len(self._model[1].x))
        return Draft(task, envelope, reply, y, task.ticket, foreign)
