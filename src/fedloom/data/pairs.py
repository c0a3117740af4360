"""Pairs of answers and judged answers as tokens, on the pieces of an answer's template."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedloom.data.encode import IGNORED, Encoded, Encoder
from fedloom.data.rows import Row


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    chosen: Encoded
    rejected: Encoded
    """Begins with the same prompt ids as `chosen`; labels of both mark their own answer and its closing token."""
    cut: bool = False
    """The prompt lost its beginning."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """What both begin with."""
        return self.chosen.prompt

    @property
    def answer(self) -> str:
        """Text of the better answer."""
        return self.chosen.answer

    @property
    def category(self) -> str | None:
        """The row's."""
        return self.chosen.category

    @property
    def size(self) -> int:
        """Tokens that go through the model."""
        return self.chosen.size + self.rejected.size


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer and whether it is a good one."""

    answer: Encoded
    good: bool
    cut: bool = False
    """The prompt lost its beginning."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the answer follows."""
        return self.answer.prompt

    @property
    def category(self) -> str | None:
        """The row's."""
        return self.answer.category

    @property
    def size(self) -> int:
        """Tokens that go through the model."""
        return self.answer.size


class _OnTemplate:
    """What both encoders take from the template's encoder, and how a prompt is fitted."""

    def __init__(self, encoder: Encoder, max_prompt_length: int | None = None) -> None:
        self.encoder, self.max_prompt_length = encoder, max_prompt_length
        self.max_length = encoder.max_length

    @property
    def template_name(self) -> str:
        """The template in use."""
        return self.encoder.template_name

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens after which an answer is complete."""
        return self.encoder.stop_ids

    @property
    def labels(self) -> None:
        """There are no classes."""
        return None

    def check(self, rows: Sequence[Row]) -> None:
        """Refuse rows that the template has no place for.

        Raises:
            UserError: see `Encoder.check`.
        """
        self.encoder.check(rows)

    def _fitted(self, parts: Sequence[list[int]], longest: int) -> list[int] | str:
        """A prompt's tokens, fewer from the left where there are too many for it or for `longest` tokens of answer.

        The beginning-of-text token stays, and at least one token of text. A string says why the row is left out.
        """
        prompt = [*self.encoder.start, *(token for part in parts for token in part)]
        if self.max_prompt_length is not None:
            prompt = self._cut(prompt, self.max_prompt_length)
        room = self.max_length - longest
        if len(prompt) <= room:
            return prompt
        if self.encoder.overlong == "drop":
            return "overlong"
        cut = self._cut(prompt, room)
        return cut if len(cut) <= room else "answer too long"

    def _cut(self, prompt: list[int], most: int) -> list[int]:
        """At most so many tokens, as long as one of text is left."""
        keep = self.encoder.kept_start(prompt)
        excess = min(len(prompt) - most, len(prompt) - keep - 1)
        return prompt[:keep] + prompt[keep + excess :] if excess > 0 else prompt


class PairEncoder(_OnTemplate):
    """Makes pairs; the prompt is tokenised once and shared."""

    def encode_all(self, rows: Sequence[Row]) -> list[Pair | str]:
        """Many rows, in their order.

        A string says why one is left out (`empty answer`, `chosen equals rejected`, `overlong`, `answer too long`).
        """
        reasons = [_unfit_pair(row) for row in rows]
        kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        made = iter([self._made(row, ids) for row, ids in zip(kept, self._written(kept), strict=True)])
        return [next(made) if reason is None else reason for reason in reasons]

    def _written(self, rows: Sequence[Row]) -> list[list[list[int]]]:
        """Ids of the pieces of each prompt, and at the end those of both answers."""
        render = self.encoder.template.render
        return self.encoder.written([[*render(row), render(row.answered(row.rejected or ""))[-1]] for row in rows])

    def _made(self, row: Row, ids: list[list[int]]) -> Pair | str:
        *parts, chosen, rejected = ids
        if chosen == rejected:  # the tokenizer makes no difference between them
            return "chosen equals rejected"
        prompt = self._fitted(parts, max(len(chosen), len(rejected)))
        if isinstance(prompt, str):
            return prompt
        return Pair(
            _encoded(prompt, chosen, row.output, row.category),
            _encoded(prompt, rejected, row.rejected or "", row.category),
            len(prompt) < len(self.encoder.start) + sum(map(len, parts)),
        )


class JudgedEncoder(_OnTemplate):
    """Makes judged answers."""

    def encode_all(self, rows: Sequence[Row]) -> list[Judged | str]:
        """Many rows, in their order; a string says why one is left out (`empty answer`, `overlong`, ...)."""
        reasons = [_unfit_judged(row) for row in rows]
        kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        written = self.encoder.written([self.encoder.template.render(row) for row in kept])
        made = iter([self._made(row, ids) for row, ids in zip(kept, written, strict=True)])
        return [next(made) if reason is None else reason for reason in reasons]

    def _made(self, row: Row, ids: list[list[int]]) -> Judged | str:
        *parts, answer = ids
        prompt = self._fitted(parts, len(answer))
        if isinstance(prompt, str):
            return prompt
        cut = len(prompt) < len(self.encoder.start) + sum(map(len, parts))
        return Judged(_encoded(prompt, answer, row.output, row.category), row.good is True, cut)


def _encoded(prompt: Sequence[int], answer: Sequence[int], text: str, category: str | None) -> Encoded:
    """One answer after its prompt; earlier turns of a conversation are not learned."""
    ids, labels = (*prompt, *answer), (*(IGNORED for _ in prompt), *answer)
    return Encoded(ids, labels, tuple(prompt), text, category)


def _unfit_pair(row: Row) -> str | None:
    """Why a row is left out before it is tokenised."""
    if row.rejected is None:
        return "no rejected answer"
    if not row.output.strip() or not row.rejected.strip():
        return "empty answer"
    return "chosen equals rejected" if row.output.strip() == row.rejected.strip() else None


def _unfit_judged(row: Row) -> str | None:
    """Why a row is left out before it is tokenised."""
    if row.good is None:
        return "no judgement"
    return None if row.output.strip() else "empty answer"
