"""Rounds, cohorts, the place where clients run, and what is kept on disk."""

from typing import Annotated, Literal

from pydantic import Field

from fedloom.runtime.sampling_config import SamplingConfig, SomeClients, UniformConfig
from fedloom.settings import Strict


class FederationConfig(Strict):
    """How many rounds, and who takes part."""

    rounds: int = Field(10, ge=1, description="Rounds of the whole run.")
    cohort: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^(100|[1-9]?\d(\.\d+)?)%$")] = Field(
        "100%", description="Clients asked in a round: a number or a share such as 10%."
    )
    sampling: SamplingConfig = UniformConfig()
    holdout: SomeClients = Field(
        0, description="Clients that never train but are evaluated: a number, a share, or a list of names and ranges."
    )
    min_replies: int = Field(1, ge=1, description="A round with fewer replies is tried again with a new cohort.")
    retries: int = Field(3, ge=0, description="How often it is tried again before the run stops, resumable.")


class RuntimeConfig(Strict):
    """Where clients run."""

    name: Literal["simulation", "loopback"] = Field(
        "simulation", description="simulation: in this process. loopback: in a second process, over bytes."
    )
    window: int = Field(64, ge=1, description="Clients begun and not yet counted; bounds memory, not the cohort.")
    workers: int = Field(1, ge=1, description="Processes on this machine that share the clients; the same bits.")
    reduce: Literal["replies", "sums"] = Field(
        "replies",
        description="Between processes. replies: all see all, the same bits for any number. sums: less is sent and "
        "held; equal to rounding.",
    )
    timeout: float = Field(1800, gt=0, description="Seconds a process waits for another before the run stops.")


class CheckpointConfig(Strict):
    """Resumable checkpoints."""

    every: int = Field(1, ge=1, description="Rounds between checkpoints; the last round always has one.")
    keep: int = Field(2, ge=1, description="How many are kept.")


class RunConfig(Strict):
    """The run's name and place."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="Part of the run folder's name.")
    folder: str = Field("runs", description="Where run folders are made.")


class ClientOverride(Strict):
    """Settings of single clients that differ from `local`."""

    steps: int | None = Field(None, ge=1, description="In place of `local.steps`; null: the same.")
    epochs: float | None = Field(None, gt=0, description="In place of `local.epochs`; null: the same.")
    batch_size: int | None = Field(None, ge=1, description="In place of `local.batch_size`; null: the same.")
    lr: float | None = Field(None, gt=0, description="In place of `local.lr`; null: the same.")
    speed: float = Field(1.0, gt=0, description="Relative speed in simulated time (fedbuff).")
    rank: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None, description="LoRA rank, or ranks by module name or shell pattern; null: as `adapter` says."
    )
