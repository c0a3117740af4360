"""Making an emulator of the owner's model: which rows it is aligned on, what comes out, and what stays behind.

It runs where the owner's model is, once, before any run. Clients' rows are never looked at for it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedloom import rng
from fedloom.config import Config
from fedloom.data import sources
from fedloom.data.encoders import encoder_of
from fedloom.data.federated import build_rows
from fedloom.data.rows import Row
from fedloom.engine import generation
from fedloom.engine.aligning import Aligning, Terms
from fedloom.engine.batches import plan as drawn
from fedloom.engine.config import CosineConfig
from fedloom.engine.lessons import Course
from fedloom.engine.schedule import round_rate
from fedloom.errors import UserError
from fedloom.models import emulator
from fedloom.models.config import ModelConfig
from fedloom.models.emulator import ASKED, Alignment, Facts
from fedloom.models.identity import kin
from fedloom.models.layers import find
from fedloom.models.load import load_model, load_skeleton, load_tokenizer, location
from fedloom.models.offsite import Plan, plan
from fedloom.models.offsite_config import AlignConfig, OffsiteConfig
from fedloom.objectives import table as objectives
from fedloom.sides import wanted

HELD = 0.1
"""Share of the owner's rows that nothing is trained on: distances and leaks are measured there."""


@dataclass(frozen=True)
class OwnRows:
    """Encoded rows of the owner or of nobody, in two parts."""

    train: list[Any]
    held: list[Any]
    name: str
    """The source."""
    source: str
    """The setting that names it, and its value."""


@dataclass(frozen=True)
class Built:
    """What `build` made."""

    folder: Path
    facts: Facts
    bytes: int
    """Of the emulator's weights."""
    base_bytes: int
    """Of the owner's, in the same format."""


def build(config: Config, out: Path) -> Built:
    """Make the emulator a recipe describes, and write it as a folder.

    Args:
        config: the whole configuration; `offsite` is set.
        out: a folder that is not there yet, or empty.

    Raises:
        UserError: something in the recipe cannot work; said before weights are loaded wherever that is possible.
        RunStopped: the alignment diverged.
    """
    offsite = section(config)
    emulator.check_empty(out)
    torch.set_num_threads(config.engine.threads)
    chosen = _planned(config, offsite)
    tokenizer = load_tokenizer(config.model)
    rows = own_rows(config, tokenizer) if offsite.method == "distill" else None
    kept = _format(config.model)
    exact = rows is not None or kept != torch.bfloat16
    held_in = config.model.model_copy(update={"dtype": "float32" if exact else "bfloat16"})
    base = load_model(held_in, longest=config.data.max_length)
    facts = Facts(config.model.name, kin(base.module), chosen, offsite.method, "", 0, base.parameters)
    module = base.module
    if rows is None:
        emulator.cut_out(module, chosen)
    else:
        module, align = _aligned(config, module, chosen, rows, tokenizer, kept)
        facts = replace(facts, align=align)
    module = module.to(kept)
    facts = replace(facts, own=kin(module), parameters=sum(p.numel() for p in module.parameters()))
    facts = emulator.write(module, tokenizer, facts, out)
    return Built(out, facts, facts.parameters * kept.itemsize, facts.base_parameters * kept.itemsize)


def section(config: Config) -> OffsiteConfig:
    """The recipe's section.

    Raises:
        UserError: it has none.
    """
    if config.offsite is None:
        raise UserError(
            "offsite is not set, so this recipe shares its model out whole; set it, for example to "
            "offsite.drop_ratio=0.5"
        )
    return config.offsite


def own_rows(config: Config, tokenizer: Any) -> OwnRows:
    """The owner's or public rows, those of `offsite.align.source` before those of `data`; never clients'.

    Which of them are held back is drawn from the seed, so that whoever asks again gets the same.

    Raises:
        UserError: there are none, fewer than two can be used, or they would be the clients'.
    """
    found, template, name, source = _read(config, section(config).align)
    encoder = encoder_of(tokenizer, config.data, wanted(config), template)
    examples = build_rows(found, encoder, "the owner", "train").get("train")
    if len(examples) < 2:
        raise UserError(
            f"{source} gives {len(examples)} rows that can be used of {len(found)}, and at least 2 are needed: one to "
            "learn from and one to measure on; give more, or raise data.max_length"
        )
    order = rng.permutation(rng.key(config.seed, "offsite held"), len(examples))
    count = max(1, int(HELD * len(examples)))
    held, train = sorted(order[:count]), sorted(order[count:])
    return OwnRows([examples[i] for i in train], [examples[i] for i in held], name, source)


