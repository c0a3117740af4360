"""One client's side of one task: its rows, its memory, its random numbers, and what it may ask of the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from fedloom import rng
from fedloom.contracts import (
    Call,
    ClientFailed,
    ClientId,
    Correct,
    Exchange,
    Message,
    Penalty,
    Profile,
    Summary,
    Trained,
)
from fedloom.engine.batches import plan
from fedloom.engine.config import LocalConfig
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, Probe
from fedloom.engine.schedule import round_rate, step_rates
from fedloom.params import Layout, Params
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
        self, profile: Profile, data: ClientData, state: PendingState, plan: LocalPlan, round: int, root: int
    ) -> None:
        self.profile, self.data, self.state, self.plan, self.round = profile, data, state, plan, round
        self._root = root  # already keyed by run, dispatch and client
        self._turn = 0
        self.runs: list[Trained] = []

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

    def key(self, purpose: str) -> int:
        """A seed of its own for this task and purpose."""
        return rng.key(self._root, purpose)

    def weight(self, run: Trained) -> float:
        """How much a reply made of this training counts."""
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
        steps: int | None = None,
        lr: float | None = None,
        train: Sequence[str] | None = None,
        correct: Correct | None = None,
        with_: Sequence[Tensor] = (),
        penalty: Penalty | None = None,
        batches: str | None = None,
        gradient: bool = False,
    ) -> "_Noted":
        """See `fedloom.contracts.Client.descend`.

        Raises:
            ClientFailed: no row is left to train on.
        """
        local, turn = self.plan.local, self._turn
        self._turn += 1
        chosen = self._batches(batches or f"turn {turn}", steps)
        base = lr if lr is not None else round_rate(local.schedule, local.lr, self.round, self.plan.rounds)
        request = Descend(
            start=x,
            batches=chosen,
            lrs=step_rates(base, len(chosen), local.warmup),
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
        )
        return _Noted(self, Call(self.id, request))

    def probe(self, points: Sequence[Params], *, batches: str | None = None) -> Call[list[float]]:
        """Losses of one batch at each point."""
        turn = self._turn
        self._turn += 1
        return Call(self.id, Probe(tuple(points), self._batches(batches or f"turn {turn}", 1)[0]))

    def logits(self, x: Params) -> Call[Tensor]:
        """The model's outputs at `x` on the validation rows."""
        return Call(self.id, Logits(x, self.data.get("validation")))

    def evaluate(
        self, x: Params, split: Split, metrics: tuple[str, ...], rows: int | None, batch_size: int, max_new_tokens: int
    ) -> Call[Any]:
        """Scores of (at most the first `rows`) rows of a split."""
        examples = self.data.get(split)
        return Call(self.id, Evaluate(x, examples[:rows], metrics, batch_size, max_new_tokens))

    def generate(self, x: Params, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Call[list[Any]]:
        """Greedy continuations of prompts."""
        return Call(self.id, Generate(x, prompts, len(prompts), max_new_tokens))

    def exchange(self, phase: str, payload: Message) -> Call[Mapping[ClientId, Message]]:
        """Speak to the other clients of this collect and hear them all."""
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
            lengths=[len(row.ids) for row in rows] if local.group_by_length else None,
        )
        return [[rows[i] for i in batch] for batch in chosen]


@dataclass(frozen=True)
class _Noted:
    """Awaits a training and remembers its numbers for the log."""

    client: LocalClient
    call: Call[Trained]

    def __await__(self) -> Any:
        run = yield self.call
        self.client.runs.append(run)
        return run
