"""Which numbers are trained: a LoRA adapter, or all of them."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.settings import Strict


class RanksConfig(Strict):
    """Clients of different ranks, drawn by the mixtures of FlexLoRA (Bai et al. 2024): four types of clients.

    small everywhere; large everywhere; medium in attention and large elsewhere; medium everywhere.
    """

    name: Literal["homogeneous", "uniform", "heavy_tail", "heavy_tail_strong", "normal"] = Field(
        "homogeneous",
        description="homogeneous: adapter.rank for all. Shares of the four types: uniform 25/25/25/25 %, heavy_tail "
        "80/10/5/5 % (mostly small), heavy_tail_strong 5/80/10/5 % (mostly large), normal 5.75/44.25/44.25/5.75 %.",
    )
    small: int = Field(8, ge=1, description="Rank of the small type.")
    medium: int = Field(30, ge=1, description="Rank of the medium types.")
    large: int = Field(200, ge=1, description="Rank of the large types.")
    attention: list[str] = Field(
        ["*attn*", "*attention*"], description="Shell patterns of the modules that count as attention."
    )


class LoraConfig(Strict):
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Columns of B and rows of A.")
    alpha: float = Field(16.0, gt=0, description="The product B A is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of inputs to A set to zero in training.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).")
    scale: Literal["rank", "shared"] = Field(
        "rank", description="r in alpha / r where ranks differ: each client's own, or adapter.rank for everybody."
    )
    ranks: RanksConfig = Field(RanksConfig(), description="Ranks of the clients; `clients.NAME.rank` goes before it.")
    freeze: Literal["none", "A"] = Field(
        "none", description="A: the first factor stays at its random start; only B is trained and sent (FFA-LoRA)."
    )
    sparse: float | None = Field(
        None, gt=0, le=1, description="Density of a sparse update of each layer beside its factors (for SLoRA)."
    )
    targets: str | list[str] = Field(
        "auto",
        description="auto: what peft names for the architecture (usually the attention projections), and the same for "
        "DistilBERT and some more encoders; all-linear: every linear layer but the head; or module names.",
    )


class FullConfig(Strict):
    """Every parameter is trained."""

    kind: Literal["full"] = "full"


AdapterConfig = Annotated[LoraConfig | FullConfig, Field(discriminator="kind")]
