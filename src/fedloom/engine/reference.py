"""The plain engine: one client at a time through the Hugging Face model, with torch's own optimisers.

It is the oracle the faster engines are measured against: any model, any adapter kind, any optimiser. Order inside a
step: gradients of all accumulated parts, `correct`, clipping, optimiser. A step whose loss or gradient is not finite
is left out and counted; a training that ends in such steps has diverged, and its client fails. Evaluations that wait
with the same weights share forward passes.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from fedloom import rng
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import Call, ClientFailed, ClientId, Trained
from fedloom.engine import generation, optimizers
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, Probe
from fedloom.metrics.scores import Scores
from fedloom.metrics.text import exact_match, rouge_l
from fedloom.objectives.sft import collate, labelled, labelled_logits, token_losses
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
                result: Any = _Descent(self, first.request).run()
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
        asked = [c for c in self._queue if isinstance(c.request, Evaluate) and _alike(c.request, like)]
        self._queue = [c for c in self._queue if all(c is not other for other in asked)]
        rows = [(i, example) for i, call in enumerate(asked) for example in call.request.examples]
        scores = [Scores()] * len(asked)
        for (owner, _), score in zip(rows, self._score(like, [example for _, example in rows]), strict=True):
            scores[owner] = scores[owner] + score
        return [(call.client, score) for call, score in zip(asked, scores, strict=True)]

    def _score(self, like: Evaluate, examples: Sequence[Any]) -> list[Scores]:
        """One row's scores each, in order."""
        self.adapted.load(like.x, like.layout, like.carry)
        losses = self._row_losses(examples, like.batch_size)
        if not {"exact_match", "rouge_l"} & set(like.metrics):
            return [Scores(1, n, nll) for nll, n in losses]
        answers = generation.answers(
            self.adapted.module, self.tokenizer, [e.prompt for e in examples], self.stop_ids, like.batch_size,
            like.max_new_tokens,
        )  # fmt: skip
        wants_rouge = "rouge_l" in like.metrics
        return [
            Scores(1, n, nll, 1, int(exact_match(a, e.answer)), rouge_l(a, e.answer) if wants_rouge else 0.0)
            for (nll, n), a, e in zip(losses, answers, examples, strict=True)
        ]

    @torch.no_grad()
    def _row_losses(self, examples: Sequence[Any], batch_size: int) -> list[tuple[float, int]]:
        """Summed loss and labelled tokens of each row; rows of similar lengths share a batch."""
        self.adapted.module.eval()
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
        found: list[tuple[float, int]] = [(0.0, 0)] * len(examples)
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


def _alike(one: Evaluate, other: Evaluate) -> bool:
    """The same weights and settings; weights that came over a wire are equal, not identical."""
    settings = (one.metrics, one.batch_size, one.max_new_tokens, one.layout) == (
        other.metrics,
        other.batch_size,
        other.max_new_tokens,
        other.layout,
    )
    return settings and all(
        mine is theirs or torch.equal(mine, theirs)
        for mine, theirs in zip_longest((one.x, *one.carry), (other.x, *other.carry), fillvalue=NOTHING)
    )


NOTHING = torch.zeros(0)


class _Descent:
    """One local training."""

    def __init__(self, engine: Reference, request: Descend) -> None:
        self.engine, self.request, self.adapted = engine, request, engine.adapted
        self.adapted.load(request.start, request.layout, request.carry)
        self.tensors = self.adapted.parameters(request.train)
        self.frozen = self._frozen()
        self.optimizer = optimizers.make(request.optimizer, self.tensors, request.lrs[0] if request.lrs else 0.0)
        if request.inner:
            optimizers.recall(self.optimizer, request.inner)
        self.with_ = [vector.to(engine.device) for vector in request.with_]
        self.gradient = torch.zeros_like(self.adapted.g) if request.gradient else None

    def run(self) -> Trained | ClientFailed:
        """All steps, then what came out; a failure when the weights have left the numbers a loss can be computed at."""
        with torch.random.fork_rng([self.engine.device] if self.engine.device.type == "cuda" else []):
            return self._run()  # some models draw numbers in training that nothing depends on (OPT's layer drop of 0)

    def _run(self) -> Trained | ClientFailed:
        self.adapted.module.train()
        losses, rates = list[float](), list[float]()
        examples = tokens = skipped = 0
        diverged: int | None = None
        for step, (batch, lr) in enumerate(zip(self.request.batches, self.request.lrs, strict=True)):
            count = labelled(batch)
            loss = self._step(step, batch, count, lr) if count else math.nan
            if not math.isfinite(loss):
                skipped += 1
                if count and diverged is None:
                    diverged = step
                continue
            diverged = None
            losses.append(loss)
            rates.append(lr)
            examples, tokens = examples + len(batch), tokens + count
        self.adapted.module.eval()
        if diverged is not None:
            lr = self.request.lrs[diverged]
            return ClientFailed(f"loss or gradient not finite from step {diverged} to the end (lr {lr:g})", "nonfinite")
        gradient = None if self.gradient is None else (self.gradient / max(1, len(losses))).cpu()
        mean = sum(losses) / len(losses) if losses else None
        inner = None if self.request.inner is None else optimizers.memory(self.optimizer)
        return Trained(self.adapted.read(), len(losses), sum(rates), examples, tokens, mean, skipped, gradient, inner)

    def _step(self, step: int, batch: Sequence[Any], count: int, lr: float) -> float:
        """One optimiser step; the token-mean loss, NaN when the step was left out."""
        g = self.adapted.g.zero_()
        loss = self._backward(step, batch, count)
        if self.frozen is not None:
            g.masked_fill_(self.frozen, 0)
        raw = g.clone() if self.gradient is not None else None
        if self.request.correct is not None:
            g.copy_(self.request.correct(g.clone(), self.adapted.now(), *self.with_))
            if self.frozen is not None:
                g.masked_fill_(self.frozen, 0)
        norm = float(g.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return math.nan
        if self.gradient is not None and raw is not None:
            self.gradient += raw
        limit = self.request.max_grad_norm
        if limit is not None and norm > limit:
            g.mul_(limit / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return loss

    def _backward(self, step: int, batch: Sequence[Any], count: int) -> float:
        """Gradients of the whole batch's token mean into `g`, part by part; the loss."""
        total = 0.0
        for part, examples in enumerate(split(batch, self.request.accumulate)):
            side = collate(examples, self.engine.pad, self.engine.device)
            self.adapted.moment.seed = rng.key(self.request.seed, "step", step, part)
            self.adapted.moment.real = side.real
            losses, _ = token_losses(self.adapted.module, side)
            loss = losses.sum() / count
            if part == 0 and self.request.penalty is not None:
                loss = loss + self.request.penalty(self.adapted.by_name(), *self.with_)
            loss.backward()
            total += loss.item()
        self.adapted.moment.seed = None
        return total

    def _frozen(self) -> Tensor | None:
        """[P] bool: numbers that must not move; None when all may."""
        if self.request.train is None:
            return None
        mask = torch.ones(self.request.layout.size, dtype=torch.bool, device=self.engine.device)
        for leaf in self.request.layout.leaves:
            if leaf.name in self.request.train:
                mask[leaf.offset : leaf.offset + leaf.size] = False
        return mask


def split(batch: Sequence[Any], parts: int) -> Iterator[Sequence[Any]]:
    """The batch in at most `parts` pieces of nearly equal length, none empty."""
    parts = min(parts, len(batch))
    for i in range(parts):
        yield batch[len(batch) * i // parts : len(batch) * (i + 1) // parts]
