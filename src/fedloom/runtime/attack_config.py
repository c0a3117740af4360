"""Simulated clients that do harm, to see what a rule withstands."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.runtime.sampling_config import SomeClients
from fedloom.settings import Strict

_WHO = (
    "Attackers: a number or a share such as 20%, drawn from the seed; or a list of names, numbers and ranges (`0-4`)."
)


class NoAttackConfig(Strict):
    """Every client is honest."""

    name: Literal["none"] = "none"


class SignFlipConfig(Strict):
    """The update is turned round: y = x - scale (y - x) (Li et al. 2019, arXiv 1811.03761)."""

    name: Literal["sign_flip"] = "sign_flip"
    clients: SomeClients = Field("20%", description=_WHO)
    scale: float = Field(1.0, gt=0, description="How far it goes the wrong way, as a multiple of the honest update.")


class GaussianConfig(Strict):
    """The update is noise: y = x + std N(0, I) (Blanchard et al. 2017, arXiv 1703.02757)."""

    name: Literal["gaussian"] = "gaussian"
    clients: SomeClients = Field("20%", description=_WHO)
    std: float = Field(0.1, gt=0, description="Standard deviation of every trained number.")


class ScaledConfig(Strict):
    """The update is made larger: y = x + factor (y - x) (Bagdasaryan et al. 2020, arXiv 1807.00459)."""

    name: Literal["scaled"] = "scaled"
    clients: SomeClients = Field("20%", description=_WHO)
    factor: float = Field(10.0, gt=0, description="How many times the honest update.")


class LabelFlipConfig(Strict):
    """Honest training on wrong answers: those of the client's other rows (Tolpegin et al. 2020, arXiv 2007.08432)."""

    name: Literal["label_flip"] = "label_flip"
    clients: SomeClients = Field("20%", description=_WHO)


AttackConfig = Annotated[
    NoAttackConfig | SignFlipConfig | GaussianConfig | ScaledConfig | LabelFlipConfig, Field(discriminator="name")
]
