"""The plain engine: one client at a time through the Hugging Face model, with torch's own optimisers.

It is the oracle the faster engines are measured against: any model, any adapter kind, any optimiser. Order inside a
step: gradients of all accumulated parts, `correct`, clipping, optimiser. A step whose loss or gradient is not finite
is left out and counted; a training that ends in such steps has diverged, and its client fails. Evaluations that wait
with the same weights share forward passes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedloom import rng
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import Call, ClientFailed, ClientId, Trained
from fedloom.engine import generation, optimizers, scoring
from fedloom.engine.descent import Descent, split
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, Probe
from fedloom.engine.scoring import RowLoss
from fedloom.metrics.scores import Scores
from fedloom.objectives.sft import collate, labelled_logits, token_losses
from fedloom.params import Params

ROOM = 64


class Reference:
    """Serves calls in the order they came."""

    def __init__(self, adapted: Adapted, tokenizer: Any, stop_ids: Sequence[int], checkpointing: bool = False) -> None:
        self.adapted, self.tokenizer, self.stop_ids = adapted, tokenizer, tuple(stop_ids)
        self.pad = generation.filling(adapted.module, tokenizer)
        self.device = adapted.w.device
        self._queue: list[Call[Any]] = []
        if checkpointing:
            adapted.module.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

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
            case Probe():
                result = [self._loss(point, first.request) for point in first.request.points]
            case Logits():
                result = self._logits(first.request)
            case Generate():
                result = self._generate(first.request)
            case other:
                raise TypeError(f"this engine cannot serve a {type(other).__name__}")
        self._queue.pop(0)
        return [(first.client, result)]

    # -- without gradients

    def _evaluate_together(self, like: Evaluate) -> list[tuple[ClientId, Scores]]:
        asked = [c for c in self._queue if isinstance(c.request, Evaluate) and scoring.alike(c.request, like)]
        self._queue = [c for c in self._queue if all(c is not other for other in asked)]
        self.adapted.load(like.x, like.layout, like.carry)
        losses = self._row_losses([e for call in asked for e in call.request.examples], like.batch_size)
        return self.scored(asked, losses)

    def scored(self, asked: Sequence[Call[Any]], losses: Sequence[RowLoss]) -> list[tuple[ClientId, Scores]]:
        """Scores of evaluations of one and the same model, which is loaded here if it must answer.

        Args:
            asked: the calls.
            losses: of all their rows, in order.
        """
        like: Evaluate = asked[0].request
        rows = [(i, example) for i, call in enumerate(asked) for example in call.request.examples]
        answers = None
        if scoring.wants_answers(like):
            self.adapted.load(like.x, like.layout, like.carry)
            answers = generation.answers(
                self.adapted.module, self.tokenizer, [e.prompt for _, e in rows], self.stop_ids, like.batch_size,
                like.max_new_tokens,
            )  # fmt: skip
        scores = [Scores()] * len(asked)
        for (owner, _), score in zip(rows, scoring.scores(like, [e for _, e in rows], losses, answers), strict=True):
            scores[owner] = scores[owner] + score
        return [(call.client, score) for call, score in zip(asked, scores, strict=True)]

    @torch.no_grad()
    def _row_losses(self, examples: Sequence[Any], batch_size: int) -> list[RowLoss]:
        """Summed loss and labelled tokens of each row; rows of similar lengths share a batch."""
        self.adapted.module.eval()
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
        found: list[RowLoss] = [(0.0, 0)] * len(examples)
        for i in range(0, len(order), batch_size):
            chosen = order[i : i + batch_size]
            losses, rows = token_losses(
                self.adapted.module, collate([examples[j] for j in chosen], self.pad, self.device)
            )
            sums = torch.zeros(len(chosen), dtype=torch.float64, device=self.device).index_add_(
                0, rows, losses.double()
            )
            counts = torch.bincount(rows, minlength=len(chosen))
            for j, total, count in zip(chosen, sums.tolist(), counts.tolist(), strict=True):
                found[j] = total, count
        return found

    def _loss(self, x: Params, request: Probe) -> float:
        self.adapted.load(x, request.layout, request.carry)
        rows = self._row_losses(request.examples, len(request.examples))
        return sum(nll for nll, _ in rows) / max(1, sum(count for _, count in rows))

    @torch.no_grad()
    def _logits(self, request: Logits) -> Tensor:
        self.adapted.load(request.x, request.layout, request.carry)
        self.adapted.module.eval()
        return labelled_logits(self.adapted.module, collate(request.examples, self.pad, self.device)).cpu()

    def _generate(self, request: Generate) -> list[str]:
        self.adapted.load(request.x, request.layout, request.carry)
        return generation.answers(
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
        if request.inner:
            optimizers.recall(self.optimizer, request.inner)
        self.descent = Descent(request, self.adapted.g, self.adapted.now, self.optimizer)

    def run(self) -> Trained | ClientFailed:
        """All steps, then what came out; a failure when the weights have left the numbers a loss can be computed at."""
        cuda = [self.engine.device] if self.engine.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):  # some models draw numbers in training that nothing depends on
            self.adapted.module.train()  # (OPT's layer drop of 0)
            while self.descent.next():
                loss = self._backward()
                self.descent.close(loss, float(self.descent.settle()))
            self.adapted.module.eval()
        return self.descent.result(self.adapted.read(), lambda: optimizers.memory(self.optimizer))

    def _backward(self) -> float:
        """Gradients of the whole batch's token mean into `g`, part by part; the loss."""
        total = 0.0
        for part, examples in enumerate(split(self.descent.batch, self.request.accumulate)):
            side = collate(examples, self.engine.pad, self.engine.device)
            self.adapted.moment.seed = rng.key(self.request.seed, "step", self.descent.step, part)
            self.adapted.moment.real = side.real
            losses, _ = token_losses(self.adapted.module, side)
            loss = losses.sum() / self.descent.count
            penalty = self.descent.penalty(self.adapted.by_name()) if part == 0 else None
            if penalty is not None:
                loss = loss + penalty
            loss.backward()
            total += loss.item()
        self.adapted.moment.seed = None
        return total
