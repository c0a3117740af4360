"""Which part of a run this process holds: all of it (a simulation), the server's, or some clients'.

The same recipe is built on every side (`assembly.Parts`); the sides differ in whose rows are here and whether the base
model's weights are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedloom.adapters.config import FullConfig
from fedloom.algorithms.config import FedKdConfig
from fedloom.config import Config
from fedloom.contracts import ClientId
from fedloom.data.encoders import encoder_of
from fedloom.data.federated import FederatedData, absent, build, build_own, build_public
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError
from fedloom.models.heads import HeadSpec
from fedloom.models.load import Base, load_model, load_skeleton, load_tokenizer
from fedloom.objectives.config import ClassifyConfig, DpoConfig, KtoConfig


class Side(Protocol):
    """What a side holds."""

    @property
    def clients(self) -> bool:
        """Whether clients run here."""

    @property
    def server(self) -> bool:
        """Whether rounds are led here."""

    def tokenizer(self, config: Config) -> Any:
        """The model's tokenizer."""

    def data(self, config: Config, tokenizer: Any) -> FederatedData:
        """All clients, with the rows of those that are here."""

    def base(self, config: Config) -> Base:
        """The model, or its skeleton; where rows are classified, `objective.labels` must be set."""


@dataclass(frozen=True)
class Both:
    """A simulation: everything is in one place."""

    clients: bool = True
    server: bool = True

    def tokenizer(self, config: Config) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(config.model)

    def data(self, config: Config, tokenizer: Any) -> FederatedData:
        """Every client's rows."""
        return build(config.data, config.partition, config.seed, tokenizer, wanted(config))

    def base(self, config: Config) -> Base:
        """The model."""
        return _loaded(config)


@dataclass(frozen=True)
class Leading:
    """A deployment's server: names of clients, no text of theirs; weights only if it has a model to run itself."""

    names: Sequence[str]
    clients: bool = False
    server: bool = True

    def tokenizer(self, config: Config) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(config.model, weights=self.computes(config))

    def data(self, config: Config, tokenizer: Any) -> FederatedData:
        """Clients without rows."""
        encoder = encoder_of(tokenizer, config.data, wanted(config))
        public = build_public(config.data, config.seed, encoder, wanted(config)) if _distils(config) else None
        return absent(self.names, encoder, public=public)

    def base(self, config: Config) -> Base:
        """A skeleton, unless something is computed here."""
        if self.computes(config):
            return _loaded(config)
        return load_skeleton(config.model, _whole(config), config.data.max_length, head(config))

    def computes(self, config: Config) -> bool:
        """Whether the server evaluates on rows of its own, or distils."""
        return config.evaluate.global_source is not None or config.evaluate.forgetting or _distils(config)


@dataclass(frozen=True)
class Taking:
    """Some clients of a deployment, mostly one: their rows, and the model."""

    count: int
    """How many clients there are in all."""
    sources: Mapping[ClientId, tuple[str, Path]]
    """Name, and file or folder, of those that are here."""
    clients: bool = True
    server: bool = False

    def tokenizer(self, config: Config) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(config.model)

    def data(self, config: Config, tokenizer: Any) -> FederatedData:
        """The rows of these, and strangers."""
        encoder = encoder_of(tokenizer, config.data, wanted(config))
        data = absent([f"client {i}" for i in range(self.count)], encoder)
        for i, (name, source) in self.sources.items():
            own = config.data.model_copy(update={"source": str(source), "limit": None})
            data.clients[i] = build_own(own, config.seed, tokenizer, name, i, wanted(config))
        return data

    def base(self, config: Config) -> Base:
        """The model."""
        return _loaded(config)


def wanted(config: Config) -> Wanted:
    """What the objective asks of rows."""
    objective = config.objective
    match objective:
        case ClassifyConfig():
            return Wanted(objective.rows, None if objective.labels is None else tuple(objective.labels))
        case DpoConfig() | KtoConfig():
            return Wanted(objective.rows, max_prompt_length=objective.max_prompt_length)
    return Wanted(objective.rows)


def labelled(config: Config, labels: tuple[str, ...] | None) -> Config:
    """The configuration with the classes in use, where rows are classified."""
    objective = config.objective
    if not isinstance(objective, ClassifyConfig) or labels is None:
        return config
    return config.model_copy(update={"objective": objective.model_copy(update={"labels": list(labels)})})


def head(config: Config) -> HeadSpec | None:
    """What is put on the model; None: it keeps its language head."""
    objective = config.objective
    if not isinstance(objective, ClassifyConfig):
        return None
    labels = tuple(objective.labels or ())
    return HeadSpec(len(labels), objective.pooling, objective.head, config.seed, labels)


def _loaded(config: Config) -> Base:
    base = load_model(config.model, trained_whole=_whole(config), longest=config.data.max_length, head=head(config))
    if base.max_positions is not None and config.data.max_length > base.max_positions:
        raise UserError(
            f"data.max_length={config.data.max_length}, but {base.name} was built for {base.max_positions} tokens; "
            "lower it"
        )
    return base


def _distils(config: Config) -> bool:
    return isinstance(config.algorithm, FedKdConfig)


def _whole(config: Config) -> bool:
    return isinstance(config.adapter, FullConfig)
