"""Whether `fedloom doctor RECIPE` is right: the memory it foretells beside the largest resident size of the run itself.

Each configuration is planned in one process and run for a round in another. The last two were chosen after the plan was
finished. `python benchmarks/memory.py [NAME ...]`
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import peak_mib, say, table, write

import models

ROUND = ["federation.rounds=1", "evaluate.every=0", "evaluate.rows_per_client=4", "evaluate.metrics=[loss]"]
LINEAR = "adapter={rank: 8, targets: all-linear}"
OWN = ["partition={method: iid, clients: 8}", "federation.cohort=8", "local.steps=3"]
CASES: dict[str, tuple[str, str, list[str]]] = {
    "nano, LoRA, 8 side by side": ("quickstart", "", ["local.steps=4"]),
    "46 M, LoRA, 8 side by side": ("own-data", "small", [*OWN, LINEAR, "local.batch_size=4", "model.dtype=float32"]),
    "46 M, LoRA, one at a time": (
        "own-data", "small", [*OWN, LINEAR, "local.batch_size=8", "model.dtype=bfloat16", "engine.name=reference"],
    ),
    "4 M, every parameter": ("own-data", "tiny", [*OWN, "adapter={kind: full}", "local.batch_size=8"]),
    "71 M, rank 64, 4 side by side, bfloat16": (
        "own-data", "wide",
        [*OWN, "adapter={rank: 64, targets: all-linear}", "engine.slots=4", "model.dtype=bfloat16",
         "local.batch_size=2"],
    ),
    "46 M, LoRA, checkpointing, fused attention": (
        "own-data", "small",
        [*OWN, LINEAR, "local.batch_size=8", "model.dtype=float32", "model.gradient_checkpointing=true",
         "model.attention=sdpa", "engine.tokens_per_step=2048"],
    ),
}  # fmt: skip
"""By name: recipe, model of `models.py`, overrides."""


def overrides(name: str) -> tuple[str, list[str]]:
    """The recipe of a case and all of its settings."""
    recipe, kind, changes = CASES[name]
    if not kind:
        return recipe, [*ROUND, *changes]
    folder = models.saved(kind)
    rows = folder / "rows.jsonl"
    if not rows.exists():
        rows.write_text("\n".join(_rows(kind)) + "\n")
    data = [
        f"model.name={folder}",
        f"data.source={rows}",
        "data.max_length=256",
        "data.template=plain",
        "data.test=0.1",
    ]
    return "my-data", [*ROUND, *data, *changes]


def _rows(kind: str) -> list[str]:
    source, size = random.Random(5), models.SHAPES[kind]["vocab_size"]
    made = [models.row(source, size) for _ in range(800)]
    return [json.dumps({"instruction": _text(r.ids[: r.prompt]), "output": _text(r.ids[r.prompt : -1])}) for r in made]


def _text(ids: tuple[int, ...]) -> str:
    return " ".join(f"w{i}" for i in ids)


def measured(name: str, what: str) -> dict[str, Any]:
    """In a process of its own: the plan, or the peak of the run."""
    from fedloom import load, run
    from fedloom.planning import plan

    torch.set_num_threads(1)
    recipe, changes = overrides(name)
    with tempfile.TemporaryDirectory() as folder:
        config = load(recipe, [*changes, f"run.folder={folder}"])
        if what == "plan":
            found = plan(config)
            return {"plan": found.total / 2**20, "parts": {item.name: item.bytes / 2**20 for item in found.items}}
        run(config)
    return {"peak": peak_mib()}


def main() -> int:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("names", nargs="*", help="cases; default: all")
    wanted.add_argument("--what", choices=["plan", "run"], help=argparse.SUPPRESS)
    asked = wanted.parse_args()
    if asked.what:
        say(json.dumps(measured(asked.names[0], asked.what)))
        return 0
    rows = []
    for name in asked.names or CASES:
        found: dict[str, Any] = {}
        for what in ("plan", "run"):
            command = [sys.executable, str(Path(__file__)), name, "--what", what]
            found |= json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        rows.append({
            "run": name, "plan MiB": round(found["plan"]), "peak MiB": round(found["peak"]),
            "plan over peak": round(found["plan"] / found["peak"], 3),
            **{part: round(size) for part, size in found["parts"].items()},
        })  # fmt: skip
        say(str(rows[-1]))
    say(table(rows))
    if not asked.names:
        write("memory", "python benchmarks/run.py memory", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
