"""Natural instructions: how much of the reference an answer shares.

Source: Wang et al. 2022, https://arxiv.org/abs/2204.07705: the prompt is theirs with the definition alone. ROUGE-L is
fedloom's own (`fedloom.metrics.text`, without stemming), the number that training reports too.
"""

from collections.abc import Mapping, Sequence

from fedloom.metrics.text import rouge_l


def process_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """What one answer counts for."""
    return {"rouge_l": rouge_l(results[0], doc["targets"])}
