"""Preference tuning: of two answers to a prompt, make the better one the likelier. Which loss, the settings say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from fedloom.data.encode import IGNORED, Encoded
from fedloom.data.pairs import Pair
from fedloom.metrics.scores import Scores
from fedloom.objectives import preference_losses as of
from fedloom.objectives.base import Forward, Text
from fedloom.objectives.config import DpoConfig
from fedloom.objectives.sft import wanted

_WITHOUT_REFERENCE: Final = ("slic", "orpo", "simpo")


@dataclass(frozen=True)
class Preference:
    """Mean over pairs of the loss that `config.loss` names; formulas in `fedloom.objectives.preference_losses`.

    All of it is computed in float64 from what the model said, answer by answer: a pair's loss is the same alone and
    among others.
    """

    config: DpoConfig

    @property
    def forward(self) -> Forward:
        """Log-likelihoods of the answers' tokens."""
        return "logprob"

    @property
    def reference(self) -> Literal["base", "start"] | None:
        """As set; nobody's for slic, orpo and simpo."""
        return None if self.config.loss in _WITHOUT_REFERENCE else self.config.reference

    @property
    def writes(self) -> bool:
        """Answers can be asked for."""
        return True

    def texts(self, part: Sequence[Pair]) -> list[Text]:
        """Two for each pair, side by side: the prompt with the chosen answer, then with the rejected one.

        The second shares the prompt with the first, and what both answers begin with.
        """
        found = list[Text]()
        for pair in part:
            chosen, rejected = wanted(pair.chosen), wanted(pair.rejected)
            found += [chosen, replace(rejected, shared=_common(chosen.ids, rejected.ids))]
        return found

    def count(self, batch: Sequence[Pair]) -> int:
        """Pairs."""
        return len(batch)

    def losses(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Pair]) -> Tensor:
        """Loss of each pair [pairs], float64.

        Args:
            said: log p of the answer's tokens for each of `texts(part)`, in nats.
            reference: the same of the reference, where the loss has one.
            part: the pairs.
        """
        how = self.config
        match how.loss:
            case "slic":
                return of.slic(*_pairs(summed(said)), how.gamma, how.lam)
            case "orpo":
                return of.orpo(*_pairs(averaged(said)), how.lam)
            case "simpo":
                return of.simpo(*_pairs(averaged(said)), how.beta, how.gamma)
        chosen, rejected = _pairs(log_ratios(said, reference, mean=how.loss == "ipo" and how.length_normalized))
        h = chosen - rejected
        match how.loss:
            case "sigmoid":
                return of.sigmoid(h, how.beta, how.label_smoothing)
            case "robust":
                return of.robust(h, how.beta, how.label_smoothing)
            case "ipo":
                return of.ipo(h, how.beta)
            case "hinge":
                return of.hinge(h, how.beta)

    def scores(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Pair]) -> list[Scores]:
        """Loss and rewards of each pair, and whether the chosen answer's is the higher.

        The reward of an answer is what its loss makes of it: beta (log pi - log ref) with a reference (of sums, also
        where IPO is over means), beta times the mean log p for simpo, lam times the mean for orpo, log pi for slic.
        Equal rewards count as half a pair won: where nothing was trained yet and all rewards are 0, that is 0.5.
        """
        chosen, rejected = _pairs(self._worth(said, reference))
        # before any scale: where orpo's lam is 0 all rewards are, and yet one answer is the likelier
        won = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
        scale = {"orpo": self.config.lam, "slic": 1.0}.get(self.config.loss, self.config.beta)
        columns = (self.losses(said, reference, part), won, scale * chosen, scale * rejected)
        return [
            Scores(examples=1, tokens=1, nll=nll, pairs=1.0, won=win, chosen_reward=better, rejected_reward=worse)
            for nll, win, better, worse in torch.stack(columns, 1).tolist()
        ]

    def made_up(self, ids: Sequence[int]) -> Pair:
        """Two tokens of prompt; the others are one answer, and in reverse the other."""
        return Pair(_made_up(ids[:2], ids[2:]), _made_up(ids[:2], ids[:1:-1]))

    def _worth(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None) -> Tensor:
        """Rewards before their scale [texts]."""
        match self.config.loss:
            case "slic":
                return summed(said)
            case "orpo" | "simpo":
                return averaged(said)
            case _:
                return log_ratios(said, reference)


def summed(said: Sequence[Tensor]) -> Tensor:
    """Log-likelihood of each text's answer [texts], in nats, summed in float64."""
    return torch.stack([one.double().sum() for one in said])


def averaged(said: Sequence[Tensor]) -> Tensor:
    """Mean over the tokens of each text's answer [texts], in nats."""
    return summed(said) / _lengths(said)


def log_ratios(said: Sequence[Tensor], reference: Sequence[Tensor] | None, *, mean: bool = False) -> Tensor:
    """Log-ratio log pi - log ref of each text's answer [texts], in nats; `mean`: divided by its tokens."""
    assert reference is not None  # the objective declared one
    ratios = summed(said) - summed(reference)
    return ratios / _lengths(said) if mean else ratios


def _lengths(said: Sequence[Tensor]) -> Tensor:
    return torch.tensor([max(1, len(one)) for one in said], dtype=torch.float64, device=said[0].device)


def _pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of chosen and of rejected answers, from a number for each of `Preference.texts`."""
    return values[0::2], values[1::2]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal ids both begin, where at least one of `other` is not counted."""
    most = min(len(one), len(other) - 1)
    return next((i for i in range(most) if one[i] != other[i]), most)


def _made_up(prompt: Sequence[int], answer: Sequence[int]) -> Encoded:
    return Encoded((*prompt, *answer), (IGNORED,) * len(prompt) + tuple(answer), tuple(prompt), "", None)
