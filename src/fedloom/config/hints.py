"""Where a key that is not legal here would be legal: what the user probably meant."""

from typing import Final

from fedloom.config import shape

SYNONYMS: Final = {
    "lr": "local.lr",
    "steps": "local.steps",
    "rounds": "federation.rounds",
    "name": "run.name",
    "learning_rate": "local.lr",
    "num_rounds": "federation.rounds",
    "n_rounds": "federation.rounds",
    "num_clients": "partition.clients",
    "n_clients": "partition.clients",
    "sample_clients": "federation.cohort",
    "fraction_fit": "federation.cohort",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "model_name_or_path": "model.name",
    "max_steps": "local.steps",
    "local_steps": "local.steps",
    "local_epochs": "local.epochs",
    "num_train_epochs": "local.epochs",
    "per_device_train_batch_size": "local.batch_size",
    "gradient_accumulation_steps": "local.accumulate",
    "max_seq_length": "data.max_length",
    "seq_length": "data.max_length",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "fed_alg": "algorithm.name",
}
"""What other systems call our settings."""


def resolve_key(key: str) -> str | None:
    """The full dotted key a short or full name stands for; None when nothing has that name."""
    if shape.fields_at(tuple(key.split("."))):
        return key
    return next(iter(elsewhere(key.rsplit(".", 1)[-1])), None)


def elsewhere(key: str) -> list[str]:
    """Dotted keys with this name or meaning anywhere in the configuration, shortest first."""
    same = [".".join(e.path) for e in shape.entries() if e.path[-1] == key and "*" not in e.path]
    known = [SYNONYMS[key]] if key in SYNONYMS else []
    return known + sorted(dict.fromkeys(same), key=lambda path: path.count("."))
