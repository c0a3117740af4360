"""One client's side: what its half of an algorithm may do, and what it hands to the driver."""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, overload

from torch import Tensor

from fedloom.contracts.messages import Carry, ClientId, Message
from fedloom.drift import Drift
from fedloom.noise import Kind
from fedloom.params import Layout, Params

Result = TypeVar("Result")


@dataclass(frozen=True)
class Trained:
    """What one local training gives its client."""

    y: Params
    """[P], weights after training."""
    steps: int
    """Optimiser steps taken."""
    lr_sum: float
    """Sum of the learning rates of those steps."""
    examples: int
    """Examples of those steps."""
    tokens: int
    """What the loss of those steps is a mean over: labelled tokens, rows, or pairs."""
    loss: float | None
    """Mean over steps of the batches' losses; None without a step."""
    skipped: int = 0
    """Steps left out: loss or gradient not finite, or nothing labelled."""
    gradient: Params | None = None
    """[P], mean of the raw gradients of the steps, when it was asked for."""
    inner: Mapping[str, Tensor] | None = None
    """The optimiser's state after the last step, when one was handed in."""


@dataclass(frozen=True)
class Wandered:
    """What one local training without gradients gives its client."""

    y: Params | None
    """[P], weights after training; None where only the slopes were wanted."""
    seeds: tuple[tuple[int, ...], ...]
    """[steps, directions] of each step, taken or left out."""
    slopes: Tensor
    """[steps, directions] float64: how much the loss rises along each direction, NaN where the step was left out."""
    rates: Tensor
    """[steps] float64, learning rates."""
    steps: int
    """Steps taken."""
    lr_sum: float
    """Sum of the learning rates of those steps."""
    examples: int
    """Examples of those steps."""
    tokens: int
    """What the loss of those steps is a mean over."""
    loss: float | None
    """Mean over steps and directions of the loss between the two points; None without a step."""
    skipped: int = 0
    """Steps left out: a loss not finite, a difference beyond the limit, or nothing labelled."""


@dataclass(frozen=True)
class Lessons:
    """How a teacher and the shared model learn on the public rows; passes over them, 0: none."""

    first: float
    """The teacher alone, once, before anything else."""
    alone: float
    """The teacher alone, each time."""
    together: float
    """Teacher and student, each time."""
    lr: float
    """At the start of each of these; it falls in a line to 0."""
    batch_size: int
    max_grad_norm: float | None


@dataclass(frozen=True)
class Distilled:
    """What a distillation gives."""

    y: Params
    """[P], the student."""
    teacher: Params
    """[Q], what the teacher has learned since it was loaded; it stays where it is."""
    teacher_base: int
    """Which model that was."""
    steps: int
    """Steps taken together."""
    skipped: int
    """Steps left out, the teacher's alone included."""
    student_loss: float | None
    """Mean over these steps of the cross-entropy; None without a step."""
    teacher_loss: float | None


@dataclass(frozen=True)
class Fitting:
    """How an emulator is fitted to the model it stands for, on the public rows."""

    lr: float
    """At the start; it falls in a line to 0."""
    batch_size: int
    kd_weight: float
    """Weight of the divergence of words beside the distance of blocks."""
    max_grad_norm: float | None


@dataclass(frozen=True)
class Fitted:
    """What such a fitting gives."""

    y: Params
    """[P], all leaves of the emulator."""
    steps: int
    """Steps taken."""
    skipped: int
    """Steps left out."""
    distance: float | None
    """Mean over these steps of the distance of blocks; None without a step."""
    divergence: float | None
    """Mean over these steps of the divergence of words, per token."""


@dataclass(frozen=True)
class Summary:
    """The numbers of a client's trainings in one task, for logs; no algorithm reads it."""

    steps: int = 0
    skipped: int = 0
    examples: int = 0
    tokens: int = 0
    loss: float | None = None


Correct: TypeAlias = Callable[..., Tensor]
"""(gradient, weights, *with_) -> gradient to apply; element by element, so that an engine may call it on parts."""
Penalty: TypeAlias = Callable[..., Tensor]
"""(trainable tensors by leaf name, *with_) -> a scalar added to the loss; differentiable."""


@dataclass(frozen=True)
class Call(Generic[Result]):
    """What a client's coroutine hands to the driver when it awaits the engine or its peers."""

    client: ClientId
    request: Any

    def __await__(self) -> Generator["Call[Result]", Result, Result]:
        return (yield self)


@dataclass(frozen=True)
class Exchange:
    """A request to the other clients of the same collect: all wait until all have spoken."""

    phase: str
    payload: Message


class ClientState(Protocol):
    """A client's private memory. Writes count only when its reply counted and the round's checkpoint is on disk."""

    @overload
    def get(self, name: str, *, like: Tensor) -> Tensor: ...
    @overload
    def get(self, name: str) -> Any: ...
    def get(self, name: str, *, like: Tensor | None = None) -> Any:
        """The value; zeros shaped `like` that, or None, when there is none yet."""

    def __setitem__(self, name: str, value: Tensor | float | int) -> None: ...
    def names(self, prefix: str = "") -> list[str]:
        """Names of all entries that begin so, sorted."""


