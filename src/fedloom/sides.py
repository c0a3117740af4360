"""Which part of a run this process holds: all of it (a simulation), the server's, or some clients'.

The same recipe is built on every side (`assembly.Parts`); the sides differ in whose rows are here and whether the base
model's weights are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedloom.adapters.config import FullConfig, virtual_tokens
from fedloom.algorithms.config import FedBiotConfig, FedKdConfig
from fedloom.config import Config
from fedloom.contracts import ClientId
from fedloom.data.encoders import encoder_of
from fedloom.data.federated import FederatedData, absent, build, build_own, build_public
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError
from fedloom.models import parting
from fedloom.models.config import ModelConfig
from fedloom.models.emulator import Facts
from fedloom.models.heads import HeadSpec
from fedloom.models.load import Base, load_model, load_skeleton, load_tokenizer
from fedloom.models.parting import Emulated
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

    def emulated(self, config: Config) -> Emulated | None:
        """What stands for the model in offsite-tuning, or its skeleton; None: nothing does."""

    def owned(self, config: Config, facts: Facts | None) -> Base | None:
        """The whole model an emulator stands for, or its skeleton; None: it is not here.

        Args:
            config: the whole configuration, with `offsite`.
            facts: what the emulator's folder says; None: there is none.
        """


@dataclass(frozen=True)
class Both:
    """A simulation: everything is in one place."""

    clients: bool = True
    server: bool = True

    def tokenizer(self, config: Config) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(_section(config))

    def data(self, config: Config, tokenizer: Any) -> FederatedData:
        """Every client's rows."""
        return build(config.data, config.partition, config.seed, tokenizer, wanted(config))

    def base(self, config: Config) -> Base:
        """The model."""
        return _loaded(config)

    def emulated(self, config: Config) -> Emulated | None:
        """The emulator."""
        return _emulated(config)

    def owned(self, config: Config, facts: Facts | None) -> Base | None:
        """The model, with its weights where they are scored or written."""
        return _owned(config, facts, skeleton=not (_whole(config) or _scores_owned(config) or _aligns(config)))


@dataclass(frozen=True)
class Leading:
    """A deployment's server: names of clients, no text of theirs; weights only if it has a model to run itself."""

    names: Sequence[str]
    clients: bool = False
    server: bool = True

    def tokenizer(self, config: Config) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(_section(config), weights=self.computes(config))

    def data(self, config: Config, tokenizer: Any) -> FederatedData:
        """Clients without rows."""
        encoder = encoder_of(tokenizer, config.data, wanted(config))
        public = build_public(config.data, config.seed, encoder, wanted(config)) if _learns(config) else None
        return absent(self.names, encoder, public=public)

    def base(self, config: Config) -> Base:
        """A skeleton, unless something is computed here."""
        if self.computes(config):
            return _loaded(config)
        return load_skeleton(config.model, _whole(config), config.data.max_length, head(config))

    def emulated(self, config: Config) -> Emulated | None:
        """The emulator, or its skeleton."""
        return _emulated(config, skeleton=not self.computes(config))

    def owned(self, config: Config, facts: Facts | None) -> Base | None:
        """The model, or its skeleton."""
        needed = _whole(config) or _aligns(config) or (self.computes(config) and _scores_owned(config))
        return _owned(config, facts, skeleton=not needed)

    def computes(self, config: Config) -> bool:
        """Whether the server evaluates or learns on rows of its own, or writes a whole model that it owns."""
        rows = config.evaluate.global_source is not None or config.evaluate.forgetting
        return rows or _learns(config) or (config.offsite is not None and _whole(config))


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
        return load_tokenizer(_section(config))

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

    def emulated(self, config: Config) -> Emulated | None:
        """The emulator."""
        return _emulated(config)

    def owned(self, config: Config, facts: Facts | None) -> Base | None:
        """Never here."""
        return None


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
    return _long_enough(base, config)


def _long_enough(base: Base, config: Config) -> Base:
    before = virtual_tokens(config.adapter)
    if base.max_positions is not None and config.data.max_length + before > base.max_positions:
        virtual = f" and adapter.tokens={before} (virtual tokens stand before every text)" if before else ""
        raise UserError(
            f"data.max_length={config.data.max_length}{virtual}, but {base.name} was built for {base.max_positions} "
            "tokens; lower it"
        )
    return base


def _section(config: Config) -> ModelConfig:
    return config.model if config.offsite is None else parting.section(config.model, config.offsite)


def _emulated(config: Config, skeleton: bool = False) -> Emulated | None:
    if config.offsite is None:
        return None
    found = parting.emulated(config.model, config.offsite, _whole(config), config.data.max_length, skeleton)
    _long_enough(found.base, config)
    return found


def _owned(config: Config, facts: Facts | None, skeleton: bool) -> Base:
    return parting.owned(config.model, facts, _whole(config), config.data.max_length, skeleton)


def _scores_owned(config: Config) -> bool:
    return config.offsite is not None and config.offsite.evaluate != "emulator"


def _learns(config: Config) -> bool:
    """Whether the server learns from public rows."""
    return isinstance(config.algorithm, FedKdConfig) or _aligns(config)


def _aligns(config: Config) -> bool:
    """Whether it does so with the model an emulator stands for."""
    return isinstance(config.algorithm, FedBiotConfig) and config.algorithm.aligns


def _whole(config: Config) -> bool:
    return isinstance(config.adapter, FullConfig)
