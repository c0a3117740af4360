"""What is measured while training, on whom, and what is done about it."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from fedloom.data.rows import Kind
from fedloom.settings import Strict

MetricName = Literal[
    "loss",
    "perplexity",
    "exact_match",
    "rouge_l",
    "accuracy",
    "f1",
    "f1_weighted",
    "f1_micro",
    "matthews",
    "preference_accuracy",
    "margin",
    "reward_chosen",
    "reward_rejected",
]
FITTING: Final[Mapping[Kind, tuple[MetricName, ...]]] = {
    "answers": ("loss", "perplexity", "exact_match", "rouge_l"),
    "labels": ("loss", "accuracy", "f1", "f1_weighted", "f1_micro", "matthews"),
    "pairs": (
        "loss",
        "preference_accuracy",
        "margin",
        "reward_chosen",
        "reward_rejected",
        "exact_match",
        "rouge_l",
    ),
    "judged": ("loss", "margin", "reward_chosen", "reward_rejected"),
}
"""What can be measured where this is learned; the reference of a pair's answers is the better one."""
OWN: Final[Mapping[Kind, tuple[MetricName, ...]]] = {
    "answers": ("loss", "perplexity", "exact_match"),
    "labels": ("loss", "accuracy", "f1", "matthews"),
    "pairs": ("loss", "preference_accuracy", "margin"),
    "judged": ("loss", "margin", "reward_chosen", "reward_rejected"),
}
"""What is measured there unless a recipe says otherwise."""


class EarlyStopConfig(Strict):
    """Stop when a metric no longer improves."""

    metric: str = Field("loss", description="A column of metrics.csv.")
    patience: int = Field(5, ge=1, description="Evaluations without improvement before the run stops.")
    min_delta: float = Field(0.0, ge=0, description="Smaller improvements do not count.")


class EvaluateConfig(Strict):
    """Evaluation at round 0, every `every` rounds, and at the end."""

    every: int = Field(1, ge=0, description="Rounds between evaluations; 0: only before the first and after the last.")
    split: Literal["test", "validation"] = Field("test", description="Which part of each client's rows is scored.")
    clients: Literal["all", "cohort"] | Annotated[int, Field(ge=1)] = Field(
        "all",
        description="Whose rows: all, those of the round's cohort, or so many drawn from the seed, always the same.",
    )
    metrics: list[MetricName] | None = Field(
        None,
        description="Scores; exact_match and rouge_l generate answers. null: the objective's own (sft: loss, "
        "perplexity, exact_match; classify: loss, accuracy, f1, matthews; dpo: loss, preference_accuracy, margin; kto: "
        "loss, margin, reward_chosen, reward_rejected).",
    )
    rows_per_client: int | None = Field(None, ge=1, description="Score at most so many rows of each client.")
    max_new_tokens: int = Field(64, ge=1, description="Longest generated answer.")
    batch_size: int = Field(64, ge=1, description="Examples in one forward pass of an evaluation.")
    global_source: str | None = Field(
        None, description="A further source, no client's, scored as split `global` (same columns and template)."
    )
    forgetting: bool = Field(
        False, description="Score skills of the embedded model that are not tuned, as split `global` (playground only)."
    )
    best: str = Field("loss", description="Metric whose best round is kept as checkpoints/best.")
    early_stop: EarlyStopConfig | None = None

    @property
    def measured(self) -> tuple[MetricName, ...]:
        """The metrics, which a whole configuration has settled.

        Raises:
            ValueError: they are the objective's own, and this section knows no objective.
        """
        if self.metrics is None:
            raise ValueError("evaluate.metrics is settled by a whole configuration; take the section from one")
        return tuple(self.metrics)