class Client(Protocol):
    """What a client's half of an algorithm may do. One client's code is written for one client."""

    @property
    def id(self) -> ClientId:
        """Its number."""

    @property
    def layout(self) -> Layout:
        """What its vectors mean."""

    @property
    def state(self) -> ClientState:
        """Its private memory."""

    @property
    def examples(self) -> int:
        """Training rows it holds."""

    @property
    def lr(self) -> float:
        """Base learning rate of this round."""

    @property
    def steps(self) -> int:
        """Optimiser steps of one training, as the recipe says."""

    def weight(self, run: Trained | Wandered) -> float:
        """How much a reply made of this training counts, by `aggregate.weighting`."""

    def key(self, purpose: str) -> int:
        """A seed of its own for this task and purpose."""

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
    ) -> Awaitable[Trained]:
        """Train from `x` [P] as the recipe's `local` says, unless told otherwise.

        Args:
            x: where to start.
            carry: what lies on top of the base meanwhile, frozen.
            steps: optimiser steps; default: the recipe's.
            lr: base learning rate; default: the round's. 0 looks at gradients without moving.
            decay: the rate falls in a line over the K steps towards this share of it: step k has
                lr (1 - k / K (1 - decay)).
            train: names of the leaves that move; default: all.
            correct: changes the gradient before clipping and the step, with the vectors of `with_` passed in.
            with_: [P] each, handed to `correct` and `penalty`.
            penalty: a further term of the loss.
            batches: name of a batch stream; two trainings of one task with the same name see the same batches.
            one_batch: every step sees the stream's first batch.
            gradient: also return the mean raw gradient.
            inner: state of the optimiser to go on from (empty: begin one), returned in `Trained.inner`; None: begin
                anew and forget.
        """

    def passes(self, count: float = 1.0) -> int:
        """Optimiser steps that see every training row `count` times."""

    def probe(
        self, points: Sequence[Params], *, carry: Carry = (), batches: str | None = None
    ) -> Awaitable[list[float]]:
        """Losses of one batch at each point, nothing saved for a backward pass."""

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
    ) -> Awaitable[Wandered]:
        """Train without gradients: two forward passes along a random direction say how steep it is there.

        z = z(seed), g = (L(x + epsilon z) - L(x - epsilon z)) / 2 epsilon, x <- x - lr (g z + weight_decay x); of
        several directions the mean is taken. No dropout.

        Args:
            x: where to start: weights [P], or the run's start and how far it was left along which directions; then
                every move is exact, whatever came before.
            epsilon: how far the two points lie from x, above 0.
            seeds: directions of each step; default: of this client's own, drawn from its task.
            directions: how many each step has, where `seeds` does not say.
            weight_decay: share of the weights that every step takes away, times its rate; not with a drift.
            decayed: names of the leaves it concerns; default: all but biases and norms.
            steps: default: as many as `seeds`, or the recipe's.
            lr: base learning rate; default: the round's.
            scales: factor of each step's rate; default: 1.
            batches: name of a batch stream, as in `descend`.
            limit: a step in which two losses differ by more is left out.
            forward: g = (L(x + epsilon z) - L(x)) / epsilon instead.
            carry: what lies on top of the base meanwhile, frozen.
            kind: distribution of the directions.
            keep: hand out the weights at the end.
            step: False: only look at the slopes; every step begins at x.
        """

    def stand(self, drift: Drift) -> Awaitable[Params]:
        """The weights [P] a drift leads to from the run's start, on their grids: to train from with gradients."""

    def logits(self, x: Params, *, carry: Carry = ()) -> Awaitable[Tensor]:
        """The model's outputs at `x` on the public rows."""

    def distil(
        self,
        x: Params,
        lessons: Lessons,
        *,
        carry: Carry = (),
        teacher: Params | None = None,
        teacher_base: int | None = None,
    ) -> Awaitable[Distilled]:
        """Let a teacher and the model at `x` [P] learn from the public rows and from each other; the server's own
        worker only.

        Args:
            x: the student.
            lessons: how often and how fast.
            carry: what lies on top of the student's base meanwhile, frozen.
            teacher: [Q] as the last distillation gave it; None: it begins as it was loaded.
            teacher_base: the same.
        """

    def align(self, x: Params, how: Fitting, *, steps: int, train: Sequence[str]) -> Awaitable[Fitted]:
        """Fit an emulator at `x` [P] to its owner's model, which carries those leaves of x that stay; the server's own
        worker only.

        Args:
            x: the emulator's vector.
            how: what is minimised, and how fast.
            steps: optimiser steps, at least 1.
            train: names of the leaves that move.
        """

    def exchange(self, phase: str, payload: Message) -> Awaitable[Mapping[ClientId, Message]]:
        """Speak to the other clients of this collect and hear them all."""
