"""`fedloom list`: what can be chosen, read from the schema and the tables it comes from."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin

import typer

from fedloom.errors import UserError, nearest

if TYPE_CHECKING:
    from fedloom.data.rows import Kind

Pairs: TypeAlias = list[tuple[str, str]]


def listing(
    what: Annotated[str | None, typer.Argument(metavar="[WHAT]", help="What to list; nothing: what there is.")] = None,
) -> None:
    """List what can be chosen: algorithms, sources, ..."""
    kinds = {name: line for name, (line, _) in KINDS.items()}
    if what is None:
        print_pairs([(name, f"values of {line}" if "." in line else line) for name, line in kinds.items()])
        return
    if what not in KINDS:
        raise UserError(f"{what!r} cannot be listed.{nearest(what, kinds)}")
    print_pairs(KINDS[what][1]())


def print_pairs(pairs: Pairs) -> None:
    """Two columns: names, and text wrapped beside them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in pairs:
        table.add_row(name, text)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _variants(section: str, key: str | None = None) -> Callable[[], Pairs]:
    """The variants of a section, by tag, with the first line of each docstring."""

    def read() -> Pairs:
        from fedloom.config import shape

        (field,) = shape.fields_at((section, key) if key else (section,))
        classes = shape.variants(field.annotation)
        return [(value, shape.purpose(one)) for one in classes for value in shape.tag_values(one)]

    return read


SAID: Final[Mapping[str, Mapping[str, str]]] = {
    "weighting": {
        "examples": "a client counts by the examples it saw this round",
        "dataset": "a client counts by the training rows it holds",
        "uniform": "every client counts the same",
    },
    "metrics": {
        "loss": "what is minimised, as a mean: of answers per token, else per row or pair",
        "perplexity": "exp(loss)",
        "exact_match": "share of generated answers that equal the reference; generates",
        "rouge_l": "overlap of generated answers with the reference (ROUGE-L); generates",
        "accuracy": "share of rows whose class was said (classify)",
        "f1": "F1, the mean over classes: macro (classify)",
        "f1_weighted": "F1, the mean over classes by their rows (classify)",
        "f1_micro": "F1 of all decisions together; the accuracy, unless a model says no class (classify)",
        "matthews": "Matthews correlation of classes and what was said, -1 to 1 (classify)",
        "preference_accuracy": "share of pairs whose better answer has the higher reward; ties count half (dpo)",
        "margin": "mean reward of better answers less that of worse ones (dpo, kto)",
        "reward_chosen": "mean reward of better, or good, answers (dpo, kto)",
        "reward_rejected": "mean reward of worse, or bad, answers; lower is better (dpo, kto)",
    },
    "name": {
        "auto": "the fastest engine that is exact for this model",
        "reference": "a plain loop over the model, for every adapter and optimiser; the oracle of the others",
        "slots": "LoRA of many clients side by side in one forward pass, without filling",
        "simulation": "in this process",
        "loopback": "in a second process, over bytes",
    },
    "template": {
        "auto": "the named set's own, else chat if the tokenizer has a template, else alpaca",
        "alpaca": "Stanford Alpaca's wording (Taori et al. 2023)",
        "vicuna": "USER and ASSISTANT, FastChat's v1.1 (Zheng et al. 2023)",
        "chat": "what the model's own tokenizer says",
        "plain": "instruction, input and answer, nothing else",
    },
}
"""What the words of a setting mean, by the setting's last key."""


def _values(section: str, key: str) -> Callable[[], Pairs]:
    """The values of a setting that is one of a few words; `SAID` explains them."""

    def read() -> Pairs:
        from fedloom.config import shape

        (field,) = shape.fields_at((section, key))
        words = [str(word) for one in shape.plain(field.annotation) for word in _words(one)]
        return [(word, SAID[key][word]) for word in words]

    return read


