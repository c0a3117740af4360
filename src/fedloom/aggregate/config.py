"""How replies become the next model."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedloom.settings import Strict

# -- the server's optimiser ------------------------------------------------------------------------------------------


class ServerSgdConfig(Strict):
    """x follows the mean update: v = momentum v + delta, x = x + lr v (FedAvgM, Hsu et al. 2019)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(1.0, gt=0, description="Server learning rate; 1 without momentum is FedAvg.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of the last update that is kept.")
    nesterov: bool = Field(False, description="Look ahead along the momentum (DiLoCo's outer step).")


class Adaptive(Strict):
    """What the adaptive server optimisers share (Reddi et al. 2021)."""

    lr: float = Field(1e-3, gt=0, description="Server learning rate: about how far each number moves in a round.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Memory of the second moment.")
    tau: float = Field(1e-3, gt=0, description="Added to the root of the second moment.")
    v0: float | None = Field(None, ge=0, description="Second moment before the first round; null: tau^2, as printed.")
    form: Literal["final", "early", "openfedllm", "flower"] = Field(
        "final",
        description="final: the published form. early: the first preprint's. openfedllm, flower: what those systems "
        "compute, to compare with them.",
    )


class AdagradConfig(Adaptive):
    """FedAdagrad (Reddi et al. 2021): the second moment only grows."""

    name: Literal["adagrad"] = "adagrad"
    beta1: float = Field(0.0, ge=0, lt=1, description="Memory of the first moment.")


class YogiConfig(Adaptive):
    """FedYogi (Reddi et al. 2021): the second moment follows slowly, by sign."""

    name: Literal["yogi"] = "yogi"
    beta1: float = Field(0.9, ge=0, lt=1, description="Memory of the first moment.")


class AdamConfig(Adaptive):
    """FedAdam (Reddi et al. 2021): the second moment is a moving average."""

    name: Literal["adam"] = "adam"
    beta1: float = Field(0.9, ge=0, lt=1, description="Memory of the first moment.")


ServerOptimizerConfig = Annotated[
    ServerSgdConfig | AdagradConfig | YogiConfig | AdamConfig, Field(discriminator="name")
]

# -- rules -----------------------------------------------------------------------------------------------------------


class Rule(Strict):
    """What rules say of themselves."""

    coordinates: ClassVar[bool] = False
    """It works number by number, so it needs space=factors."""


class MeanConfig(Rule):
    """Weighted mean of the replies."""

    name: Literal["mean"] = "mean"


class MedianConfig(Rule):
    """Median of each number (Yin et al. 2018)."""

    coordinates: ClassVar[bool] = True
    name: Literal["median"] = "median"


class TrimmedMeanConfig(Rule):
    """Mean of each number without the largest and the smallest (Yin et al. 2018)."""

    coordinates: ClassVar[bool] = True
    name: Literal["trimmed_mean"] = "trimmed_mean"
    share: float = Field(0.2, ge=0, lt=0.5, description="Share of the replies cut at each end.")


class KrumConfig(Rule):
    """The one reply that has the nearest neighbours (Blanchard et al. 2017)."""

    name: Literal["krum"] = "krum"
    f: int = Field(1, ge=0, description="Malicious replies it must stand; 2 f + 3 replies are needed.")


class MultiKrumConfig(Rule):
    """Mean of the m best replies by Krum's score (Blanchard et al. 2017)."""

    name: Literal["multi_krum"] = "multi_krum"
    f: int = Field(1, ge=0, description="Malicious replies it must stand; 2 f + 3 replies are needed.")
    m: int = Field(2, ge=1, description="Replies averaged; at most n - f - 2 of n are sure.")


class BulyanConfig(Rule):
    """Krum again and again, then a trimmed mean around the median (El Mhamdi et al. 2018)."""

    coordinates: ClassVar[bool] = True
    name: Literal["bulyan"] = "bulyan"
    f: int = Field(1, ge=0, description="Malicious replies it must stand; 4 f + 3 replies are needed.")


class NormBoundConfig(Rule):
    """Mean of updates cut to a largest norm (Sun et al. 2019)."""

    name: Literal["norm_bound"] = "norm_bound"
    limit: float = Field(1.0, gt=0, description="Largest norm of a client's update.")


