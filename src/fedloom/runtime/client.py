"""One client's side of one task: its rows, its memory, its random numbers, and what it may ask of the engine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from fedloom import rng
from fedloom.contracts import (
    Call,
    Carry,
    ClientFailed,
    ClientId,
    Correct,
    Distilled,
    Exchange,
    Fitted,
    Fitting,
    Lessons,
    Message,
    Model,
    Penalty,
    Profile,
    Summary,
    Trained,
    Wandered,
)
from fedloom.drift import Drift
from fedloom.engine.batches import plan
from fedloom.engine.config import LocalConfig
from fedloom.engine.lessons import Align, Distil, courses, fitting
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, On, Probe, Stand, Wander, matrices, own_seeds
from fedloom.engine.schedule import round_rate, step_rates
from fedloom.errors import UserError
from fedloom.noise import Kind
from fedloom.params import Layout, Params
from fedloom.runtime.noted import Attacker, Noted, NotedWalk
from fedloom.runtime.store import PendingState

Split = Literal["train", "validation", "test"]


class ClientData(Protocol):
    """A client's rows, encoded when they are asked for."""

    def get(self, split: Split) -> Sequence[Any]:
        """The rows of a split."""


@dataclass(frozen=True)
class LocalPlan:
    """How a client trains, resolved for this client and round."""

    local: LocalConfig
    rounds: int
    weighting: Literal["examples", "dataset", "uniform"] = "examples"


