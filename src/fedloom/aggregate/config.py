"""How replies become the next model."""

from typing import Literal

from pydantic import Field

from fedloom.settings import Strict


class ServerSgdConfig(Strict):
    """x moves along the mean update: v = momentum v + delta, x = x + lr v (FedAvgM, Hsu et al. 2019)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(1.0, gt=0, description="Server learning rate; 1 without momentum is FedAvg.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of the last update that is kept.")


class AggregateConfig(Strict):
    """Rule, space, weights and the server's optimiser."""

    rule: Literal["mean"] = Field("mean", description="How the replies of a round are combined.")
    space: Literal["factors"] = Field(
        "factors", description="What is averaged. factors: the trained numbers themselves (FedIT for LoRA)."
    )
    weighting: Literal["examples", "dataset", "uniform"] = Field(
        "examples", description="A client's weight: examples seen this round, rows held, or 1."
    )
    server_optimizer: ServerSgdConfig = ServerSgdConfig()
