"""A teacher beside the model that is federated: both learn from the public rows and from each other.

The student is the federated model with its adapter; of the teacher every weight is trained. Order inside a step of
both: the loss of `fedloom.objectives.distillation` over the whole batch, each model's gradient clipped by itself, one
AdamW over both. A step whose loss or gradients are not finite is left out and counted; a training that ends in such
steps has diverged, and the task fails.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fedloom import rng
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import Call, ClientFailed, ClientId, Distilled, Engine, Trained
from fedloom.engine import maps, optimizers, padded
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.descent import split
from fedloom.engine.lessons import Course, Distil
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend
from fedloom.errors import UserError
from fedloom.models.load import fingerprint
from fedloom.objectives.base import Forward, Objective
from fedloom.objectives.distillation import (
    Distillation,
    Terms,
    attention_apart,
    attention_apart_in_text,
)
from fedloom.params import Params

ADAMW = OptimizerConfig(name="adamw")


class Holder(Protocol):
    """Who holds a second model, and serves what is asked of both."""

    @property
    def asked(self) -> type[Any]:
        """The kind of request."""

    def serve(self, request: Any) -> Any:
        """What comes out of a request, or `ClientFailed`."""


class Tutor:
    """Holds the teacher, and serves distillations."""

    asked: ClassVar[type[Any]] = Distil

    def __init__(
        self, student: Adapted, teacher: Adapted, tokenizer: Any, objective: Objective, loss: Distillation
    ) -> None:
        """Prepare.

        Args:
            student: the federated model; it may be in use elsewhere between two calls.
            teacher: with every weight trained; its tokenizer is the student's.
            tokenizer: fills up texts.
            objective: of the federated model; says what is learned from a row.
            loss: what is minimised together.

        Raises:
            UserError: these two cannot learn from each other this way.
        """
        self.forward: Forward = _forward(objective)
        self.objective, self.loss = objective, loss
        self.student = Reference(student, tokenizer, (), objective=objective)
        self.teacher = Reference(teacher, tokenizer, (), objective=objective)
        self.base = int(fingerprint(teacher.module)[:15], 16)
        """Which model the teacher was when it was loaded; 60 bits."""
        if loss.attention:
            maps.check(self.student, self.teacher, self.forward)

    def serve(self, request: Distil) -> Distilled | ClientFailed:
        """All courses of a request.

        Raises:
            UserError: what the teacher is said to have learned belongs to another model, or the published loss is to
                be computed in parts.
        """
        if self.loss.kl == "raw_logits" and request.accumulate > 1:
            raise UserError(
                "algorithm.kl=raw_logits: the published loss cannot be computed in parts; use local.accumulate=1 or "
                "kl=proper"
            )
        if request.teacher_base not in (None, self.base):
            raise UserError(
                "algorithm.teacher: what the teacher has learned in this run was added to the weights of another "
                "model than the one that is loaded now; name the one the run was begun with"
            )
        adapted, known = self.teacher.adapted, request.teacher
        y, skipped = adapted.start if known is None else known, 0
        for number, course in enumerate(request.alone):
            run = alone(
                self.teacher, course, y, max_grad_norm=request.max_grad_norm, accumulate=request.accumulate,
                seed=rng.key(request.seed, "alone", number), label=f"{request.label}, teacher",
            )  # fmt: skip
            if isinstance(run, ClientFailed):
                return run
            y, skipped = run.y, skipped + run.skipped
        if request.together is None:
            return Distilled(request.x, y, self.base, 0, skipped, None, None)
        return _Together(self, request, request.together, y, skipped).run()


def alone(
    teacher: Reference,
    course: Course,
    start: Params,
    *,
    max_grad_norm: float | None,
    accumulate: int,
    seed: int,
    label: str,
) -> Trained | ClientFailed:
    """One course of the teacher by itself, as any model is trained.

    Args:
        teacher: the engine that holds it.
        course: its batches.
        start: [Q] where it stands.
        max_grad_norm: larger gradients are scaled down to it.
        accumulate: passes a step is split into.
        seed: root of dropout's random numbers.
        label: who trains, for messages.
    """
    descend = Descend(
        start=start,
        layout=teacher.adapted.layout,
        batches=course.batches,
        lrs=course.lrs,
        optimizer=ADAMW,
        max_grad_norm=max_grad_norm,
        accumulate=accumulate,
        seed=seed,
        label=label,
    )
    teacher.admit(Call(0, descend))
    try:
        ((_, run),) = teacher.advance()
    finally:
        teacher.abandon()
    if isinstance(run, ClientFailed):
        return ClientFailed(f"the teacher alone: {run}", run.missing.reason)
    assert isinstance(run, Trained)
    return run


class _Together:
    """One course of student and teacher."""

    def __init__(self, tutor: Tutor, request: Distil, course: Course, teacher: Params, skipped: int) -> None:
        self.tutor, self.request, self.course, self.loss = tutor, request, course, tutor.loss
        self.student, self.teacher = tutor.student.adapted, tutor.teacher.adapted
        self.student.load(request.x, request.layout, request.carry)
        self.teacher.load(teacher)
        tensors = self.student.parameters(None) + (self.teacher.parameters(None) if self.loss.mutual else [])
        self.optimizer = optimizers.make(ADAMW, tensors, course.lrs[0])
        self.learning = [self.student, self.teacher] if self.loss.mutual else [self.student]
        self.skipped, self.steps = skipped, 0
        self.student_loss = self.teacher_loss = 0.0
        self.diverged: int | None = None

    def run(self) -> Distilled | ClientFailed:
        """All steps, then what came out."""
        device = self.student.w.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for one in self.learning:
                one.module.train()
            for step, batch in enumerate(self.course.batches):
                self._step(step, batch)
            for one in self.learning:
                one.module.eval()
        if self.diverged is not None:
            lr = self.course.lrs[self.diverged]
            detail = f"distillation: loss or gradient not finite from step {self.diverged} to the end (lr {lr:g})"
            return ClientFailed(detail, "nonfinite")
        if not self.steps:
            return ClientFailed("distillation: there is nothing to learn in the public rows")
        return Distilled(
            self.student.read(), self.teacher.read(), self.tutor.base, self.steps, self.skipped,
            self.student_loss / self.steps, self.teacher_loss / self.steps,
        )  # fmt: skip

    def _step(self, step: int, batch: Sequence[Any]) -> None:
        count = self.tutor.objective.count(batch)
        if not count:
            self.skipped += 1
            return
        for one in self.learning:
            one.g.zero_()
        parts = list(split(batch, self.request.accumulate))
        keys = [rng.key(self.request.seed, "together", step, part) for part in range(len(parts))]
        doubt = None
        if len(parts) > 1 and self.loss.normalised:  # D is the whole batch's, and is needed before its first part
            with torch.no_grad():
                doubt = sum(self._terms(*one, count, batch).doubt() for one in zip(parts, keys, strict=True))
        total = student_ce = teacher_ce = 0.0
        for part, seed in zip(parts, keys, strict=True):
            terms = self._terms(part, seed, count, batch)
            loss = self.loss.total(terms, doubt)
            loss.backward()
            total += loss.item()
            student_ce, teacher_ce = student_ce + terms.student_ce.item(), teacher_ce + terms.teacher_ce.item()
        self._close(step, total, student_ce, teacher_ce)

    def _close(self, step: int, loss: float, student_ce: float, teacher_ce: float) -> None:
        """Take the step, unless its loss or a gradient is not finite."""
        norms = [float(one.g.norm()) for one in self.learning]
        if not all(math.isfinite(number) for number in (loss, *norms)):
            self.skipped += 1
            self.diverged = step if self.diverged is None else self.diverged
            return
        self.diverged = None
        limit = self.request.max_grad_norm
        for one, norm in zip(self.learning, norms, strict=True):
            if limit is not None and norm > limit:
                one.g.mul_(limit / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.lrs[step]
        self.optimizer.step()
        self.steps += 1
        self.student_loss, self.teacher_loss = self.student_loss + student_ce, self.teacher_loss + teacher_ce

    def _terms(self, part: Sequence[Any], seed: int, count: int, batch: Sequence[Any]) -> Terms:
        """What some rows of a batch add to its loss."""
        tutor, loss = self.tutor, self.loss
        texts = tutor.objective.texts(part)
        found = list[Tensor]()
        seen = list[list[Tensor]]()
        for model in (tutor.student, tutor.teacher):
            learns = torch.is_grad_enabled() and (model is tutor.student or loss.mutual)
            with torch.set_grad_enabled(learns), maps.watched(model.adapted.module, loss.attention) as attention:
                model.adapted.moment.seed = rng.key(seed, "teacher" if model is tutor.teacher else "student")
                found.append(padded.together(model.said(texts, tutor.forward), tutor.forward))
                model.adapted.moment.seed = None
            seen.append(attention)
        labels = torch.tensor(_labels(tutor.forward, texts, part), device=found[0].device)
        return loss.terms(found[0], found[1], labels, count, self._attention(seen, texts, len(batch)))

    def _attention(self, seen: Sequence[Sequence[Tensor]], texts: Sequence[Any], whole: int) -> Tensor | None:
        if not self.loss.attention:
            return None
        if self.loss.kl == "raw_logits":
            return attention_apart(seen[0], seen[1])
        return attention_apart_in_text(seen[0], seen[1], [len(text.ids) for text in texts], whole)


class Tutoring:
    """An engine that leaves everything but what takes two models to another one."""

    def __init__(self, inner: Engine, tutor: Holder) -> None:
        self.inner, self.tutor = inner, tutor
        self._queue = deque[Call[Any]]()
        self._others = 0
        """Calls of the other engine that are not served yet."""

    def room(self) -> int:
        """As much as the other engine has."""
        return self.inner.room()

    def admit(self, call: Call[Any]) -> None:
        """Keep what takes two models, hand on all else."""
        if isinstance(call.request, self.tutor.asked):
            self._queue.append(call)
        else:
            self.inner.admit(call)
            self._others += 1

    def advance(self) -> list[tuple[ClientId, Any]]:
        """The other engine's work first: nobody is in the middle of a training when the student is taken."""
        if self._others:
            done = self.inner.advance()
            self._others -= len(done)
            return done
        call = self._queue.popleft()
        return [(call.client, self.tutor.serve(call.request))]

    def abandon(self) -> None:
        """Forget all calls."""
        self._queue.clear()
        self._others = 0
        self.inner.abandon()


def _forward(objective: Objective) -> Forward:
    if objective.forward == "pooled":
        return "pooled"
    if objective.forward == "logprob" and objective.reference is None and objective.writes:
        return "logits"
    raise UserError(
        "algorithm=fedkd: a teacher can be learned from where classes or tokens are predicted; use objective=classify "
        "or objective=sft"
    )


def _labels(forward: Forward, texts: Sequence[Any], part: Sequence[Any]) -> list[int]:
    if forward == "pooled":
        return [row.label for row in part]
    return [target for text in texts for target in text.targets]
