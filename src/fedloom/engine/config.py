"""Local training and the engine that does it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedloom.settings import Strict


class ConstantConfig(Strict):
    """The same learning rate in every round."""

    name: Literal["constant"] = "constant"


class CosineConfig(Strict):
    """Half a cosine from lr down to floor * lr over the rounds."""

    name: Literal["cosine"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1, description="Last round's rate as a share of lr.")


class LinearConfig(Strict):
    """A straight line from lr down to floor * lr over the rounds."""

    name: Literal["linear"] = "linear"
    floor: float = Field(0.0, ge=0, le=1, description="Last round's rate as a share of lr.")


class StepConfig(Strict):
    """lr is multiplied by gamma after every `every` rounds."""

    name: Literal["step"] = "step"
    every: int = Field(10, ge=1, description="Rounds between reductions.")
    gamma: float = Field(0.5, gt=0, le=1, description="Factor of each reduction.")


ScheduleConfig = Annotated[ConstantConfig | CosineConfig | LinearConfig | StepConfig, Field(discriminator="name")]


class OptimizerConfig(Strict):
    """A torch optimiser by class name, made anew for every client and round."""

    name: str = Field("adamw", description="Any class of torch.optim, any case: adamw, sgd, adagrad, rmsprop, ...")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay as the optimiser defines it.")
    args: dict[str, Any] = Field({}, description="Further arguments of the class: betas, momentum, eps, ...")


class LocalConfig(Strict):
    """What one client does in one round."""

    steps: int | None = Field(None, ge=1, description="Optimiser steps; 10 when neither steps nor epochs is given.")
    epochs: float | None = Field(None, gt=0, description="Passes over the client's rows, in place of steps.")
    batch_size: int = Field(8, ge=1, description="Examples of one step, all accumulated parts together.")
    accumulate: int = Field(1, ge=1, description="Forward passes one step is split into.")
    optimizer: OptimizerConfig = OptimizerConfig()
    lr: float = Field(1e-3, gt=0, description="Learning rate of the first round.")
    schedule: ScheduleConfig = ConstantConfig()
    warmup: int = Field(0, ge=0, description="Steps at the start of each local training with linearly rising rate.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Larger gradients are scaled down to it; null: off.")
    group_by_length: bool = Field(False, description="Batches of similar lengths: less padding, other batches.")

    @model_validator(mode="before")
    @classmethod
    def _ten_steps(cls, data: Any) -> Any:
        """Ten steps unless the user says how long."""
        if isinstance(data, dict) and data.get("steps") is None and data.get("epochs") is None:
            return {**data, "steps": 10}
        return data

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        """Not both; looked at after the fields, so that it hides none of their mistakes."""
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; keep one and leave the other out")
        return self


class EngineConfig(Strict):
    """Who does the mathematics of local training, and how much of it at a time."""

    name: Literal["auto", "reference", "slots"] = Field(
        "auto",
        description="slots: clients side by side in one forward pass. reference: one after the other, any model. auto: "
        "slots where a check at the start finds the same gradients; the log says which and why.",
    )
    slots: int | None = Field(
        None, ge=1, description="Clients trained side by side, 16 bytes per trained number each; null: 8."
    )
    tokens_per_step: int | None = Field(
        None,
        ge=1,
        description="Most tokens of one forward pass, which bounds its memory; a single client's larger batch goes by "
        "itself. null: 1024 on a CPU, on a GPU 8192 (2048 for bases of 3 billion parameters and more).",
    )
    threads: int = Field(1, ge=1, description="Intra-op threads of torch. 1 is needed for equal bits.")
