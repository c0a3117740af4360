"""Small finished runs to evaluate."""

from pathlib import Path

from fedloom import experiment
from fedloom.config import load

SMALL = [
    "data.playground.rows=4", "data.playground.test_rows=1", "partition.clients=2", "partition.per_client=1",
    "local.steps=1", "local.batch_size=4", "local.lr=0.02", "federation.rounds=1", "evaluate.every=1",
    "evaluate.metrics=[loss]", "evaluate.forgetting=false", "model.dtype=float32", "model.device=cpu",
]  # fmt: skip
KINDS = {
    "shared": ["adapter.rank=4"],
    "head": ["adapter.rank=4", "adapter.targets=[q_proj, lm_head]"],
    "full": ["adapter={kind: full}", "local.lr=0.002"],
    "prompt": ["adapter.kind=prompt"],
    "local": ["adapter.rank=4", "algorithm={name: local}", "aggregate.server_optimizer.momentum=0"],
}


def ran(parent: Path, kind: str, *overrides: str) -> Path:
    """The folder of a finished run."""
    return experiment.run(load("quickstart", [*SMALL, *KINDS[kind], f"run.folder={parent}", *overrides])).folder
