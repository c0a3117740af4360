"""The whole configuration of a run, joined from the sections that stand beside their components."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedloom.adapters.config import AdapterConfig, LoraConfig
from fedloom.aggregate.config import AggregateConfig
from fedloom.algorithms.config import AlgorithmConfig, FedAvgConfig
from fedloom.channel.config import ChannelConfig
from fedloom.data.config import CategoryConfig, DataConfig, PartitionConfig
from fedloom.engine.config import EngineConfig, LocalConfig
from fedloom.metrics.config import OWN, EvaluateConfig
from fedloom.models.config import ModelConfig
from fedloom.models.offsite_config import OffsiteConfig
from fedloom.objectives.config import ObjectiveConfig, SftConfig
from fedloom.runtime.attack_config import AttackConfig, NoAttackConfig
from fedloom.runtime.config import CheckpointConfig, ClientOverride, FederationConfig, RunConfig, RuntimeConfig
from fedloom.runtime.deploy_config import DeployConfig
from fedloom.settings import Strict


class Config(Strict):
    """A run, complete: the same configuration and seed give the same weights."""

    run: RunConfig = RunConfig()
    seed: Annotated[int, Field(ge=0, description="Root of every random number.")] = 0
    model: ModelConfig = ModelConfig()
    offsite: OffsiteConfig | None = Field(
        None,
        description="The model stays with its owner, and clients tune its ends beside an emulator; null: no.",
    )
    adapter: AdapterConfig = LoraConfig()
    data: DataConfig = DataConfig()
    partition: PartitionConfig = CategoryConfig()
    clients: dict[str, ClientOverride] = Field(
        {}, description="By client name, number or range (`0-4`): settings that differ from `local`."
    )
    objective: ObjectiveConfig = SftConfig()
    algorithm: AlgorithmConfig = FedAvgConfig()
    aggregate: AggregateConfig = AggregateConfig()
    local: LocalConfig = LocalConfig()
    federation: FederationConfig = FederationConfig()
    channel: ChannelConfig = ChannelConfig()
    attack: AttackConfig = NoAttackConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    engine: EngineConfig = EngineConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    deploy: DeployConfig = DeployConfig()

    @model_validator(mode="after")
    def _metrics_of_the_objective(self) -> Self:
        """Nothing stays open: where no metrics are named, they are the objective's own from here on."""
        if self.evaluate.metrics is None:
            metrics = list(OWN[self.objective.rows])
            # frozen for users; nobody has seen this object yet
            object.__setattr__(self, "evaluate", self.evaluate.model_copy(update={"metrics": metrics}))
        return self
