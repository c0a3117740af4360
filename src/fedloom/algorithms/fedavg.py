"""FedAvg. McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data,
https://arxiv.org/abs/1602.05629, algorithm 1.

Notation: x shared weights, y a client's weights after local training, n its examples; x, y are [P].
Each round x becomes Σ n_i y_i / Σ n_i over the clients that replied. What is averaged is the space's business
(products of LoRA factors, say); how x follows the average is the server optimiser's (FedAvgM, FedAdam, DiLoCo's outer
step); which replies are trusted is the guard's. Each round notes how far the clients drifted apart, and how far the
result is from the average of what they have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.aggregate.combine import combine
from fedloom.aggregate.robust import Guard
from fedloom.aggregate.server import Momenta, ServerOptimizer, ServerSgd
from fedloom.algorithms.fitting import misfit
from fedloom.contracts import (
    Carry,
    Client,
    Federation,
    Fits,
    Got,
    Message,
    Model,
    Needs,
    NobodyReplied,
    Rule,
    Space,
    Task,
    Term,
    Trained,
    Weighted,
)
from fedloom.params import Layout, Params
from fedloom.spaces.measure import Measured, Sketch


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params
    carry: Carry
    round: int
    """Rounds behind the server: which leaves are trained may depend on it."""


@dataclass(frozen=True)
class Result(Weighted):
    """Uplink."""

    y: Term


@dataclass(frozen=True)
class State:
    """Shared weights, what they carry on top of the base, and the server optimiser's memory of each phase."""

    x: Params
    carry: Carry
    memory: tuple[Momenta, ...]


