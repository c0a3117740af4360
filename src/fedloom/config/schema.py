"""The whole configuration of a run, joined from the sections that stand beside their components."""

from typing import Annotated

from pydantic import Field

from fedloom.adapters.config import AdapterConfig, LoraConfig
from fedloom.aggregate.config import AggregateConfig
from fedloom.algorithms.config import AlgorithmConfig, FedAvgConfig
from fedloom.channel.config import ChannelConfig
from fedloom.data.config import CategoryConfig, DataConfig, PartitionConfig
from fedloom.engine.config import EngineConfig, LocalConfig
from fedloom.metrics.config import EvaluateConfig
from fedloom.models.config import ModelConfig
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
