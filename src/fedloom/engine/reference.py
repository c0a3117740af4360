"""The plain engine: one client at a time through the Hugging Face model, with torch's own optimisers.

It is the oracle the faster engines are measured against: any model, any adapter kind, any optimiser. Order inside a
step: gradients of all accumulated parts, `correct`, clipping, optimiser. A step whose loss or gradient is not finite
is left out and counted; a training that ends in such steps has diverged, and its client fails. Evaluations that wait
with the same weights share forward passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from fedloom import rng
from fedloom.adapters import budget
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import Call, Carry, ClientFailed, ClientId, Trained
from fedloom.drift import Drift, Strayed
from fedloom.engine import alone, generation, optimizers, padded, scoring
from fedloom.engine.descent import Descent, split
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, Probe, Stand, Wander
from fedloom.metrics.scores import Scores
from fedloom.objectives.base import Forward, Objective, Text
from fedloom.objectives.sft import Sft
from fedloom.params import Layout, Params

ROOM = 64


class Reference:
    """Serves calls in the order they came."""

    def __init__(
        self,
        adapted: Adapted,
        tokenizer: Any,
        stop_ids: Sequence[int],
        checkpointing: bool = False,
        objective: Objective | None = None,
    ) -> None:
        """Prepare.

        Args:
            adapted: the model with what is trained.
            tokenizer: writes answers.
            stop_ids: tokens that end an answer.
            checkpointing: compute activations again in the backward pass.
            objective: what is minimised; None: supervised fine-tuning.
        """
        self.adapted, self.tokenizer, self.stop_ids = adapted, tokenizer, tuple(stop_ids)
        self.objective: Objective = objective or Sft()
        self.pad = generation.filling(adapted.module, tokenizer)
        self.device = adapted.w.device
        self.leafwise_proven = False
        """Whether the model was seen to compute the same leaf by leaf."""
        self._queue: list[Call[Any]] = []
        if checkpointing:
            adapted.module.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    @contextmanager
    def minimising(self, objective: Objective) -> Iterator[None]:
        """Within, this is minimised."""
        before, self.objective = self.objective, objective
        try:
            yield
        finally:
            self.objective = before

    def room(self) -> int:
        """How many more calls may wait."""
        return ROOM - len(self._queue)

    def admit(self, call: Call[Any]) -> None:
        """Put a call at the end of the queue."""
        self._queue.append(call)

    def abandon(self) -> None:
        """Forget all calls."""
        self._queue = []

    def advance(self) -> list[tuple[ClientId, Any]]:
        """Serve the first call, and with it every evaluation of the same weights."""
        first = self._queue[0]
        match first.request:
            case Evaluate():
                return self._evaluate_together(first.request)
            case Descend():
                result: Any = _Training(self, first.request).run()
            case Wander():
                result = alone.wander(self, first.request)
            case Probe():
                result = [self._loss(point, first.request) for point in first.request.points]
            case Logits():
                result = self._logits(first.request)
            case Stand():
                failed = self.stood(first.request.drift, first.request.layout)
                result = self.adapted.read() if failed is None else failed
            case Generate():
                result = self._generate(first.request)
            case other:
                raise TypeError(f"this engine cannot serve a {type(other).__name__}")
        self._queue.pop(0)
        return [(first.client, result)]

    # -- without gradients

    def placed(self, request: Evaluate | Generate) -> ClientFailed | None:
        """Let the model stand where a request says; why it cannot."""
        if request.drift is None:
            self.adapted.load(request.x, request.layout, request.carry)
            return None
        return self.stood(request.drift, request.layout)

    def stood(self, drift: Drift, layout: Layout) -> ClientFailed | None:
        """Let the model stand where a drift leads; why it cannot."""
        try:
            self.adapted.stand(drift, layout)
        except Strayed as strayed:
            return ClientFailed(str(strayed), "nonfinite")
        return None

    def _evaluate_together(self, like: Evaluate) -> list[tuple[ClientId, Scores | ClientFailed]]:
        asked = [c for c in self._queue if isinstance(c.request, Evaluate) and scoring.alike(c.request, like)]
        self._queue = [c for c in self._queue if all(c is not other for other in asked)]
        failed = self.placed(like)
        if failed is not None:
            return [(call.client, failed) for call in asked]
        rows = self._row_scores([e for call in asked for e in call.request.examples], like.batch_size)
        return self.scored(asked, rows)

    def scored(
        self, asked: Sequence[Call[Any]], found: Sequence[Scores]
    ) -> list[tuple[ClientId, Scores | ClientFailed]]:
        """Scores of evaluations of one and the same model, which is loaded here if it must answer.

        Args:
            asked: the calls.
            found: what all their rows score without answers, in order.
        """
        like: Evaluate = asked[0].request
        rows = [(i, example) for i, call in enumerate(asked) for example in call.request.examples]
        if scoring.wants_answers(like):
            failed = self.placed(like)
            if failed is not None:
                return [(call.client, failed) for call in asked]
            answers = generation.answers(
                self.adapted.module, self.tokenizer, [e.prompt for _, e in rows], self.stop_ids, like.batch_size,
                like.max_new_tokens,
            )  # fmt: skip
            found = scoring.answered(like, found, [e for _, e in rows], answers)
        scores = [Scores()] * len(asked)
        for (owner, _), score in zip(rows, found, strict=True):
            scores[owner] = scores[owner] + score
        return [(call.client, score) for call, score in zip(asked, scores, strict=True)]

    @torch.no_grad()
    def _row_scores(self, examples: Sequence[Any], batch_size: int) -> list[Scores]:
        """What each row scores; rows of similar lengths share a batch."""
        self.adapted.module.eval()
        order = sorted(range(len(examples)), key=lambda i: examples[i].size)
        found = [Scores()] * len(examples)
        for i in range(0, len(order), batch_size):
            part = [examples[j] for j in order[i : i + batch_size]]
            texts = self.objective.texts(part)
            scores = self.objective.scores(self.said(texts), self.base_said(texts), part)
            for j, score in zip(order[i : i + batch_size], scores, strict=True):
                found[j] = score
        return found

    @torch.no_grad()
    def _loss(self, x: Params, request: Probe) -> float:
        self.adapted.load(x, request.layout, request.carry)
        self.adapted.module.eval()
        texts = self.objective.texts(request.examples)
        losses = self.objective.losses(self.said(texts), self.base_said(texts), request.examples)
        return float(losses.double().sum()) / max(1, self.objective.count(request.examples))

    @torch.no_grad()
    def _logits(self, request: Logits) -> Tensor:
        self.adapted.load(request.x, request.layout, request.carry)
        self.adapted.module.eval()
        forward: Forward = "pooled" if self.objective.forward == "pooled" else "logits"
        return padded.together(self.said(self.objective.texts(request.examples), forward), forward).cpu()

    def said(self, texts: Sequence[Text], forward: Forward | None = None) -> list[Tensor]:
        """What the model says of each text where it stands."""
        batch = padded.collate(texts, self.pad, self.device)
        self.adapted.moment.real, self.adapted.moment.drawn = batch.real, batch.drawn
        return padded.said(self.adapted.module, batch, forward or self.objective.forward)

    def base_said(self, texts: Sequence[Text]) -> list[Tensor] | None:
        """What the base says of them, where the objective compares with a reference.

        An evaluation compares with the base even where training compares with its start: the model that is scored is
        that start, and would always be equal to it.
        """
        return None if self.objective.reference is None else self.said_bare(texts)

    def said_at(self, x: Params, carry: Carry, texts: Sequence[Text]) -> list[Tensor]:
        """What the model says of them at x [P], without gradients and dropout; it then stands where it stood."""
        return self._said_within(self.adapted.standing(x, carry), texts)

    def said_bare(self, texts: Sequence[Text]) -> list[Tensor]:
        """What the base says of them, without gradients; the model then stands where it stood."""
        return self._said_within(self.adapted.off(), texts)

    def _said_within(self, elsewhere: AbstractContextManager[None], texts: Sequence[Text]) -> list[Tensor]:
        module = self.adapted.module
        training = module.training
        module.eval()
        with elsewhere:
            found = self.said(texts)
        module.train(training)
        return found

    def _generate(self, request: Generate) -> list[str] | ClientFailed:
        failed = self.placed(request)
        return failed or generation.answers(
            self.adapted.module, self.tokenizer, request.prompts, self.stop_ids, request.batch_size,
            request.max_new_tokens,
        )  # fmt: skip


class _Training:
    """One local training through per-tensor leaves."""

    def __init__(self, engine: Reference, request: Descend) -> None:
        self.engine, self.request, self.adapted = engine, request, engine.adapted
        self.adapted.load(request.start, request.layout, request.carry)
        tensors = self.adapted.parameters(request.train)
        self.optimizer = optimizers.make(request.optimizer, tensors, request.lrs[0] if request.lrs else 0.0)
        kept, self.budget = budget.without(request.inner or {}), self.adapted.budget
        if kept:
            optimizers.recall(self.optimizer, kept)
        if self.budget is not None:
            self.budget.begin(request.inner)
        self.objective = engine.objective
        self.descent = Descent(request, self.objective, self.adapted.g, self.adapted.now, self.optimizer)

    def run(self) -> Trained | ClientFailed:
        """All steps, then what came out; a failure when the weights have left the numbers a loss can be computed at."""
        cuda = [self.engine.device] if self.engine.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):  # some models draw numbers in training that nothing depends on
            self.adapted.module.train()  # (OPT's layer drop of 0)
            while self.descent.next():
                loss = self._backward()
                taken = self.descent.close(loss, float(self.descent.settle()))
                if taken and self.budget is not None:
                    self.budget.spend()
            self.adapted.module.eval()
        return self.descent.result(self.adapted.read(), self._memory)

    def _memory(self) -> dict[str, Tensor]:
        """What the optimiser remembers, and a budget."""
        return optimizers.memory(self.optimizer) | ({} if self.budget is None else self.budget.memory())

    def _backward(self) -> float:
        """Gradients of the whole batch's mean into `g`, part by part; the loss."""
        total = 0.0
        for part, examples in enumerate(split(self.descent.batch, self.request.accumulate)):
            texts = self.objective.texts(examples)
            reference = self._reference(texts)
            self.adapted.moment.seed = rng.key(self.request.seed, "step", self.descent.step, part)
            loss = self.objective.losses(self.engine.said(texts), reference, examples).sum() / self.descent.count
            penalty = self.descent.penalty(self.adapted.by_name()) if part == 0 else None
            if penalty is not None:
                loss = loss + penalty
            if self.budget is not None and part == 0:
                loss = loss + self.budget.penalty()
            loss.backward()
            self.adapted.moment.seed = None
            total += loss.item()
        return total

    def _reference(self, texts: Sequence[Text]) -> list[Tensor] | None:
        match self.objective.reference:
            case None:
                return None
            case "base":
                return self.engine.said_bare(texts)
            case "start":
                return self.engine.said_at(self.request.start, self.request.carry, texts)
