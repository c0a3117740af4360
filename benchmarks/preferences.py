"""What preference tuning teaches: pairs of the playground and of hh-rlhf, together, by one client alone, in one place.

Each line is one run of a shipped recipe; accuracies are on held-out pairs of all clients, and 0.5 at the start by
definition: nothing was tuned yet, so both answers have the reward 0. A client alone is scored on everybody's pairs, and
on its own. CPU seconds are those of rounds. `python benchmarks/preferences.py [--seeds N]`; every finished line is
written at once, and is not run again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, machine, say, table

from fedloom import load, run
from fedloom.adapters.saved import from_peft
from fedloom.assembly import Parts
from fedloom.config import Config
from fedloom.contracts import Call
from fedloom.engine.requests import Evaluate
from fedloom.events import Event, Noted, RoundFinished, RoundStarted
from fedloom.folder import RunFolder

PLAYGROUND, HH = "playground-dpo", "hh-rlhf-dpo"
VARIANTS: dict[tuple[str, str], list[str]] = {
    (PLAYGROUND, "fedavg"): [],
    (PLAYGROUND, "one client alone"): ["algorithm=local"],
    (PLAYGROUND, "centralized"): ["algorithm=centralized"],
    (HH, "fedavg"): [],
    (HH, "centralized"): ["algorithm=centralized"],
}
KEPT = "preferences"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"{KEPT}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    for seed in range(asked.seeds):
        for recipe, name in VARIANTS:
            known = any((row["recipe"], row["variant"], row["seed"]) == (recipe, name, seed) for row in rows)
            if known or (recipe == HH and "FEDLOOM_DATA" not in os.environ):
                continue
            rows.append(measure(recipe, name, seed))
            say(str(rows[-1]))
            written = {"command": "FEDLOOM_DATA=... python benchmarks/run.py preferences", "machine": machine()}
            path.write_text(json.dumps({**written, "rows": rows}, indent=1) + "\n")
    say(table(rows))
    return 0


def measure(recipe: str, name: str, seed: int) -> dict[str, Any]:
    spent, begun, notes = [0.0], [0.0], list[str]()

    def sink(event: Event) -> None:
        if isinstance(event, RoundStarted):
            begun[0] = time.process_time()
        elif isinstance(event, RoundFinished):
            spent[0] += time.process_time() - begun[0]
        elif isinstance(event, Noted) and event.message.startswith("left out"):
            notes.append(event.message.removeprefix("left out: "))

    with tempfile.TemporaryDirectory() as folder:
        changes = [*VARIANTS[recipe, name], f"seed={seed}", f"run.folder={folder}"]
        if recipe == HH:
            changes += [f"data.root={os.environ['FEDLOOM_DATA']}", "data.split=test"]
        config = load(recipe, changes)
        done = run(config, [sink])
        found = [row for row in RunFolder(done.folder).metrics() if row["split"] == "test"]
        everybody = alone(config, done.folder) if name == "one client alone" else None
    first, last = found[0], found[-1]
    accuracy = round(float(last["preference_accuracy"] or 0), 3)
    return {
        "recipe": recipe, "variant": name, "seed": seed,
        "before": round(float(first["preference_accuracy"] or 0), 3),
        "half way": round(float(found[len(found) // 2]["preference_accuracy"] or 0), 3) if everybody is None else "",
        "after": accuracy if everybody is None else round(everybody, 3),
        "on its own pairs": "" if everybody is None else accuracy,
        "loss": round(float(last["loss"] or 0), 3), "margin": round(float(last["margin"] or 0), 2),
        "left out": "; ".join(notes) or "none", "training CPU s": round(spent[0], 1),
    }  # fmt: skip


def alone(config: Config, folder: Path) -> float:
    """The mean over clients of how often a client's own model prefers right on everybody's held-out pairs."""
    from safetensors.torch import load_file

    parts = Parts(config)
    assert parts.chosen is not None
    engine = parts.chosen.engine
    rows = [row for client in parts.data.clients for row in client.get("test")]
    shares = []
    for client in parts.data.clients:
        file = folder / "adapters" / "clients" / client.name / "adapter_model.safetensors"
        x = from_peft(parts.adapted.layout, load_file(file))
        engine.admit(Call(0, Evaluate(x, parts.adapted.layout, rows, ("loss",), 32, 0)))
        ((_, score),) = engine.advance()
        shares.append(score.won / score.pairs)
    return sum(shares) / len(shares)


if __name__ == "__main__":
    sys.exit(main())
