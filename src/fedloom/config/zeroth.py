"""What algorithms without gradients ask of other sections, and what means nothing beside them."""

from collections.abc import Iterator
from typing import Final, TypeAlias

from fedloom.aggregate.config import RefactoredConfig, ServerSgdConfig, SparseConfig, TurnsConfig
from fedloom.algorithms.config import DeComFlConfig, FedKSeedConfig, FedMezoConfig, ZerothSettings
from fedloom.config.schema import Config
from fedloom.engine.config import LocalConfig, OptimizerConfig
from fedloom.engine.schedule import round_rate

Said: TypeAlias = Iterator[tuple[str, ...]]
"""(what is wrong, the key it is said of, further keys it depends on)."""


def tensors_that_rest(config: Config) -> Said:
    """A random direction leads through all trained numbers at once."""
    space = config.aggregate.space
    if isinstance(config.algorithm, FedMezoConfig) and isinstance(space, TurnsConfig | SparseConfig | RefactoredConfig):
        text = (
            f"is {space.name}, where some tensors rest in a round, but fedmezo moves all trained numbers along one "
            "direction. Use factors, products, stacked or residual, or adapter.freeze=A."
        )
        yield text, "aggregate.space", "algorithm"


def rates_of_clients(config: Config) -> Said:
    """Rates stay above 0, and deviations are of numbers that can be compared."""
    algorithm, space = config.algorithm, config.aggregate.space
    if not isinstance(algorithm, FedMezoConfig) or algorithm.rate == "frozen":
        return
    if algorithm.rate == "model_diff" and not space.linear:
        text = f"is model_diff, but in space {space.name} the numbers of two clients' factors cannot be compared."
        yield f"{text} Use round_wise, or aggregate.space=factors.", "algorithm.rate", "aggregate.space"
    rounds, schedule = config.federation.rounds, config.local.schedule
    bases = [config.local.lr, *(one.lr for one in config.clients.values() if one.lr is not None)]
    lowest = min(round_rate(schedule, lr, round, rounds) for lr in bases for round in range(rounds))
    if algorithm.spread >= lowest:
        text = (
            f"is {algorithm.spread:g}, but the learning rate is {lowest:g} in some round: some clients' would be 0 or "
            "less. Lower it, or raise local.lr."
        )
        yield text, "algorithm.spread", "local.lr", "local.schedule", "clients"


def nobody_holds_a_model(config: Config) -> Said:
    """Where only scalars travel, there is nothing for what works on weights."""
    algorithm = config.algorithm
    if not algorithm.drifts:
        return
    if config.aggregate.server_optimizer != ServerSgdConfig():
        text = f"is given, but under {algorithm.name} the server adds up scalars and has no weights to step from."
        yield f"{text} Leave it out, or use algorithm=fedmezo.", "aggregate.server_optimizer", "algorithm"
    if isinstance(algorithm, ZerothSettings) and config.attack.name not in ("none", "label_flip"):
        text = f"is {config.attack.name}, which changes weights, but clients of {algorithm.name} send scalars."
        yield f"{text} Use label_flip, or algorithm=fedmezo.", "attack", "algorithm"


def chances(config: Config) -> Said:
    """How FedKSeed-Pro knows slopes and steps."""
    algorithm, local = config.algorithm, config.local
    if not isinstance(algorithm, FedKSeedConfig):
        return
    if algorithm.pro and local.warmup:
        text = f"is {local.warmup}, but FedKSeed-Pro reads slopes from amounts, with one rate for a round. Use 0."
        yield text, "local.warmup", "algorithm.pro"
    epochs = local.epochs is not None or any(one.epochs is not None for one in config.clients.values())
    if algorithm.draws == "server" and epochs:
        text = "is server, but how many steps an epoch has only the clients know. Use local.steps, or draws=client."
        yield text, "algorithm.draws", "local.epochs", "clients"


def idle(config: Config) -> list[str]:
    """Settings that mean nothing to an algorithm without gradients, in words."""
    algorithm, local = config.algorithm, config.local
    if not isinstance(algorithm, ZerothSettings):
        return []
    said, why = list[str](), f"{algorithm.name} steps by differences of losses"
    if local.optimizer != OptimizerConfig():
        said.append(f"local.optimizer has no effect: {why}")
    for key in ("max_grad_norm", "accumulate"):
        if getattr(local, key) != LocalConfig.model_fields[key].default:
            said.append(f"local.{key} has no effect: {why}")
    if getattr(config.adapter, "dropout", 0):
        said.append(f"adapter.dropout has no effect: {why}, and nothing is dropped there")
    if isinstance(algorithm, DeComFlConfig) and (local.epochs is not None or local.warmup):
        said.append("local.epochs and local.warmup have no effect: all clients take algorithm.steps alike")
    if isinstance(algorithm, FedKSeedConfig) and not algorithm.pro:
        given = [key for key in ("corrected", "amplitude_limit") if key in algorithm.model_fields_set]
        said += [f"algorithm.{key} has no effect without algorithm.pro" for key in given]
    return said + (list(_rates(config, algorithm)) if isinstance(algorithm, FedMezoConfig) else [])


def _rates(config: Config, algorithm: FedMezoConfig) -> Iterator[str]:
    from fedloom.config.checks import asked_clients

    if algorithm.rate == "frozen":
        return
    if algorithm.spread == 0:
        yield f"algorithm.rate={algorithm.rate} has no effect: algorithm.spread is 0"
    elif algorithm.rate != "random" and asked_clients(config) == 1:
        yield f"algorithm.rate={algorithm.rate} has no effect: it compares clients, and one is asked in a round"


ZEROTH: Final = (tensors_that_rest, rates_of_clients, nobody_holds_a_model, chances)
