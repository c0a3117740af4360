"""The settings of each algorithm page; one class per row of `fedloom.algorithms.table`."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.settings import Strict


class FedAvgConfig(Strict):
    """Federated averaging (McMahan et al. 2017); server momentum makes it FedAvgM."""

    name: Literal["fedavg"] = "fedavg"


class LocalOnlyConfig(Strict):
    """Baseline: every client trains alone, nothing is shared."""

    name: Literal["local"] = "local"


class CentralizedConfig(Strict):
    """Baseline: all rows in one place, as many examples a round as the cohort would see together."""

    name: Literal["centralized"] = "centralized"


AlgorithmConfig = Annotated[FedAvgConfig | LocalOnlyConfig | CentralizedConfig, Field(discriminator="name")]
