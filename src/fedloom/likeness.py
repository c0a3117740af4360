"""How close an emulator is to its owner's model, and how much of that model the emulator alone gives away.

An emulator that does a task nearly as well as the owner's model is as good as the model itself to whoever holds it.
So it is scored beside the model: as it was handed out, with what the clients tuned, and after an attacker has tuned all
of it on rows of its own. All models are held in float32 here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from fedloom import rng
from fedloom.adapters.build import adapt
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.config import Config, load
from fedloom.contracts import Call, ClientFailed
from fedloom.data import sources
from fedloom.data.encoders import encoder_of
from fedloom.data.federated import build_rows
from fedloom.emulating import OwnRows, course, own_rows, section
from fedloom.engine import generation
from fedloom.engine.apart import apart
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend, Evaluate
from fedloom.errors import RunStopped, UserError
from fedloom.folder import RunFolder
from fedloom.metrics.config import MetricName
from fedloom.metrics.likeness import AFTER, ATTACKED, BEFORE, BOTH, Attack, Likeness, Measured, closed
from fedloom.models import emulator
from fedloom.models.config import ModelConfig
from fedloom.models.emulator import Facts
from fedloom.models.load import Base, load_model, load_tokenizer, quiet
from fedloom.models.offsite import plan
from fedloom.objectives import table as objectives
from fedloom.objectives.base import Objective
from fedloom.sides import Both, wanted

Rows: TypeAlias = Literal["auto", "global", "clients", "own"]


@dataclass(frozen=True)
class _Judge:
    """Scores models on the same rows."""

    config: Config
    tokenizer: Any
    objective: Objective
    examples: Sequence[Any]
    stop_ids: tuple[int, ...]

    @property
    def names(self) -> tuple[MetricName, ...]:
        """The recipe's metrics, and the loss."""
        measured = self.config.evaluate.measured
        return measured if "loss" in measured else ("loss", *measured)

    def alone(self, base: Base) -> dict[str, float]:
        """Scores of a model as it is: with an adapter that does nothing yet, since an engine wants one."""
        adapted = adapt(base, LoraConfig(rank=1, targets="all-linear"), self.config.seed)
        return self.scores(self.engine(adapted), adapted.start)

    def engine(self, adapted: Any) -> Reference:
        """One that scores and trains."""
        return Reference(adapted, self.tokenizer, self.stop_ids, objective=self.objective)

    def scores(self, engine: Reference, x: torch.Tensor) -> dict[str, float]:
        """Scores at x [P]."""
        c = self.config.evaluate
        layout = engine.adapted.layout
        found = _asked(engine, Evaluate(x, layout, self.examples, self.names, c.batch_size, c.max_new_tokens))
        return found.metrics(self.names)


def report(
    config: Config, folder: Path, run: Path | None = None, attack_steps: int | None = None, rows: Rows = "auto"
) -> Likeness:
    """Compare an emulator with its owner's model.

    Args:
        config: the whole configuration; `offsite` is set, and `model` is the owner's.
        folder: the artefact.
        run: a finished run on it, whose tuned blocks are scored too; None: there is none.
        attack_steps: of the attacker, which trains as `offsite.align` says on the owner's or public rows; 0: there is
            no attacker; None: as many as `offsite.align.steps`.
        rows: which rows are scored: `evaluate.global_source`, the clients' own, or those of the owner's or public rows
            that nothing is trained on; auto: the first, where it is set, else the clients'.

    Raises:
        UserError: the emulator is another model's or damaged, or there are no rows.
        RunStopped: the attack diverged.
    """
    align = section(config).align
    facts = emulator.read(folder)
    steps = align.steps if attack_steps is None else attack_steps
    objective = objectives.build(config.objective, config.data.max_length)
    if objective.reference is not None:
        raise UserError(
            f"objective={config.objective.name} measures a model by a reference, which an emulator and its owner's "
            "model do not share; score them with objective=sft"
        )
    tuned = None if run is None else _tuned(run, config, facts)
    torch.set_num_threads(config.engine.threads)
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
    tokenizer = load_tokenizer(config.model)
    own = own_rows(config, tokenizer) if steps or rows == "own" else None
    judge, source = _judge(config, tokenizer, objective, own, rows)
    longest = config.data.max_length
    whole = load_model(config.model, longest=longest)
    emulator.check_base(facts, whole.module, config.model.name)
    small = emulator.load(folder, config.model, longest=longest)
    pad = generation.filling(whole.module, tokenizer)
    kl, agreement, tokens = apart(whole.module, small.module, objective, judge.examples, pad)
    scores = [Measured(BEFORE, "owner", judge.alone(whole)), Measured(BEFORE, "emulator", judge.alone(small))]
    part = emulator.section(folder, config.model)
    if tuned is not None:
        scores.append(Measured(AFTER, "owner", judge.alone(_with(config.model, tuned[0], longest))))
        scores.append(Measured(AFTER, "emulator", judge.alone(_with(part, tuned[1], longest))))
    attack = None
    if steps and own is not None:
        found, loss = _attacked(judge, load_model(part, True, longest), own, steps)
        share = closed(scores, found["loss"])
        attack = Attack(steps, len(own.train), own.source, loss, share)
        scores.append(Measured(ATTACKED, "emulator", found))
        if tuned is not None:
            found, _ = _attacked(judge, _with(part, tuned[1], longest), own, steps)
            scores.append(Measured(BOTH, "emulator", found))
    return Likeness(
        facts.base, facts.fingerprint, facts.method, source, len(judge.examples), tokens, kl, agreement, tuple(scores),
        attack,
    )  # fmt: skip


