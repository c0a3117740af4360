"""What sets a run apart from plain FedAvg: objective, algorithm, what is averaged and how, attackers, who is held out,
ranks.

Read from the configuration alone; who attacks or is held out is drawn again from the seed, as the run did.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fedloom.report import words
from fedloom.report.facts import Facts, flatten
from fedloom.report.story import Tile

PERSONAL: Final = frozenset({"ditto", "dual", "fedper", "fedrep", "pfedme", "local"})
"""Algorithms under which clients end with models of their own."""
_NAMED: Final = 8
"""More clients than this are counted, not named."""
_PLAIN: Final[Mapping[str, Any]] = {
    "algorithm.name": "fedavg",
    "adapter.kind": "lora",
    "adapter.freeze": "none",
    "adapter.scale": "rank",
    "adapter.sparse": None,
    "aggregate.space.name": "factors",
    "aggregate.rule.name": "mean",
    "aggregate.weighting": "examples",
    "aggregate.server_optimizer.name": "sgd",
    "aggregate.server_optimizer.lr": 1.0,
    "aggregate.server_optimizer.momentum": 0.0,
    "aggregate.server_optimizer.nesterov": False,
}
"""FedAvg of LoRA factors, and what a run without these settings has."""


def name(config: Mapping[str, Any]) -> str | None:
    """What the method is called: that of a preset whose settings all hold, else the algorithm's; None if unknown."""
    from fedloom.config.presets import PRESETS

    settings, found = _settings(config), dict[str, int]()
    for preset, one in PRESETS.items():
        made_of = {**one.fixed, **one.start}
        special = any(_PLAIN.get(key) != value for key, value in made_of.items())
        if special and all(settings.get(key) == value for key, value in made_of.items()):
            found[preset] = len(made_of)
    if found:  # of several that hold, the one that says most: diloco is more than fedavgm
        return max(found, key=lambda preset: found[preset])
    return config.get("algorithm", {}).get("name")


def rows(facts: Facts) -> list[Tile]:
    """Name, value and what it means, for everything that is not as in plain FedAvg; empty if nothing is."""
    return [
        *_objective(facts),
        *_algorithm(facts),
        *_aggregate(facts),
        *_attack(facts),
        *_held_out(facts),
        *_ranks(facts),
        *_own(facts),
    ]


def remarks(facts: Facts) -> list[str]:
    """What of the method a reader must know before believing the numbers."""
    found = attackers(facts)
    if not found:
        return []
    verb = "is an attacker" if len(found) == 1 else "are attackers"
    clients = words.count(facts.client_count, "client", "clients")
    return [f"{len(found):,} of {clients} {verb}, made so by `attack={facts.config['attack']['name']}`."]


def attackers(facts: Facts) -> list[str]:
    """Names of the clients that attack."""
    section = facts.config.get("attack", {})
    clients = _names(facts)
    if section.get("name", "none") == "none" or not clients:
        return []
    from pydantic import TypeAdapter

    from fedloom.runtime.attack import attacking
    from fedloom.runtime.attack_config import AttackConfig

    config: AttackConfig = TypeAdapter(AttackConfig).validate_python(section)
    found = attacking(config, clients, _seed(facts), _held(facts))
    return [clients[i] for i in sorted(found)]


def held_out(facts: Facts) -> list[str]:
    """Names of the clients that are evaluated and never train."""
    clients = _names(facts)
    return [clients[i] for i in sorted(_held(facts))]


def _algorithm(facts: Facts) -> Iterator[Tile]:
    from fedloom.config.presets import PRESETS

    called = name(facts.config)
    if called is not None and called in PRESETS:
        yield Tile("Preset", called, PRESETS[called].summary)
    elif called is not None and called != "fedavg":
        yield Tile("Algorithm", called, _purpose("algorithm", called))


def _objective(facts: Facts) -> Iterator[Tile]:
    objective = facts.config.get("objective", {}).get("name", "sft")
    if objective != "sft":
        yield Tile("Objective", _objective_name(facts), _purpose("objective", objective))


def _objective_name(facts: Facts) -> str:
    """`dpo, loss ipo, beta 0.1` and what else is not as usual; of classes only how many."""
    from fedloom.config import shape

    section = facts.config["objective"]
    (field,) = shape.fields_at(("objective",))
    kinds = [one for one in shape.variants(field.annotation) if section["name"] in shape.tag_values(one)]
    usual = {name: one.default for kind in kinds for name, one in kind.model_fields.items()}
    hidden = [name for name, value in section.items() if value == usual.get(name) and name not in ("loss", "beta")]
    shown, labels = _with(facts, "objective", without=("labels", *hidden)), section.get("labels")
    return f"{shown}, {words.count(len(labels), 'class', 'classes')}" if labels else shown


