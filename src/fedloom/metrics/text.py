"""How well a generated answer matches the reference text.

Source: Lin 2004, ROUGE: a package for automatic evaluation of summaries, https://aclanthology.org/W04-1013;
computed by the `rouge_score` library (Google Research).
"""

import functools
from typing import Protocol, cast


class _Score(Protocol):
    fmeasure: float


class _Scorer(Protocol):
    def score(self, target: str, prediction: str) -> dict[str, _Score]: ...


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both texts are the same once white space at their ends is stripped; case and inner space count."""
    return prediction.strip() == reference.strip()


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0..1.

    The library's words: lower-cased runs of a-z and 0-9, no stemming. Other characters separate words, so a text
    without any such word (empty, only signs, another script) scores 0, even against itself.
    """
    return float(_scorer().score(reference, prediction)["rougeL"].fmeasure)


@functools.cache
def _scorer() -> _Scorer:
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, and not needed unless rouge_l is asked for

    return cast(_Scorer, RougeScorer(["rougeL"], use_stemmer=False))