class LocalClient:
    """The `Client` of every runtime: it runs where the rows are."""

    def __init__(
        self,
        profile: Profile,
        data: ClientData,
        state: PendingState,
        plan: LocalPlan,
        round: int,
        root: int,
        attack: Attacker | None = None,
        whole: bool = True,
    ) -> None:
        self.profile, self.data, self.state, self.plan, self.round = profile, data, state, plan, round
        self.attack = attack
        self.whole = whole
        self._root = root  # already keyed by run, dispatch and client
        self._turn = 0
        self.runs: list[Trained | Wandered] = []

    @property
    def id(self) -> ClientId:
        """Its number."""
        return self.profile.id

    @property
    def layout(self) -> Layout:
        """What its vectors mean."""
        return self.profile.layout

    @property
    def examples(self) -> int:
        """Training rows it holds."""
        return len(self.data.get("train"))

    @property
    def lr(self) -> float:
        """Base learning rate of this round."""
        local = self.plan.local
        return round_rate(local.schedule, local.lr, self.round, self.plan.rounds)

    @property
    def steps(self) -> int:
        """Optimiser steps of one training, as the recipe says."""
        local = self.plan.local
        return local.steps or self.passes(local.epochs or 1.0)

    def key(self, purpose: str) -> int:
        """A seed of its own for this task and purpose."""
        return rng.key(self._root, purpose)

    def weight(self, run: Trained | Wandered) -> float:
        """How much a reply made of this training counts; nothing without a step."""
        if not run.steps:
            return 0.0
        match self.plan.weighting:
            case "examples":
                return float(run.examples)
            case "dataset":
                return float(self.examples)
            case "uniform":
                return 1.0

    def descend(
        self,
        x: Params,
        *,
        carry: Carry = (),
        steps: int | None = None,
        lr: float | None = None,
        decay: float = 1.0,
        train: Sequence[str] | None = None,
        correct: Correct | None = None,
        with_: Sequence[Tensor] = (),
        penalty: Penalty | None = None,
        batches: str | None = None,
        one_batch: bool = False,
        gradient: bool = False,
        inner: Mapping[str, Tensor] | None = None,
    ) -> Noted:
        """See `fedloom.contracts.Client.descend`.

        Raises:
            ClientFailed: no row is left to train on.
        """
        local, turn = self.plan.local, self._turn
        self._turn += 1
        chosen = self._batches(batches or f"turn {turn}", steps)
        if one_batch:
            chosen = chosen[:1] * len(chosen)
        base = self.lr if lr is None else lr
        request = Descend(
            start=x,
            layout=self.layout,
            carry=tuple(carry),
            batches=chosen,
            lrs=step_rates(base, len(chosen), local.warmup, decay),
            optimizer=local.optimizer,
            max_grad_norm=local.max_grad_norm,
            accumulate=local.accumulate,
            seed=rng.key(self._root, "dropout", turn),
            label=f"{self.profile.name}, round {self.round + 1}",
            train=train,
            correct=correct,
            with_=tuple(with_),
            penalty=penalty,
            gradient=gradient,
            inner=inner,
        )
        return Noted(self, x, Call(self.id, request))

    def passes(self, count: float = 1.0) -> int:
        """Optimiser steps that see every training row `count` times."""
        return max(1, round(math.ceil(self.examples / self.plan.local.batch_size) * count))

    def probe(self, points: Sequence[Params], *, carry: Carry = (), batches: str | None = None) -> Call[list[float]]:
        """Losses of one batch at each point."""
        turn = self._turn
        self._turn += 1
        batch = self._batches(batches or f"turn {turn}", 1)[0]
        return Call(self.id, Probe(tuple(points), self.layout, batch, tuple(carry)))

    def wander(
        self,
        x: Params | Drift,
        *,
        epsilon: float,
        seeds: Sequence[Sequence[int]] | None = None,
        directions: int = 1,
        weight_decay: float = 0.0,
        decayed: Sequence[str] | None = None,
        steps: int | None = None,
        lr: float | None = None,
        scales: Sequence[float] | None = None,
        batches: str | None = None,
        limit: float | None = None,
        forward: bool = False,
        carry: Carry = (),
        kind: Kind = "gaussian",
        keep: bool = True,
        step: bool = True,
    ) -> NotedWalk:
        """See `fedloom.contracts.Client.wander`.

        Raises:
            ClientFailed: no row is left to train on.
            ValueError: an argument cannot be.
        """
        turn = self._turn
        self._turn += 1
        if steps is None and seeds is not None:
            steps = len(seeds)
        chosen = self._batches(batches or f"turn {turn}", steps)
        rates = step_rates(self.lr if lr is None else lr, len(chosen), self.plan.local.warmup, 1.0)
        if scales is not None:
            rates = [rate * scale for rate, scale in zip(rates, scales, strict=True)]
        request = Wander(
            start=x,
            layout=self.layout,
            batches=chosen,
            lrs=rates,
            seeds=seeds if seeds is not None else own_seeds(self._root, turn, len(chosen), directions),
            epsilon=epsilon,
            label=f"{self.profile.name}, round {self.round + 1}",
            accumulate=self.plan.local.accumulate,
            weight_decay=weight_decay,
            decayed=matrices(self.layout) if decayed is None else decayed,
            limit=limit,
            forward=forward,
            kind=kind,
            keep=keep,
            step=step,
            carry=tuple(carry),
        )
        request.check()
        return NotedWalk(self, request, Call(self.id, request))

    def stand(self, drift: Drift) -> Call[Params]:
        """See `fedloom.contracts.Client.stand`."""
        return Call(self.id, Stand(drift, self.layout))

    def logits(self, x: Params, *, carry: Carry = ()) -> Call[Tensor]:
        """The model's outputs at `x` on the validation rows."""
        return Call(self.id, Logits(x, self.layout, self.data.get("validation"), tuple(carry)))

    def distil(
        self,
        x: Params,
        lessons: Lessons,
        *,
        carry: Carry = (),
        teacher: Params | None = None,
        teacher_base: int | None = None,
    ) -> Call[Distilled]:
        """See `fedloom.contracts.Client.distil`.

        Raises:
            ClientFailed: there is no public row that can be used.
        """
        rows = self._public()
        turn = self._turn
        self._turn += 1
        alone, together = courses(lessons, rows, teacher is not None, rng.key(self._root, "lessons", turn))
        request = Distil(
            x=x,
            layout=self.layout,
            alone=alone,
            together=together,
            max_grad_norm=lessons.max_grad_norm,
            accumulate=self.plan.local.accumulate,
            seed=rng.key(self._root, "dropout", turn),
            label=f"{self.profile.name}, round {self.round + 1}",
            teacher=teacher,
            teacher_base=teacher_base,
            carry=tuple(carry),
        )
        return Call(self.id, request)

    def align(self, x: Params, how: Fitting, *, steps: int, train: Sequence[str]) -> Call[Fitted]:
        """See `fedloom.contracts.Client.align`.

        Raises:
            ClientFailed: there is no public row that can be used.
        """
        turn = self._turn
        self._turn += 1
        request = Align(
            x=x,
            layout=self.layout,
            course=fitting(how, self._public(), steps, rng.key(self._root, "fitting", turn)),
            train=train,
            kd_weight=how.kd_weight,
            max_grad_norm=how.max_grad_norm,
            accumulate=self.plan.local.accumulate,
            label=f"{self.profile.name}, round {self.round + 1}",
        )
        return Call(self.id, request)

    def evaluate(
        self,
        model: Model,
        split: Split,
        metrics: tuple[str, ...],
        rows: int | None,
        batch_size: int,
        max_new_tokens: int,
        on: On = "trained",
    ) -> Call[Any]:
        """Scores of (at most the first `rows`) rows of a split."""
        examples, carry = self.data.get(split)[:rows], tuple(model.carry)
        return Call(
            self.id,
            Evaluate(model.x, self.layout, examples, metrics, batch_size, max_new_tokens, carry, model.drift, on),
        )

    def generate(self, model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Call[list[Any]]:
        """Greedy continuations of prompts."""
        carry, drift = tuple(model.carry), model.drift
        return Call(self.id, Generate(model.x, self.layout, prompts, len(prompts), max_new_tokens, carry, drift))

    def exchange(self, phase: str, payload: Message) -> Call[Mapping[ClientId, Message]]:
        """Speak to the other clients of this collect and hear them all.

        Raises:
            UserError: some of them are in other processes.
        """
        if not self.whole:
            raise UserError(
                f"clients that speak to each other in a round ({phase}) must all be in one process; use one process"
            )
        return Call(self.id, Exchange(phase, payload))

    def summary(self) -> Summary:
        """The numbers of all trainings of this task."""
        losses = [(run.loss, run.steps) for run in self.runs if run.loss is not None]
        steps = sum(run.steps for run in self.runs)
        return Summary(
            steps=steps,
            skipped=sum(run.skipped for run in self.runs),
            examples=sum(run.examples for run in self.runs),
            tokens=sum(run.tokens for run in self.runs),
            loss=sum(loss * n for loss, n in losses) / steps if losses else None,
        )

    def _public(self) -> Sequence[Any]:
        rows = self.data.get("train")
        if not rows:
            raise ClientFailed(f"{self.profile.name} has no public row that can be used")
        return rows

    def _batches(self, stream: str, steps: int | None) -> list[list[Any]]:
        rows, local = self.data.get("train"), self.plan.local
        if not rows:
            raise ClientFailed(f"{self.profile.name} has no training row that can be used")
        chosen = plan(
            len(rows),
            local.batch_size,
            rng.key(self._root, "batches", stream),
            steps=steps if steps is not None else local.steps,
            epochs=local.epochs,
            lengths=[row.size for row in rows] if local.group_by_length else None,
        )
        return [[rows[i] for i in batch] for batch in chosen]
