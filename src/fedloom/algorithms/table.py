"""Every algorithm: its settings' class, and how its page is made from the recipe's sections."""

from fedloom.aggregate.config import AggregateConfig
from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms.centralized import Centralized
from fedloom.algorithms.config import AlgorithmConfig, CentralizedConfig, FedAvgConfig, LocalOnlyConfig
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.local import LocalOnly
from fedloom.spaces.factors import Factors


def build(algorithm: AlgorithmConfig, aggregate: AggregateConfig) -> FedAvg | LocalOnly | Centralized:
    """The page the recipe names."""
    match algorithm:
        case FedAvgConfig():
            server = aggregate.server_optimizer
            return FedAvg(Factors(), ServerSgd(server.lr, server.momentum))
        case LocalOnlyConfig():
            return LocalOnly()
        case CentralizedConfig():
            return Centralized()