def _words(annotation: Any) -> tuple[Any, ...]:
    """The words of a Literal, also inside a list."""
    origin = get_origin(annotation)
    if origin is list:
        return _words(get_args(annotation)[0])
    return get_args(annotation) if origin is Literal else ()


def _algorithms() -> Pairs:
    from fedloom.config.presets import PRESETS

    presets = [(name, f"{preset.summary}; a preset") for name, preset in PRESETS.items()]
    return _variants("algorithm")() + presets


def _sources() -> Pairs:
    from fedloom.data.named import NAMED

    own = [("playground", "the embedded model's own small skills, made on the spot; no network")]
    return own + [(name, f"{one.title}; {one.licence}{_objective(one.kind)}") for name, one in NAMED.items()]


def _objective(kind: "Kind") -> str:
    """Which objective a set is for, unless it is instruction tuning."""
    from fedloom.data.columns import OBJECTIVES

    return "" if kind == "answers" else f"; for objective={OBJECTIVES[kind]}"


def _skills() -> Pairs:
    from fedloom.data.playground import BASE, HELD, QUICKSTART

    groups = {"quickstart": set(QUICKSTART), "held": set(HELD), "base": set(BASE)}
    return [(name, ", ".join(group for group, members in groups.items() if name in members)) for name in (*HELD, *BASE)]


def _templates() -> Pairs:
    return [*SAID["template"].items(), ("TEXT", "your own, with {instruction} and {input} in it")]


def _optimizers() -> Pairs:
    import torch

    classes = {
        name.lower(): one
        for name, one in vars(torch.optim).items()
        if isinstance(one, type) and issubclass(one, torch.optim.Optimizer) and one is not torch.optim.Optimizer
    }
    return [(name, f"torch.optim.{one.__name__}") for name, one in sorted(classes.items())]


def _ranks() -> Pairs:
    from fedloom.adapters.ranks import MIXTURES

    types = ("small", "large", "medium in attention and large elsewhere", "medium")
    shown = [
        (name, "; ".join(f"{100 * share:.4g} % {one}" for share, one in zip(shares, types, strict=True)))
        for name, shares in MIXTURES.items()
    ]
    return [("homogeneous", "adapter.rank for every client"), *shown]


def _recipes() -> Pairs:
    from fedloom import recipes

    return [(name, recipes.summary(name)) for name in recipes.names()]


def _tasks() -> Pairs:
    from fedloom.evaluate.tasks import TABLE, described

    return [(name, described(task)) for name, task in TABLE.items()]


KINDS: Final[Mapping[str, tuple[str, Callable[[], Pairs]]]] = {
    "algorithms": ("algorithm.name", _algorithms),
    "spaces": ("aggregate.space.name", _variants("aggregate", "space")),
    "rules": ("aggregate.rule.name", _variants("aggregate", "rule")),
    "weightings": ("aggregate.weighting", _values("aggregate", "weighting")),
    "server-optimizers": ("aggregate.server_optimizer.name", _variants("aggregate", "server_optimizer")),
    "samplings": ("federation.sampling.name", _variants("federation", "sampling")),
    "attacks": ("attack.name", _variants("attack")),
    "ranks": ("adapter.ranks.name", _ranks),
    "adapters": ("adapter.kind", _variants("adapter")),
    "objectives": ("objective.name", _variants("objective")),
    "optimizers": ("local.optimizer.name", _optimizers),
    "schedules": ("local.schedule.name", _variants("local", "schedule")),
    "sources": ("data.source", _sources),
    "templates": ("data.template", _templates),
    "skills": ("data.playground.skills", _skills),
    "partitions": ("partition.method", _variants("partition")),
    "metrics": ("evaluate.metrics", _values("evaluate", "metrics")),
    "engines": ("engine.name", _values("engine", "name")),
    "runtimes": ("runtime.name", _values("runtime", "name")),
    "recipes": ("what `fedloom run` takes", _recipes),
    "tasks": ("what `fedloom eval` scores", _tasks),
}