class GeometricMedianConfig(Rule):
    """The point with the smallest sum of distances, by smoothed Weiszfeld steps (RFA, Pillutla et al. 2022)."""

    name: Literal["geometric_median"] = "geometric_median"
    nu: float = Field(1e-5, gt=0, description="Smallest distance that is divided by.")
    iterations: int = Field(4, ge=1, description="Weiszfeld steps; the paper takes a few.")


RuleConfig = Annotated[
    MeanConfig
    | MedianConfig
    | TrimmedMeanConfig
    | KrumConfig
    | MultiKrumConfig
    | BulyanConfig
    | NormBoundConfig
    | GeometricMedianConfig,
    Field(discriminator="name"),
]

# -- spaces ----------------------------------------------------------------------------------------------------------


class Space(Strict):
    """What spaces say of themselves."""

    mixed: ClassVar[bool] = False
    """Clients may have different ranks."""
    lora: ClassVar[bool] = True
    """It looks inside LoRA pairs."""
    linear: ClassVar[bool] = False
    """Its terms are vectors of the trained numbers, so server optimisers and rules may work number by number."""
    steady: ClassVar[bool] = False
    """A reply holds the same numbers in every round: no turns, no new basis. What an encoding lost of one reply may be
    added to the next."""


class FactorsConfig(Space):
    """The trained numbers themselves, A and B apart (FedIT for LoRA, Zhang et al. 2023)."""

    lora: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    steady: ClassVar[bool] = True
    name: Literal["factors"] = "factors"


class TurnsConfig(Space):
    """B in one round, A in the next, only one of them sent (RoLoRA, Chen et al. 2025)."""

    linear: ClassVar[bool] = True
    name: Literal["turns"] = "turns"
    first: Literal["A", "B"] = Field("B", description="What the first round trains; with A it would stand still.")
    alternate: bool = Field(True, description="false: the first factor in every round.")


class ProductsConfig(Space):
    """Products B A, then the best factors of each client's rank (FlexLoRA, Bai et al. 2024)."""

    mixed: ClassVar[bool] = True
    name: Literal["products"] = "products"


class SlicesConfig(Space):
    """Products, averaged rank by rank over those who hold that rank (raFLoRA)."""

    mixed: ClassVar[bool] = True
    name: Literal["slices"] = "slices"
    empty: Literal["keep", "zero"] = Field("keep", description="What becomes of ranks nobody sent.")


class StackedConfig(Space):
    """Stacked factors are carried on top of the base, adapters start anew (FLoRA, Wang et al. 2024)."""

    mixed: ClassVar[bool] = True
    name: Literal["stacked"] = "stacked"


class ResidualConfig(Space):
    """Factors are averaged and what that misses is carried on top of the base (FedEx-LoRA, Singhal et al. 2025)."""

    name: Literal["residual"] = "residual"


class RefactoredConfig(Space):
    """B is averaged, then B A is split anew into orthonormal A and B (FedSVD, 2025)."""

    name: Literal["refactored"] = "refactored"


class SparseConfig(Space):
    """Sparse updates first, then LoRA from their SVD (SLoRA, Babakniya et al. 2023)."""

    name: Literal["sparse"] = "sparse"
    rounds: int = Field(5, ge=1, description="Rounds of the sparse stage.")
    residual: Literal["drop", "carry"] = Field(
        "drop", description="What the SVD cannot hold: dropped, or carried on top of the base."
    )


SpaceConfig = Annotated[
    FactorsConfig
    | TurnsConfig
    | ProductsConfig
    | SlicesConfig
    | StackedConfig
    | ResidualConfig
    | RefactoredConfig
    | SparseConfig,
    Field(discriminator="name"),
]


class AggregateConfig(Strict):
    """Rule, space, weights and the server's optimiser."""

    rule: RuleConfig = MeanConfig()
    space: SpaceConfig = FactorsConfig()
    weighting: Literal["examples", "dataset", "uniform"] = Field(
        "dataset", description="A client's weight: examples seen this round, training rows held, or 1."
    )
    server_optimizer: ServerOptimizerConfig = ServerSgdConfig()
