"""What the server's own worker may ask of an engine that holds a second model, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedloom import rng
from fedloom.contracts import Carry, Fitting, Lessons
from fedloom.engine.batches import plan
from fedloom.engine.schedule import step_rates
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Course:
    """Passes over the public rows with one optimiser: a batch and a learning rate for each step."""

    batches: Sequence[Sequence[Any]]
    lrs: Sequence[float]


@dataclass(frozen=True)
class Distil:
    """First the teacher alone, then teacher and student together."""

    x: Params
    """[P] where the student starts."""
    layout: Layout
    alone: Sequence[Course]
    """The teacher's courses, each with an optimiser of its own."""
    together: Course | None
    """None: the teacher only learns alone."""
    max_grad_norm: float | None
    """Of the student's gradient, and of the teacher's."""
    accumulate: int
    seed: int
    """Root of dropout's random numbers."""
    label: str
    """Who asks, for messages."""
    teacher: Params | None = None
    """[Q] what the teacher has learned since it was loaded; None: nothing."""
    teacher_base: int | None = None
    """Which model it was then."""
    carry: Carry = ()


@dataclass(frozen=True)
class Align:
    """An emulator is fitted to the model of its owner."""

    x: Params
    """[P] where it starts."""
    layout: Layout
    course: Course
    train: Sequence[str]
    """Leaves that move; the owner's model carries the others."""
    kd_weight: float
    max_grad_norm: float | None
    accumulate: int
    label: str
    """Who asks, for messages."""


def courses(lessons: Lessons, rows: Sequence[Any], learned: bool, seed: int) -> tuple[list[Course], Course | None]:
    """The batches of a task: the teacher's alone, and those of both.

    Args:
        lessons: how often and how fast.
        rows: the public rows, at least one.
        learned: whether the teacher has learned before.
        seed: key of the order.
    """
    first = [("first", lessons.first)] if not learned else []
    wanted = [*first, ("alone", lessons.alone)]
    alone = [course(lessons, rows, epochs, rng.key(seed, name)) for name, epochs in wanted if epochs]
    both = course(lessons, rows, lessons.together, rng.key(seed, "together")) if lessons.together else None
    return alone, both


def fitting(how: Fitting, rows: Sequence[Any], steps: int, seed: int) -> Course:
    """Keyed batches for so many steps, and a rate that falls in a line to 0."""
    chosen = plan(len(rows), how.batch_size, seed, steps=steps)
    return Course([[rows[i] for i in batch] for batch in chosen], step_rates(how.lr, steps, 0, 0.0))


def course(lessons: Lessons, rows: Sequence[Any], epochs: float, seed: int) -> Course:
    """Keyed batches, and a rate that falls in a line to 0."""
    chosen = plan(len(rows), lessons.batch_size, seed, epochs=epochs)
    return Course([[rows[i] for i in batch] for batch in chosen], step_rates(lessons.lr, len(chosen), 0, 0.0))
