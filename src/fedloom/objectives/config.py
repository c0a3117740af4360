"""Which loss is minimised."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from fedloom.data.rows import Kind
from fedloom.settings import Strict


class SftConfig(Strict):
    """Supervised fine-tuning: cross-entropy of the answer's tokens given the prompt."""

    rows: ClassVar[Kind] = "answers"
    name: Literal["sft"] = "sft"


class ClassifyConfig(Strict):
    """Sequence classification: cross-entropy of a row's class, from a head on the pooled text."""

    rows: ClassVar[Kind] = "labels"
    name: Literal["classify"] = "classify"
    labels: list[str] | None = Field(
        None,
        description="The classes, in the order of the head's outputs; null: those of the data, sorted (in a "
        "deployment nobody sees all data, so they must be named).",
    )
    pooling: Literal["auto", "cls", "mean", "last"] = Field(
        "auto",
        description="What stands for a text: its first token (through the model's own pooler, where it has one), the "
        "mean of all, or the last. auto: last for decoders, mean for encoders.",
    )
    head: Literal["linear", "mlp"] = Field("linear", description="mlp: a dense layer with tanh before the last one.")

    @field_validator("labels", mode="before")
    @classmethod
    def _numbers_are_names(cls, given: Any) -> Any:
        """Data often calls its classes 0 and 1; rows hold them as text."""
        if not isinstance(given, list):
            return given
        return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in given]


class DpoConfig(Strict):
    """Preference tuning on pairs of answers (DPO, Rafailov et al. 2023, arXiv 2305.18290) and its relatives."""

    rows: ClassVar[Kind] = "pairs"
    name: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "robust", "ipo", "hinge", "slic", "orpo", "simpo"] = Field(
        "sigmoid",
        description="sigmoid: DPO (with label_smoothing: cDPO); robust: Chowdhury et al. 2024; ipo: Azar et al. 2024; "
        "hinge: Zhao et al. 2023 on DPO's margin; slic, orpo (Hong et al. 2024), simpo (Meng et al. 2024) need no "
        "reference.",
    )
    beta: float = Field(
        0.1, gt=0, description="Strength of the pull towards the reference; simpo: scale of the reward."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of pairs believed to be swapped (sigmoid, robust)."
    )
    reference: Literal["base", "start"] = Field(
        "base", description="What answers are compared with: the base without adapter, or where each round started."
    )
    lam: float = Field(
        0.1, ge=0, description="orpo: weight of the odds ratio; slic: weight of the chosen answer's likelihood."
    )
    gamma: float = Field(0.5, ge=0, description="simpo: target margin as a share of beta; slic: the margin itself.")
    length_normalized: bool = Field(
        False, description="ipo: log-likelihoods are means over tokens (as TRL has it) instead of sums (the paper)."
    )
    max_prompt_length: int | None = Field(
        None, ge=1, description="Tokens of the prompt; longer ones lose their beginning. null: data.max_length only."
    )


class KtoConfig(Strict):
    """KTO: single answers judged good or bad (Ethayarajh et al. 2024, arXiv 2402.01306)."""

    rows: ClassVar[Kind] = "judged"
    name: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="Strength of the pull towards the reference.")
    desirable: float = Field(1.0, gt=0, description="Weight of good answers.")
    undesirable: float = Field(1.0, gt=0, description="Weight of bad answers.")
    reference: Literal["base", "start"] = Field(
        "base", description="What answers are compared with: the base without adapter, or where each round started."
    )
    max_prompt_length: int | None = Field(
        None, ge=1, description="Tokens of the prompt; longer ones lose their beginning. null: data.max_length only."
    )


ObjectiveConfig = Annotated[SftConfig | ClassifyConfig | DpoConfig | KtoConfig, Field(discriminator="name")]
