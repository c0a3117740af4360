"""Which numbers are trained: a LoRA adapter, or all of them."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.settings import Strict


class LoraConfig(Strict):
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Columns of B and rows of A.")
    alpha: float = Field(16.0, gt=0, description="The product B A is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of inputs to A set to zero in training.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).")
    targets: str | list[str] = Field(
        "auto",
        description="auto: what peft names for the architecture (usually the attention projections); "
        "all-linear: every linear layer but the head; or module names.",
    )


class FullConfig(Strict):
    """Every parameter is trained."""

    kind: Literal["full"] = "full"


AdapterConfig = Annotated[LoraConfig | FullConfig, Field(discriminator="kind")]