def course(rows: OwnRows, align: AlignConfig, steps: int, seed: int) -> Course:
    """Keyed batches of the rows that may be learned from, and a rate that falls along a cosine."""
    batches = drawn(len(rows.train), align.batch_size, seed, steps=steps)
    lrs = [round_rate(CosineConfig(), align.lr, step, steps) for step in range(steps)]
    return Course([[rows.train[i] for i in batch] for batch in batches], lrs)


def _planned(config: Config, offsite: OffsiteConfig) -> Plan:
    """Which blocks go where, found on a skeleton: bounds and families are judged before any weights are read."""
    skeleton = load_skeleton(config.model, longest=config.data.max_length)
    chosen = plan(offsite, len(find(skeleton.module, ASKED)[1]))
    emulator.cut_out(skeleton.module, chosen)
    if skeleton.max_positions is not None and config.data.max_length > skeleton.max_positions:
        raise UserError(
            f"data.max_length={config.data.max_length}, but {config.model.name} was built for "
            f"{skeleton.max_positions} tokens; lower it"
        )
    return chosen


def _format(model: ModelConfig) -> torch.dtype:
    """The artefact's number format: as asked, else that of the owner's files."""
    from transformers import AutoConfig

    if model.dtype != "auto":
        return torch.bfloat16 if model.dtype == "bfloat16" else torch.float32
    found = AutoConfig.from_pretrained(location(model.name), revision=model.revision).dtype
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.float32


def _aligned(
    config: Config, owner: nn.Module, chosen: Plan, rows: OwnRows, tokenizer: Any, kept: torch.dtype
) -> tuple[nn.Module, Alignment]:
    """The emulator with its middle blocks trained, measured as the file will hold them."""
    align = section(config).align
    objective = objectives.build(config.objective, config.data.max_length)
    pair = Aligning(owner, chosen, objective, generation.filling(owner, tokenizer))
    before = pair.apart(rows.held, align.batch_size)
    steps = course(rows, align, align.steps, rng.key(config.seed, "offsite align"))
    losses = pair.learn(steps, Terms(align.kd_weight, align.lm_weight), align.optimizer, align.max_grad_norm)
    pair.round_to(kept)
    after = pair.apart(rows.held, align.batch_size)
    return pair.emulator, Alignment(
        align.steps, len(rows.train), len(rows.held), before, after, losses[0], losses[-1]
    )  # fmt: skip


def _read(config: Config, align: AlignConfig) -> tuple[list[Row], str | None, str, str]:
    """Rows, the template their source brings along, the source, and where they are from in words."""
    data, kind = config.data, config.objective.rows
    if align.source is not None:
        _not_the_clients("offsite.align.source", align.source, data.source)
        try:
            table = sources.load_other(data, align.source, config.seed, kind)
        except UserError as error:
            raise UserError(f"offsite.align.source={align.source}: {error}") from error
        return list(table.rows), table.template, align.source, f"offsite.align.source={align.source}"
    if data.public_source is not None:
        _not_the_clients("data.public_source", data.public_source, data.source)
        found = sources.load_public(data, config.seed, kind)
        return list(found), None, data.public_source, f"data.public_source={data.public_source}"
    if data.public:
        table = sources.load(data, config.seed, kind)
        return list(table.public), table.template, data.source, f"data.public={data.public:g} of {data.source}"
    raise UserError(
        "offsite: there are no rows to align the emulator on, and clients' rows are never used; set "
        "offsite.align.source (rows of the owner), data.public_source, or data.public (a share of the training rows "
        "that belongs to nobody, such as 0.1)"
    )


def _not_the_clients(key: str, source: str, clients: str) -> None:
    """One and the same source would be the clients' rows."""
    same = source == clients or (
        Path(source).exists() and Path(clients).exists() and Path(source).resolve() == Path(clients).resolve()
    )
    if same:
        raise UserError(
            f"{key}={source} is data.source, which holds the clients' rows, and an emulator never sees those; name "
            "rows of the owner, or set data.public to keep a share of the rows from the clients"
        )
