"""The teacher of a run that distils: loading it beside the model, and training one before the run.

It lives where the server's own worker is. Clients never load it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedloom import atomic, rng
from fedloom.adapters import full
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.classifiers import is_classifier, load_classifier
from fedloom.algorithms.config import FedKdConfig
from fedloom.config import Config
from fedloom.contracts import ClientFailed, Lessons, Model
from fedloom.data.federated import ClientRows
from fedloom.engine.alike import check_alike, check_labels, check_vocabularies, vocabulary
from fedloom.engine.distil import Tutor, alone
from fedloom.engine.lessons import courses
from fedloom.engine.reference import Reference
from fedloom.errors import RunStopped, UserError
from fedloom.models.config import ModelConfig
from fedloom.models.heads import Classifier, HeadSpec
from fedloom.models.load import Base, load_model, load_tokenizer, location
from fedloom.models.picking import pick_attention
from fedloom.objectives import table as objectives
from fedloom.objectives.base import Objective
from fedloom.objectives.distillation import Distillation
from fedloom.sides import Both, head, labelled


def build(config: Config, student: Adapted, tokenizer: Any, objective: Objective) -> Tutor:
    """The teacher of a run, beside its model.

    Args:
        config: the whole configuration, `algorithm` fedkd; where rows are classified, `objective.labels` is set.
        student: the federated model.
        tokenizer: the student's.
        objective: what is learned from a row.

    Raises:
        UserError: the teacher cannot be loaded, or these two cannot learn from each other.
    """
    algorithm = _algorithm(config)
    if algorithm.kl == "raw_logits" and config.local.accumulate > 1:
        raise UserError(
            "algorithm.kl=raw_logits: the published loss cannot be computed in parts; use local.accumulate=1 or "
            "kl=proper"
        )
    base = load(config, algorithm, tokenizer)
    if not isinstance(base.module, Classifier):
        check_vocabularies(vocabulary(student.module), vocabulary(base.module))
    loss = Distillation(
        algorithm.kl, algorithm.temperature, algorithm.alpha, algorithm.direction, algorithm.mutual,
        algorithm.normalised, algorithm.epsilon, algorithm.attention,
    )  # fmt: skip
    return Tutor(student, full.adapt(base), tokenizer, objective, loss)


def load(config: Config, algorithm: FedKdConfig, tokenizer: Any) -> Base:
    """The teacher's model, every weight in float32; a classifier where the run classifies.

    Raises:
        UserError: it cannot be loaded, reads other tokens, knows other classes, or is too short for the texts.
    """
    model = _model(config, algorithm)
    try:
        check_alike(tokenizer, load_tokenizer(model))
        base = _loaded(model, config)
    except UserError as error:
        raise UserError(str(error).replace("model.", "algorithm.teacher.", 1)) from None
    if base.max_positions is not None and config.data.max_length > base.max_positions:
        raise UserError(
            f"data.max_length={config.data.max_length}, but the teacher {base.name} was built for "
            f"{base.max_positions} tokens; lower it"
        )
    return base


def pretrain(config: Config, out: Path) -> tuple[int, float]:
    """Train the teacher on the public rows, by `algorithm.pretrain_epochs`, and write it as a Hugging Face folder.

    Args:
        config: the whole configuration of the run it is for.
        out: a folder that is not there yet, or empty.

    Returns:
        Steps taken, and the mean of their losses.

    Raises:
        UserError: the recipe has no teacher or no public rows, or `out` holds something.
        RunStopped: the training diverged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another folder, nothing is overwritten")
    algorithm = _algorithm(config)
    if not algorithm.pretrain_epochs:
        raise UserError("algorithm.pretrain_epochs is 0, so there is nothing to train; set it")
    torch.set_num_threads(config.engine.threads)
    tokenizer = load_tokenizer(_model(config, algorithm))
    data = Both().data(config, tokenizer)
    rows = public(data.public).get("train")
    config = labelled(config, data.labels)
    teacher = full.adapt(load(config, algorithm, tokenizer))
    lessons = Lessons(algorithm.pretrain_epochs, 0, 0, algorithm.lr, algorithm.batch_size, algorithm.max_grad_norm)
    (course,), _ = courses(lessons, rows, False, rng.key(config.seed, "pretrain"))
    objective = objectives.build(config.objective, config.data.max_length)
    engine = Reference(teacher, tokenizer, (), config.model.gradient_checkpointing, objective)
    run = alone(
        engine, course, teacher.start, max_grad_norm=algorithm.max_grad_norm, accumulate=config.local.accumulate,
        seed=rng.key(config.seed, "pretrain dropout"), label="the teacher",
    )  # fmt: skip
    if isinstance(run, ClientFailed) or run.loss is None:
        why = str(run) if isinstance(run, ClientFailed) else "no public row has anything to learn"
        raise RunStopped(f"the teacher was not trained: {why}; look at algorithm.lr and at the public rows")
    with atomic.folder(out) as aside:
        full.save(teacher, Model(run.y), aside)
        tokenizer.save_pretrained(str(aside))
    return run.steps, run.loss


def public(rows: ClientRows | None, algorithm: str = "fedkd") -> ClientRows:
    """The rows the server learns from.

    Raises:
        UserError: there are none.
    """
    if rows is None or not rows.sizes["train"]:
        raise UserError(
            f"algorithm={algorithm} learns from rows that belong to no client, and there are none; set data.public (a "
            "share of the training rows, such as 0.2) or data.public_source (a file of the server's own)"
        )
    return rows


def _algorithm(config: Config) -> FedKdConfig:
    if not isinstance(config.algorithm, FedKdConfig):
        raise UserError(f"algorithm={config.algorithm.name} has no teacher; set algorithm.name=fedkd")
    return config.algorithm


def _model(config: Config, algorithm: FedKdConfig) -> ModelConfig:
    """The teacher as a section `model`, beside the student."""
    teacher = algorithm.teacher
    return ModelConfig(
        name=teacher.name, revision=teacher.revision, layers=teacher.layers, dtype="float32",
        device=config.model.device, attention=config.model.attention,
        gradient_checkpointing=config.model.gradient_checkpointing,
    )  # fmt: skip


def _loaded(model: ModelConfig, config: Config) -> Base:
    spec, folder, longest = head(config), Path(location(model.name)), config.data.max_length
    if spec is None:
        return load_model(model, trained_whole=True, longest=longest)
    if is_classifier(folder):
        return _trained_before(model, spec, folder, longest)
    own = replace(spec, seed=rng.key(config.seed, "teacher"))  # a head like the student's, from other numbers
    return load_model(model, trained_whole=True, longest=longest, head=own)


def _trained_before(model: ModelConfig, spec: HeadSpec, folder: Path, longest: int) -> Base:
    """A classifier that fedloom wrote, with its head."""
    if model.layers is not None:
        raise UserError("model.layers: the folder holds a tuned classifier, all of whose layers are needed; leave it")
    found = load_classifier(folder, model.device)
    if found.spec.classes != spec.classes:
        raise UserError(f"model.name={model.name}: its head has {found.spec.classes} classes, the run {spec.classes}")
    check_labels(spec.labels, found.spec.labels)
    device = next(found.parameters()).device
    attention = pick_attention(model.attention, device, longest)
    if attention is not None:
        found.backbone.set_attn_implementation(attention)
    found.config.use_cache = False
    positions = getattr(found.config, "max_position_embeddings", None)
    return Base(
        found, model.name, device, torch.float32, sum(p.numel() for p in found.parameters()),
        None if positions is None else positions - found.first_position, found.config._attn_implementation,
    )  # fmt: skip