def _attacked(judge: _Judge, base: Base, own: OwnRows, steps: int) -> tuple[dict[str, float], float]:
    """Scores of an emulator that was tuned whole on the attacker's rows, and the mean loss of its steps."""
    align, seed = section(judge.config).align, judge.config.seed
    adapted = adapt(base, FullConfig(), seed)
    engine, lessons = judge.engine(adapted), course(own, align, steps, rng.key(seed, "offsite attack"))
    run = _asked(
        engine,
        Descend(
            start=adapted.start, layout=adapted.layout, batches=lessons.batches, lrs=lessons.lrs,
            optimizer=OptimizerConfig(name=align.optimizer), max_grad_norm=align.max_grad_norm, accumulate=1,
            seed=rng.key(seed, "offsite attack dropout"), label="the attacker",
        ),
    )  # fmt: skip
    if run.loss is None:
        raise UserError(f"{own.source}: no row has anything to learn, so there is nothing to attack with")
    return judge.scores(engine, run.y), run.loss


def _asked(engine: Reference, request: Any) -> Any:
    engine.admit(Call(0, request))
    try:
        ((_, found),) = engine.advance()
    finally:
        engine.abandon()
    if isinstance(found, ClientFailed):
        raise RunStopped(f"the attacker's training came to nothing: {found}; lower offsite.align.lr")
    return found


def _judge(config: Config, tokenizer: Any, objective: Objective, own: OwnRows | None, rows: Rows) -> tuple[_Judge, str]:
    """With the rows to score, and where they are from."""
    elsewhere = config.evaluate.global_source
    if rows == "global" or (rows == "auto" and elsewhere is not None):
        if elsewhere is None:
            raise UserError("evaluate.global_source is not set; set it, or score other rows (--rows clients or own)")
        if own is not None and elsewhere == own.name:
            raise UserError(
                f"evaluate.global_source={elsewhere} is what the attacker learns from ({own.source}); name other rows"
            )
        table = sources.load_other(config.data, elsewhere, config.seed, config.objective.rows)
        encoder = encoder_of(tokenizer, config.data, wanted(config), table.template)
        examples: list[Any] = build_rows(table.rows, encoder, "global").get("test")
        source, stops = f"evaluate.global_source={elsewhere}", encoder.stop_ids
    elif rows == "own":
        assert own is not None
        examples, source = own.held, f"held back of {own.source}"
        stops = encoder_of(tokenizer, config.data, wanted(config)).stop_ids
    else:
        data = Both().data(config, tokenizer)
        split, most = config.evaluate.split, config.evaluate.rows_per_client
        examples = [one for client in data.clients for one in client.get(split)[:most]]
        source, stops = f"the clients' {split} rows", data.encoder.stop_ids
    if not examples:
        raise UserError(f"{source}: there is no row to score; choose others with --rows")
    return _Judge(config, tokenizer, objective, examples, stops), source


def _with(model: ModelConfig, tuned: Path, longest: int) -> Base:
    """A model with what a run wrote for it: an adapter put into its weights, or the whole tuned model."""
    if not (tuned / "adapter_config.json").exists():
        return load_model(emulator.section(tuned, model), True, longest)
    from peft import PeftModel

    base = load_model(model, True, longest)
    with quiet():
        module = PeftModel.from_pretrained(base.module, str(tuned)).merge_and_unload()
    return replace(base, module=module.eval().requires_grad_(False))


def _tuned(run: Path, config: Config, facts: Facts) -> tuple[Path, Path]:
    """What a run wrote for the owner's model and for the emulator.

    Raises:
        UserError: it is not there, or belongs to another emulator.
    """
    said = load(RunFolder(run).path / "config.yaml")
    if said.offsite is None:
        raise UserError(f"{run} tuned no emulator (its recipe has no section offsite); name a run that did")
    used = said.offsite.emulator
    if said.model.name != config.model.name or plan(said.offsite, facts.plan.blocks) != facts.plan:
        raise UserError(
            f"{run} tuned other blocks, or blocks of another model (model.name={said.model.name}), than this emulator "
            "has; name the emulator it was tuned on"
        )
    there = used is not None and (Path(used) / emulator.FACTS).exists()
    own = emulator.read(Path(str(used)), thorough=False).own if there else None
    if own not in (None, facts.own) or (used is None and facts.method != "drop"):
        raise UserError(
            f"{run} was tuned on another emulator ({used or 'blocks dropped in memory'}); name that one, or leave "
            "--run out"
        )
    found = run / "adapters" / "final", run / "adapters" / "emulator"
    missing = [str(path) for path in found if not path.is_dir()]
    if missing:
        raise UserError(f"{' and '.join(missing)}: not there; finish the run with `fedloom resume {run}`")
    return found
