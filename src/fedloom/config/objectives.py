"""Which metrics, attacks and settings go with which objective.

Settings without effect are refused: nobody should believe in a margin that is never looked at.
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

from fedloom.config.schema import Config
from fedloom.metrics.config import FITTING
from fedloom.objectives.config import ClassifyConfig, DpoConfig, KtoConfig, SftConfig

Said: TypeAlias = Iterator[tuple[str, ...]]
"""(what is wrong, the key it is said of, further keys it depends on)."""

_HEEDED: Final = {
    "beta": ("sigmoid", "robust", "ipo", "hinge", "simpo"),
    "label_smoothing": ("sigmoid", "robust"),
    "lam": ("orpo", "slic"),
    "gamma": ("simpo", "slic"),
    "length_normalized": ("ipo",),
    "reference": ("sigmoid", "robust", "ipo", "hinge"),
}
"""Which losses look at a setting of `dpo`."""


def metrics_fit(config: Config) -> Said:
    """An objective gives what it can be measured by."""
    objective = config.objective
    fitting = FITTING[objective.rows]
    strange = [name for name in config.evaluate.measured if name not in fitting]
    if strange:
        text = f"names {', '.join(strange)}, but objective {objective.name} gives {', '.join(fitting)}. Choose of those"
        yield f"{text}, or leave evaluate.metrics out.", "evaluate.metrics", "objective"


def forgetting_needs_answers(config: Config) -> Said:
    """The embedded model's own skills are questions with an answer to write."""
    if config.evaluate.forgetting and not isinstance(config.objective, SftConfig):
        text = f"is true, but it scores answers to questions, and objective {config.objective.name} learns from "
        yield f"{text}rows of another kind. Set it to false.", "evaluate.forgetting", "objective"


def flipped_labels(config: Config) -> Said:
    """Answers of other rows are wrong answers and wrong classes, but no preference."""
    if config.attack.name == "label_flip" and config.objective.rows in ("pairs", "judged"):
        text = f"is label_flip, which gives rows each other's answers, but objective {config.objective.name} learns "
        yield f"{text}which answers are better. Use sign_flip, scaled or gaussian.", "attack", "objective"


def learned_tokens(config: Config) -> Said:
    """Prompts can be learned too, but no objective on answers that are compared does so."""
    if config.data.loss_on == "all" and not isinstance(config.objective, SftConfig):
        text = f"is all, but objective {config.objective.name} learns no prompts. Leave it out, or use objective=sft."
        yield text, "data.loss_on", "objective"


def label_map(config: Config) -> Said:
    """Two classes at least, each once."""
    labels = config.objective.labels if isinstance(config.objective, ClassifyConfig) else None
    if labels is None:
        return
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        yield f"names {', '.join(map(repr, twice))} more than once. Name every class once.", "objective.labels"
    elif len(labels) < 2:
        text = f"is {labels}, but telling classes apart takes two at least. Name all, or leave it out to have those of "
        yield f"{text}the data.", "objective.labels"
    if not all(label.strip() for label in labels):
        yield "names an empty class. Name every class as it stands in the data.", "objective.labels"


def settings_of_losses(config: Config) -> Said:
    """A setting that the chosen loss never looks at."""
    objective = config.objective
    if not isinstance(objective, DpoConfig):
        return
    for name, losses in _HEEDED.items():
        value = getattr(objective, name)
        if value != DpoConfig.model_fields[name].default and objective.loss not in losses:
            shown = str(value).lower() if isinstance(value, bool) else value
            text = f"is {shown}, but objective.loss={objective.loss} does not look at it. Leave it out, or use "
            yield f"{text}loss {' or '.join(losses)}.", f"objective.{name}", "objective.loss"


def reference_that_stays(config: Config) -> Said:
    """Where a round's training begins must be one point."""
    objective, algorithm = config.objective, config.algorithm
    if not isinstance(objective, DpoConfig | KtoConfig) or objective.reference == "base":
        return
    if algorithm.descents == "several":
        text = f"is start, but {algorithm.name} trains several times in a round, each time from another point. "
        yield f"{text}Use base.", "objective.reference", "algorithm"


def room_for_answers(config: Config) -> Said:
    """Prompt and answer share data.max_length."""
    objective, longest = config.objective, config.data.max_length
    if isinstance(objective, DpoConfig | KtoConfig):
        prompt = objective.max_prompt_length
        if prompt is not None and prompt >= longest:
            text = f"is {prompt}, but data.max_length={longest} is for prompt and answer together. Use less."
            yield text, "objective.max_prompt_length", "data.max_length"


OBJECTIVES: Final = (
    metrics_fit,
    forgetting_needs_answers,
    flipped_labels,
    learned_tokens,
    label_map,
    settings_of_losses,
    reference_that_stays,
    room_for_answers,
)
