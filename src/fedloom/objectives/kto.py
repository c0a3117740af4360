"""KTO: single answers, each judged good or bad; pairs are not needed (Ethayarajh et al. 2024, arXiv 2402.01306)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from fedloom.data.encode import IGNORED, Encoded
from fedloom.data.pairs import Judged
from fedloom.metrics.scores import Scores
from fedloom.objectives import preference_losses as of
from fedloom.objectives.base import Forward, Text
from fedloom.objectives.config import KtoConfig
from fedloom.objectives.preference import log_ratios
from fedloom.objectives.sft import wanted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kto:
    """Mean over judged answers of KTO's loss; formulas in `fedloom.objectives.preference_losses`.

    Its baseline z0 is estimated on the examples that are trained together: each prompt with the answer of the next
    example that has another prompt, the first following the last. Two judged answers to one prompt are no mismatch.
    """

    config: KtoConfig
    max_length: int | None = None
    """Tokens a text may have; mismatched answers lose what is beyond. None: any number."""

    @property
    def forward(self) -> Forward:
        """Log-likelihoods of the answers' tokens."""
        return "logprob"

    @property
    def reference(self) -> Literal["base", "start"] | None:
        """As set."""
        return self.config.reference

    @property
    def writes(self) -> bool:
        """A bad answer is nothing to compare one's own with."""
        return False

    def texts(self, part: Sequence[Judged]) -> list[Text]:
        """The examples, in their order; then the mismatched ones, in the order of their prompts."""
        return [wanted(one.answer) for one in part] + [wanted(one) for one in mismatched(part, self.max_length)]

    def count(self, batch: Sequence[Judged]) -> int:
        """Judged answers."""
        return len(batch)

    def losses(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Judged]) -> Tensor:
        """Loss of each judged answer [answers], float64.

        Args:
            said: log p of the answer's tokens for each of `texts(part)`, in nats.
            reference: the same of the reference.
            part: the judged answers. Where none is mismatched (a single one, or all of one prompt), z0 is 0.
        """
        rho = log_ratios(said, reference)
        if len(rho) == len(part) and any(one.answer.answer for one in part):  # made-up examples have no text
            _note_no_baseline()
        return self._losses(rho[: len(part)], of.baseline(rho[len(part) :]), part)

    def scores(
        self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Judged]
    ) -> list[Scores]:
        """Loss and reward beta (log pi - log ref) of each answer.

        The loss of an evaluation is with z0 = 0: that of an answer does then not depend on which others are evaluated
        beside it.
        """
        count = len(part)
        rho = log_ratios(said[:count], None if reference is None else reference[:count])
        losses = self._losses(rho, rho.new_zeros(()), part)
        columns = torch.stack((losses, self.config.beta * rho), 1).tolist()
        return [_score(one.good, nll, reward) for one, (nll, reward) in zip(part, columns, strict=True)]

    def made_up(self, ids: Sequence[int]) -> Judged:
        """Two tokens of prompt, the others are a good answer."""
        return Judged(Encoded(tuple(ids), (IGNORED, IGNORED, *ids[2:]), tuple(ids[:2]), "", None), True)

    def _losses(self, rho: Tensor, z0: Tensor, part: Sequence[Judged]) -> Tensor:
        good = torch.tensor([one.good for one in part], dtype=torch.bool, device=rho.device)
        return of.kto(rho, good, z0, self.config.beta, self.config.desirable, self.config.undesirable)


def mismatched(part: Sequence[Judged], max_length: int | None = None) -> list[Encoded]:
    """Each prompt with the answer of the next example that has another prompt; none where all have the same.

    Args:
        part: the examples; after the last comes the first again.
        max_length: tokens a text may have.
    """
    made = []
    for i, one in enumerate(part):
        others = (*part[i + 1 :], *part[:i])
        other = next((other for other in others if other.prompt != one.prompt), None)
        if other is not None:
            made.append(_joined(one.prompt, other.answer, max_length))
    return made


def _joined(prompt: tuple[int, ...], answer: Encoded, max_length: int | None) -> Encoded:
    begin = len(answer.prompt)
    ids, labels = prompt + answer.ids[begin:], (IGNORED,) * len(prompt) + answer.labels[begin:]
    return Encoded(ids[:max_length], labels[:max_length], prompt, answer.answer, None)


def _score(good: bool, nll: float, reward: float) -> Scores:
    if good:
        return Scores(examples=1, tokens=1, nll=nll, good=1.0, chosen_reward=reward)
    return Scores(examples=1, tokens=1, nll=nll, bad=1.0, rejected_reward=reward)


@cache
def _note_no_baseline() -> None:
    """Once in a process."""
    _log.warning(
        "objective kto: examples trained together have only one prompt, so nothing is mismatched and their z0 is 0; "
        "use a larger local.batch_size or a smaller local.accumulate if this is not a rare remainder"
    )
