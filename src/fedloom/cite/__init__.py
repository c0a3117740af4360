"""Who is to be cited for a run: from its configuration to BibTeX.

Papers are listed once (`papers`); what a setting rests on is listed beside its value, also where that is no paper's
(`uses`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import fedloom
from fedloom.adapters.config import DoraConfig, LoraConfig
from fedloom.aggregate.config import ServerSgdConfig
from fedloom.algorithms.config import FedPerConfig
from fedloom.cite.papers import PAPERS
from fedloom.cite.uses import (
    ADAPTERS,
    ALGORITHMS,
    ATTACKS,
    ENCODINGS,
    LOSSES,
    METRICS,
    NOT_FACTORS,
    OBJECTIVES,
    PARTITIONS,
    RULES,
    SAMPLINGS,
    SERVERS,
    SOURCES,
    SPACES,
    TEMPLATES,
)
from fedloom.config import Config
from fedloom.data.named import NAMED
from fedloom.objectives.config import DpoConfig

YEAR: Final = 2026
"""Of this version of fedloom."""


@dataclass(frozen=True)
class Citation:
    """One BibTeX entry."""

    key: str
    author: str
    year: int
    title: str
    eprint: str | None = None
    """Number on arXiv."""
    url: str | None = None
    note: str | None = None
    used: tuple[str, ...] = ()
    """Settings of the run that rest on it."""

    def bibtex(self) -> str:
        """The entry, under a line that says what it is cited for."""
        fields = {
            "title": f"{{{self.title}}}",  # in braces of its own: no style changes its capitals
            "author": self.author,
            "year": str(self.year),
            "eprint": self.eprint,
            "archiveprefix": "arXiv" if self.eprint else None,
            "url": self.url or (f"https://arxiv.org/abs/{self.eprint}" if self.eprint else None),
            "note": self.note,
        }
        lines = [f"  {name} = {{{text}}}," for name, text in fields.items() if text is not None]
        return "\n".join([_remark(", ".join(self.used)), f"@misc{{{self.key},", *lines, "}"])


def citations(config: Config) -> list[Citation]:
    """What a run rests on: fedloom, then papers in the order of the settings that use them."""
    used: dict[str, list[str]] = {}
    for setting, keys in _uses(config):
        for key in keys:
            used.setdefault(key, []).append(setting)
    papers = [_paper(key, tuple(settings)) for key, settings in used.items()]
    return [fedloom_itself(), *papers]


def bibtex(config: Config, version: str = "") -> str:
    """A whole BibTeX file for a run.

    Args:
        config: of the run.
        version: of the fedloom that made it; empty: this one.
    """
    itself, *papers = citations(config)
    found = [fedloom_itself(version) if version else itself, *papers]
    rest = [_remark(f"not known here, look up whom to cite: {one}") for one in unknown(config)]
    return "\n\n".join([*(one.bibtex() for one in found), *rest]) + "\n"


def unknown(config: Config) -> list[str]:
    """What was used and has authors that are not known here: a data set or a model from elsewhere."""
    found = []
    if config.data.source not in SOURCES:
        found.append(f"data.source={config.data.source}")
    elif not SOURCES[config.data.source] and config.data.source != "playground":
        found.append(f"data.source={config.data.source} ({NAMED[config.data.source].title})")
    if config.evaluate.global_source is not None and config.evaluate.global_source not in SOURCES:
        found.append(f"evaluate.global_source={config.evaluate.global_source}")
    return found if config.model.name == "nano" else [*found, f"model.name={config.model.name}"]


def fedloom_itself(version: str = fedloom.__version__) -> Citation:
    """The entry for this software."""
    return Citation(
        "fedloom",
        "{The fedloom authors}",
        YEAR,
        "fedloom: federated fine-tuning of language models",
        url="https://github.com/fedloom/fedloom",
        note=f"Version {version}",
        used=("the software",),
    )


def _uses(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(setting, keys of papers) in the order of a recipe's sections."""
    adapter, algorithm, aggregate = config.adapter, config.algorithm, config.aggregate
    yield f"algorithm={algorithm.name}", ALGORITHMS[algorithm.name]
    if isinstance(algorithm, FedPerConfig) and isinstance(adapter, LoraConfig) and algorithm.private == ["*.B"]:
        yield "algorithm.private=[*.B]", ("guo2024fedsa",)
    space = aggregate.space.name
    if space != "factors":
        yield f"aggregate.space={space}", SPACES[space]
    elif isinstance(adapter, LoraConfig) and adapter.freeze == "none" and algorithm.name not in NOT_FACTORS:
        yield "aggregate.space=factors, with LoRA", SPACES[space]
    yield f"aggregate.rule={aggregate.rule.name}", RULES[aggregate.rule.name]
    server = aggregate.server_optimizer
    if not isinstance(server, ServerSgdConfig):
        yield f"aggregate.server_optimizer={server.name}", SERVERS[server.name]
    elif server.momentum:
        kind = "nesterov" if server.nesterov else "momentum"
        yield f"aggregate.server_optimizer.{kind}", SERVERS[kind]
    yield f"channel.encoding={config.channel.encoding}", ENCODINGS[config.channel.encoding]
    yield f"attack={config.attack.name}", ATTACKS[config.attack.name]
    yield f"federation.sampling={config.federation.sampling.name}", SAMPLINGS[config.federation.sampling.name]
    yield f"adapter={adapter.kind}", ADAPTERS[adapter.kind]
    if isinstance(adapter, LoraConfig | DoraConfig) and adapter.rslora:
        yield "adapter.rslora", ("kalajdzievski2023rslora",)
    if isinstance(adapter, LoraConfig):
        if adapter.freeze == "A":
            yield "adapter.freeze=A", ("sun2024ffa",)
        if adapter.ranks.name != "homogeneous":
            yield f"adapter.ranks={adapter.ranks.name}", ("bai2024flexlora",)
    if config.offsite is not None:
        yield "offsite", ("xiao2023offsite",)
    yield f"partition={config.partition.method}", PARTITIONS[config.partition.method]
    yield f"objective={config.objective.name}", OBJECTIVES[config.objective.name]
    if isinstance(config.objective, DpoConfig):
        yield f"objective.loss={config.objective.loss}", LOSSES[config.objective.loss]
    for key, source in (("data.source", config.data.source), ("evaluate.global_source", config.evaluate.global_source)):
        if source is not None:
            yield f"{key}={source}", SOURCES.get(source, ())
    template = config.data.template
    if template == "auto" and config.data.source in NAMED:
        template = NAMED[config.data.source].template
    yield f"data.template={template}", TEMPLATES.get(template, ())  # a template of one's own is no paper's
    for metric in config.evaluate.measured:
        yield f"evaluate.metrics=[{metric}]", METRICS[metric]


def _remark(text: str) -> str:
    """A line between entries; only an @ would make BibTeX read it."""
    return f"% {text.replace('@', '(at)')}"


def _paper(key: str, used: tuple[str, ...]) -> Citation:
    author, year, title, place = PAPERS[key]
    address = place.startswith("https://")
    return Citation(
        key, author, year, title, eprint=None if address else place, url=place if address else None, used=used
    )