@dataclass(frozen=True)
class FedAvg:
    """Average what the clients have after local training."""

    space: Space
    server: ServerOptimizer = ServerSgd()
    guard: Guard | None = None
    keep_inner: bool = False
    """Clients keep their optimiser's state from round to round (DiLoCo), instead of starting it anew."""

    @property
    def needs(self) -> Needs:
        """A guard looks at single replies."""
        return Needs(single_replies=self.guard is not None)

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        points = (self.space.point(start, phase) for phase in range(self.space.phases))
        return State(start, (), tuple(self.server.start(point) for point in points))

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""
        return self.average(s, fed, self.local, lambda start: start)[0]

    def average(
        self,
        s: State,
        fed: Federation,
        task: Task[Any, Any],
        message: Callable[[Start], Message],
        doubt: Fits | None = None,
        **rules: Rule,
    ) -> tuple[State, Got]:
        """A round in which clients train by `task`: what it makes of the state, and what came home.

        Args:
            s: the state before.
            fed: the federation.
            task: what clients do; its replies hold `y`.
            message: the message to clients, made of where they begin.
            doubt: why a reply's further fields cannot be used; None: they always can.
            rules: how further fields of the replies are combined.
        """
        phase = self.space.phase(fed.round)
        point, sketch = self.space.point(s.x, phase), Sketch()
        starts: dict[Layout, Message] = {}

        def down(client: int) -> Message:
            layout = fed.profile(client).layout
            if layout not in starts:  # one SVD for all clients of one rank
                starts[layout] = message(Start(self.space.lower(s.x, layout), s.carry, fed.round))
            return starts[layout]

        cohort = fed.cohort()
        if self.guard is not None and len(cohort) < self.guard.least:
            raise NobodyReplied(f"{len(cohort)} clients could be asked, the rule needs {self.guard.least} replies")
        combined = {"y": self.rule(point, phase, sketch), **rules}
        fits = self.fits(fed, phase, s.x.dtype)
        both: Fits = fits if doubt is None else lambda client, up: fits(client, up) or doubt(client, up)
        got = fed.collect(task, down, cohort, combined, both)
        term, memory = self.server.step(point, got.value.y, s.memory[phase])
        x, carry = self.space.close(s.x, s.carry, term, fed.round)
        mean = (x, carry) if self.server.plain else self.space.close(s.x, s.carry, got.value.y, fed.round)
        fed.note(
            drift=sketch.drift(self.space.form(point, phase)),
            aggregation_error=sketch.error(self.standing(*mean, s.carry, phase)),
        )
        return State(x, carry, (*s.memory[:phase], memory, *s.memory[phase + 1 :])), got

    def fits(self, fed: Federation, phase: int, format: torch.dtype) -> Fits:
        """Whether a reply looks as a client of that layout's should."""
        known: dict[Layout, Term] = {}

        def fits(client: int, up: Any) -> str | None:
            layout = fed.profile(client).layout
            if layout not in known:
                blank = torch.empty(layout.size, device="meta")
                known[layout] = self.space.lift(blank, layout, phase)
            wanted, found = parts(known[layout]), parts(up.y)
            if len(found) != len(wanted) or isinstance(up.y, Tensor) != isinstance(known[layout], Tensor):
                kind = "a vector" if isinstance(known[layout], Tensor) else f"{len(wanted)}"
                return f"it holds {len(found)} tensors, its adapter calls for {kind}"
            wrong = (misfit("y", one, tuple(like.shape), format) for one, like in zip(found, wanted, strict=True))
            return next((why for why in wrong if why is not None), None)

        return fits

    def rule(self, point: Term, phase: int, sketch: Sketch) -> Rule:
        """How this round's replies are combined: by the space's rule, guarded and watched."""

        def form(term: Term) -> Term:
            return self.space.form(term, phase)

        rule = self.space.rule
        if self.guard is not None:
            # Where vectors are averaged, vectors are compared: a reply of turned factors, (B G)(G^-1 A), stands for the
            # same product and would be trusted, yet spoil the average. One reply taken as it is cannot.
            turned = isinstance(point, tuple) or self.guard.takes_one
            rule = self.guard(rule, point, form if turned else same)
        return Measured(rule, form, sketch)

    def standing(self, x: Params, carry: Carry, before: Carry, phase: int) -> Term:
        """What a round's result adds to the base and what it carried before, free of gauge."""
        form = self.space.form(self.space.point(x, phase), phase)
        if carry is before or isinstance(form, Tensor) or len(form) == 1:
            return form
        nothing = form[0].new_zeros(form[0].shape)
        changes = [(sign, (nothing, *part)) for sign, part in ((1.0, carry), (-1.0, before)) if part]
        return combine((1.0, form), *changes)

    def model(self, s: State) -> Model:
        """The shared weights."""
        return Model(s.x, s.carry)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train from x, send what came out."""
        run = await self.train(down, client)
        return self.result(run, down, client)

    def result(self, run: Trained, down: Start, client: Client) -> Result:
        """What a client sends of its training."""
        y = self.space.lift(run.y, client.layout, self.space.phase(down.round))
        return Result(y=y, weight=client.weight(run))

    async def train(self, down: Start, client: Client, **how: Any) -> Trained:
        """Local training on the leaves of this phase; `how` goes to `descend`."""
        inner = recalled(client) if self.keep_inner else None
        train = self.space.active(self.space.phase(down.round), client.layout)
        run = await client.descend(down.x, carry=down.carry, train=train, inner=inner, **how)
        for name, value in (run.inner or {}).items():
            client.state[f"{INNER}{name}"] = value
        return run

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return Model(self.space.lower(down.x, client.layout), down.carry)


INNER = "inner "


def parts(term: Term) -> tuple[Tensor, ...]:
    """The tensors of a term."""
    return (term,) if isinstance(term, Tensor) else term


def same(term: Term) -> Term:
    """The term as it is."""
    return term


def recalled(client: Client) -> Mapping[str, Tensor]:
    """The optimiser's state this client kept; nothing before its first round."""
    return {name.removeprefix(INNER): client.state.get(name) for name in client.state.names(INNER)}
