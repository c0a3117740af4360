"""Which numbers are trained: a LoRA adapter, one of the other kinds that peft has, or all of them."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

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
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Adapt only these of the model's blocks, counted from 0; null: all."
    )


class FullConfig(Strict):
    """Every parameter is trained, or all of some blocks."""

    kind: Literal["full"] = "full"
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="Train only the parameters of these of the model's blocks, counted from 0, and send no others; "
        "null: all of the model's.",
    )
    embeddings: bool = Field(
        False, description="With `layers`: train all outside the blocks too, that is embeddings, last norm and head."
    )


class DoraConfig(Strict):
    """DoRA: LoRA for directions, and a trained length for each output (Liu et al. 2024).

    https://arxiv.org/abs/2402.09353. Lengths begin at those of the base and travel as differences to them.
    """

    kind: Literal["dora"] = "dora"
    rank: int = Field(8, ge=1, description="Columns of B and rows of A.")
    alpha: float = Field(16.0, gt=0, description="The product B A is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of inputs set to zero in training.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).")
    targets: str | list[str] = Field("auto", description="As of lora.")


class Ia3Config(Strict):
    """(IA)^3: a trained factor for each key, value and inner number of the MLP (Liu et al. 2022).

    https://arxiv.org/abs/2205.05638.
    """

    kind: Literal["ia3"] = "ia3"
    targets: str | list[str] = Field(
        "auto",
        description="auto: what peft names for the architecture (usually keys, values and the MLP's second layer); "
        "all-linear: every linear layer but the head; or module names.",
    )
    feedforward: Literal["auto"] | list[str] = Field(
        "auto",
        description="Targets that are scaled at their input, all others are at their output. auto: what peft names.",
    )


class VeraConfig(Strict):
    """VeRA: frozen random factors that all layers share, and two trained vectors for each layer (Kopiczko et al. 2023).

    https://arxiv.org/abs/2310.11454. The factors are drawn from `seed` by everybody and never sent.
    """

    kind: Literal["vera"] = "vera"
    rank: int = Field(256, ge=1, description="Rows of the shared A; larger than LoRA's, since it costs no traffic.")
    start: float = Field(0.1, description="What the inner vector d begins at; the outer one, b, begins at 0.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of inputs set to zero in training.")
    targets: str | list[str] = Field("auto", description="As of lora.")


class PromptConfig(Strict):
    """Prompt tuning: trained vectors that stand before every text as tokens do (Lester et al. 2021).

    https://arxiv.org/abs/2104.08691.
    """

    kind: Literal["prompt"] = "prompt"
    tokens: int = Field(20, ge=1, description="Virtual tokens before every text; they take positions of the model.")
    start: Literal["random", "vocabulary", "text"] = Field(
        "random",
        description="random: numbers of size 1, as peft; vocabulary: token vectors of the base, drawn from the seed; "
        "text: those of `text`. The last two travel as differences to the base.",
    )
    text: str | None = Field(
        None, description="For start=text: its tokens, cut or repeated until there are as many as `tokens`."
    )

    @model_validator(mode="after")
    def _text_where_it_is_used(self) -> Self:
        if self.start == "text" and not (self.text or "").strip():
            raise ValueError('start=text needs a text to start from; set text, such as "Answer the question:"')
        if self.start != "text" and self.text is not None:
            raise ValueError(f"text is given, but start={self.start} does not look at it; use start=text, or drop it")
        return self


class PTuningConfig(Strict):
    """P-tuning: virtual tokens that a small trained network makes (Liu et al. 2021, https://arxiv.org/abs/2103.10385).

    The network is trained and sent; what is written at the end holds the tokens it made.
    """

    kind: Literal["p_tuning"] = "p_tuning"
    tokens: int = Field(20, ge=1, description="Virtual tokens before every text; they take positions of the model.")
    hidden: int | None = Field(
        None, ge=1, description="Width of the network's inner layers; null: as wide as the model's token vectors."
    )


class PrefixConfig(Strict):
    """Prefix tuning: trained keys and values before every text, in every layer (Li and Liang 2021).

    https://arxiv.org/abs/2101.00190.
    """

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(20, ge=1, description="Virtual tokens before every text; they take positions of the model.")
    start: Literal["random", "zero"] = Field("random", description="What keys and values begin at.")
    projection: bool = Field(
        False, description="Train a small network that makes them, as in the paper, in place of themselves."
    )
    hidden: int | None = Field(
        None, ge=1, description="Width of that network's inner layer; null: as wide as the model's token vectors."
    )

    @model_validator(mode="after")
    def _a_network_to_be_wide(self) -> Self:
        if self.hidden is not None and not self.projection:
            raise ValueError("hidden is given, but there is no network without projection; set projection=true")
        return self


class AdaLoraConfig(Strict):
    """AdaLoRA: P E Q with as many of E's numbers as a falling budget allows (Zhang et al. 2023).

    https://arxiv.org/abs/2303.10512. Every client would keep other directions, so nothing of it can be averaged: it is
    for clients that train alone (`algorithm: local`).
    """

    kind: Literal["adalora"] = "adalora"
    rank: int = Field(12, ge=1, description="Of every layer at the start.")
    target_rank: int = Field(8, ge=1, description="What is left at the end, as a mean over the layers.")
    alpha: float = Field(16.0, gt=0, description="The product is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of inputs set to zero in training.")
    steps: int = Field(description="Steps a client trains in all, which the budget's fall is planned for.", ge=1)
    warmup: int = Field(0, ge=0, description="First steps, before the budget falls.")
    final: int = Field(0, ge=0, description="Last steps, after it has fallen.")
    every: int = Field(1, ge=1, description="Steps between two decisions about what is left out.")
    beta1: float = Field(0.85, gt=0, lt=1, description="Memory of how much each number matters.")
    beta2: float = Field(0.85, gt=0, lt=1, description="Memory of how sure that is.")
    orthogonal: float = Field(0.5, ge=0, description="Weight of the pull of P and Q to orthogonality.")
    targets: str | list[str] = Field("auto", description="As of lora.")

    @model_validator(mode="after")
    def _a_budget_that_falls(self) -> Self:
        if self.target_rank >= self.rank:
            raise ValueError(f"target_rank={self.target_rank} is not below rank={self.rank}, so no rank could fall")
        if self.warmup + self.final >= self.steps:
            raise ValueError(
                f"warmup={self.warmup} and final={self.final} leave no step of {self.steps} in which ranks could fall; "
                "lower them, or raise steps"
            )
        return self


VirtualConfig: TypeAlias = PromptConfig | PTuningConfig | PrefixConfig
"""Kinds that put virtual tokens before every text."""
TargetConfig: TypeAlias = DoraConfig | Ia3Config | VeraConfig | AdaLoraConfig
"""Kinds that change what linear layers compute."""
OtherConfig: TypeAlias = VirtualConfig | TargetConfig
"""What peft has besides LoRA."""
AdapterConfig = Annotated[
    LoraConfig
    | FullConfig
    | DoraConfig
    | Ia3Config
    | VeraConfig
    | PromptConfig
    | PTuningConfig
    | PrefixConfig
    | AdaLoraConfig,
    Field(discriminator="kind"),
]


def virtual_tokens(config: AdapterConfig) -> int:
    """Positions of the model that stand before every text."""
    return config.tokens if isinstance(config, PromptConfig | PTuningConfig | PrefixConfig) else 0
