"""Sums from which every metric is computed; they add over batches, and over clients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedloom.metrics.config import MetricName


@dataclass(frozen=True)
class Scores:
    """What an evaluation counted on some rows; the default is no rows at all."""

    examples: int = 0
    """Rows scored."""
    tokens: int = 0
    """Labelled tokens."""
    nll: float = 0.0
    """Negative log-likelihood in nats, summed over the labelled tokens."""
    answered: int = 0
    """Rows for which an answer was generated."""
    exact: int = 0
    """Answers equal to the reference."""
    rouge: float = 0.0
    """ROUGE-L summed over answers."""

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(
            examples=self.examples + other.examples,
            tokens=self.tokens + other.tokens,
            nll=self.nll + other.nll,
            answered=self.answered + other.answered,
            exact=self.exact + other.exact,
            rouge=self.rouge + other.rouge,
        )

    def metrics(self, names: Sequence[MetricName]) -> dict[str, float]:
        """The named metrics, in the order of `names`; one that has nothing to be computed from is absent.

        loss: nats per labelled token. perplexity: exp(loss), infinite beyond the largest float. exact_match and
        rouge_l: means over generated answers.
        """
        values = {name: self._metric(name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def row(self, names: Sequence[MetricName]) -> dict[str, float]:
        """A client's entry in `events.Evaluated.clients`: examples, tokens, then its metrics."""
        return {"examples": self.examples, "tokens": self.tokens, **self.metrics(names)}

    def _metric(self, name: MetricName) -> float | None:
        match name:
            case "loss":
                return self.nll / self.tokens if self.tokens else None
            case "perplexity":
                return exponential(self.nll / self.tokens) if self.tokens else None
            case "exact_match":
                return self.exact / self.answered if self.answered else None
            case "rouge_l":
                return self.rouge / self.answered if self.answered else None


def exponential(x: float) -> float:
    """exp(x), infinite where it exceeds the largest float."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
