"""Sums from which every metric is computed; they add over batches, and over clients."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fedloom.metrics import classes
from fedloom.metrics.config import MetricName

Confusion: TypeAlias = tuple[tuple[int, int, int], ...]
"""(true class, class the model said, rows), sorted, each pair of classes once. A said class of -1 is none: the model
gave numbers that are not finite."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation counted on some rows; the default is no rows at all."""

    examples: int = 0
    """Rows scored."""
    tokens: int = 0
    """What the loss is a mean over: labelled tokens of answers, rows with a class, pairs, judged answers."""
    nll: float = 0.0
    """The loss summed over those; of answers and classes the negative log-likelihood, in nats."""
    answered: int = 0
    """Rows for which an answer was generated."""
    exact: int = 0
    """Answers equal to the reference."""
    rouge: float = 0.0
    """ROUGE-L summed over answers."""
    pairs: float = 0.0
    """Pairs of which one answer was to be preferred."""
    won: float = 0.0
    """Pairs whose better answer had the higher reward; equal rewards count one half."""
    good: float = 0.0
    """Single answers judged good."""
    bad: float = 0.0
    """Single answers judged bad."""
    chosen_reward: float = 0.0
    """Rewards summed over the better answers of pairs, and over good answers."""
    rejected_reward: float = 0.0
    """Rewards summed over the worse answers of pairs, and over bad answers."""
    confusion: Confusion = ()
    """Rows by their class and by what the model said; exact sums in any order."""

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(
            examples=self.examples + other.examples,
            tokens=self.tokens + other.tokens,
            nll=self.nll + other.nll,
            answered=self.answered + other.answered,
            exact=self.exact + other.exact,
            rouge=self.rouge + other.rouge,
            pairs=self.pairs + other.pairs,
            won=self.won + other.won,
            good=self.good + other.good,
            bad=self.bad + other.bad,
            chosen_reward=self.chosen_reward + other.chosen_reward,
            rejected_reward=self.rejected_reward + other.rejected_reward,
            confusion=merged((self.confusion, other.confusion)),
        )

    def metrics(self, names: Sequence[MetricName]) -> dict[str, float]:
        """The named metrics, in the order of `names`; one that has nothing to be computed from is absent.

        loss: mean over `tokens`. perplexity: exp(loss), infinite beyond the largest float. exact_match and rouge_l:
        means over generated answers. accuracy, f1, f1_weighted, f1_micro, matthews: see `fedloom.metrics.classes`.
        preference_accuracy: share of pairs whose better answer has the higher reward. reward_chosen, reward_rejected:
        mean rewards of better (good) and worse (bad) answers; margin: their difference.
        """
        values = {name: self._metric(name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def row(self, names: Sequence[MetricName]) -> dict[str, float]:
        """A client's entry in `events.Evaluated.clients`: examples, tokens, then its metrics."""
        return {"examples": self.examples, "tokens": self.tokens, **self.metrics(names)}

    def _metric(self, name: MetricName) -> float | None:
        match name:
            case "loss":
                return _mean(self.nll, self.tokens)
            case "perplexity":
                return exponential(self.nll / self.tokens) if self.tokens else None
            case "exact_match":
                return _mean(self.exact, self.answered)
            case "rouge_l":
                return _mean(self.rouge, self.answered)
            case "accuracy" | "f1" | "f1_weighted" | "f1_micro" | "matthews":
                return classes.score(name, self.confusion) if self.confusion else None
            case "preference_accuracy":
                return _mean(self.won, self.pairs)
            case "margin":
                better, worse = self._metric("reward_chosen"), self._metric("reward_rejected")
                return None if better is None or worse is None else better - worse
            case "reward_chosen":
                return _mean(self.chosen_reward, self.pairs + self.good)
            case "reward_rejected":
                return _mean(self.rejected_reward, self.pairs + self.bad)


def merged(parts: Iterable[Confusion]) -> Confusion:
    """Counts of all parts together."""
    counts: Counter[tuple[int, int]] = Counter()
    for part in parts:
        for truth, said, rows in part:
            counts[truth, said] += rows
    return tuple((truth, said, rows) for (truth, said), rows in sorted(counts.items()))


def exponential(x: float) -> float:
    """exp(x), infinite where it exceeds the largest float."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