def _aggregate(facts: Facts) -> Iterator[Tile]:
    settings = _settings(facts.config)
    space, rule = settings["aggregate.space.name"], settings["aggregate.rule.name"]
    if space != "factors":
        yield Tile("Averaged", space, _purpose("aggregate.space", space))
    if rule != "mean":
        yield Tile("Rule", _with(facts, "aggregate.rule"), _purpose("aggregate.rule", rule))
    prefix = "aggregate.server_optimizer"
    if any(settings.get(key) != value for key, value in _PLAIN.items() if key.startswith(prefix)):
        server = settings[f"{prefix}.name"]
        yield Tile("Server optimiser", _with(facts, prefix), _purpose(prefix, server))


def _attack(facts: Facts) -> Iterator[Tile]:
    attack = facts.config.get("attack", {}).get("name", "none")
    if attack != "none":
        found = attackers(facts)
        who = f"{_some(facts, found)} " if found else ""
        yield Tile("Attack", _with(facts, "attack", without=("clients",)), f"{who}{_purpose('attack', attack)}")


def _held_out(facts: Facts) -> Iterator[Tile]:
    found = held_out(facts)
    if found:
        number = words.count(len(found), "client", "clients")
        listed = f": {', '.join(found)}" if len(found) <= _NAMED else ""
        yield Tile("Held out", number, f"Evaluated, but never asked to train{listed}.")


def _ranks(facts: Facts) -> Iterator[Tile]:
    adapter = facts.config.get("adapter", {})
    overrides = [one.get("rank") for one in facts.config.get("clients", {}).values() if one.get("rank") is not None]
    drawn = adapter.get("ranks", {}).get("name", "homogeneous")
    if adapter.get("kind", "lora") != "lora" or (drawn == "homogeneous" and not overrides):
        return
    found = sorted(_rank_values(facts, overrides))
    how = "the rank of every client is adapter.rank" if drawn == "homogeneous" else f"drawn by {drawn}"
    named = "; some are named in the recipe" if overrides else ""
    value = f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
    yield Tile("LoRA ranks", value, f"Of the clients: {how}{named}.")


def _rank_values(facts: Facts, overrides: Sequence[Any]) -> set[int]:
    """Ranks that occur: those of the types that were drawn, and those the recipe names."""
    from fedloom.adapters.config import LoraConfig
    from fedloom.adapters.ranks import Ranks

    config = LoraConfig.model_validate(facts.config["adapter"])
    named = {rank for one in overrides for rank in (one.values() if isinstance(one, Mapping) else [one])}
    drawn = Ranks(config, max(1, len(_names(facts))), {}, _seed(facts))
    # One module of each kind that ranks depend on; the real names are in the model.
    modules = [*(pattern.replace("*", "").replace("?", "x") for pattern in config.ranks.attention), "other"]
    return named | {rank for i in range(drawn.clients) for rank in drawn.of(i, modules).values()}


def _own(facts: Facts) -> Iterator[Tile]:
    algorithm = facts.config.get("algorithm", {}).get("name")
    if algorithm in PERSONAL:
        place = f" They are in adapters/clients ({facts.own_models:,})." if facts.own_models else ""
        yield Tile("Personal models", "one for each client", f"Every client is scored with its own.{place}")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**_PLAIN, **flatten(config)}


def _with(facts: Facts, key: str, without: Sequence[str] = ()) -> str:
    """A section's name and its settings: `krum, f 2`; false and null are left out."""
    section: Any = facts.config
    for part in key.split("."):
        section = section.get(part, {})
    hidden = ("name", "form", "v0", "tau", "beta1", "beta2", *without)
    shown = [part for name, value in section.items() if name not in hidden and (part := _setting(name, value))]
    return ", ".join([str(section.get("name", "")), *shown])


def _setting(name: str, value: Any) -> str:
    if value is None or value is False or (name == "momentum" and value == 0):
        return ""
    return name if value is True else f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def _purpose(key: str, value: str) -> str:
    """What the schema says of a variant; empty if this version has none of that name."""
    from fedloom.config import shape

    (field,) = shape.fields_at(tuple(key.split(".")))
    return next((shape.purpose(one) for one in shape.variants(field.annotation) if value in shape.tag_values(one)), "")


def _some(facts: Facts, clients: Sequence[str]) -> str:
    """`2 of 10 clients: a, b.`."""
    listed = f": {', '.join(clients)}" if len(clients) <= _NAMED else ""
    return f"{len(clients):,} of {words.count(facts.client_count, 'client', 'clients')}{listed}."


def _held(facts: Facts) -> frozenset[int]:
    value = facts.config.get("federation", {}).get("holdout", 0)
    if not value or not facts.holdings:
        return frozenset()
    from fedloom.runtime.sampling import holdout

    return holdout(value, _names(facts), _seed(facts))


def _names(facts: Facts) -> list[str]:
    return [str(one["name"]) for one in facts.holdings]


def _seed(facts: Facts) -> int:
    return int(facts.config.get("seed", 0))
