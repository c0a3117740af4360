"""The main job in numbers: skills learned together, by one client alone, with all rows in one place; what is forgotten.

Every variant is one `fedloom run` in a process of its own. Training time is the CPU time of rounds, evaluation
excluded; peak memory is the process's largest resident size, evaluation and start included.
"""

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from machine import peak_mib, say, table, write

VARIANTS = {
    "fedavg": ("quickstart", []),
    "fedavg, seed 1": ("quickstart", ["seed=1"]),
    "one client alone": ("quickstart-local", []),
    "centralized": ("quickstart-centralized", []),
}


def main() -> int:
    rows = []
    for name in VARIANTS:
        out = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
        if out.returncode:
            say(out.stderr)
            return 1
        rows.append(json.loads(out.stdout.splitlines()[-1]))
        say(str(rows[-1]))
    say(table(rows))
    write("quickstart", "python benchmarks/run.py quickstart", {"rows": rows})
    return 0


def measure(name: str) -> dict[str, Any]:
    from fedloom import load, run
    from fedloom.events import Evaluated, Event, RoundFinished, RoundStarted

    recipe, overrides = VARIANTS[name]
    spent, begun = [0.0], [0.0]
    evaluations: list[Evaluated] = []

    def sink(event: Event) -> None:
        if isinstance(event, RoundStarted) or (isinstance(event, Evaluated) and event.split == "global"):
            begun[0] = time.process_time()
        elif isinstance(event, RoundFinished):
            spent[0] += time.process_time() - begun[0]
        if isinstance(event, Evaluated):
            evaluations.append(event)

    with tempfile.TemporaryDirectory() as folder:
        config = load(recipe, [*overrides, f"run.folder={folder}"])
        if name == "one client alone":
            scores = alone(config, sink)
        else:
            run(config, [sink])
            scores = {}
    test = [e.metrics["exact_match"] for e in evaluations if e.split == "test"]
    base = [e.metrics["exact_match"] for e in evaluations if e.split == "global"]
    return {
        "variant": name,
        "exact match before": round(test[0], 3),
        "after": round(scores.get("alone", test[-1]), 3),
        "on its own two skills": round(test[-1], 3) if scores else "",
        "base skills before": round(base[0], 3) if base else "",
        "base skills after": round(base[-1], 3) if base else "",
        "training CPU s": round(spent[0], 1),
        "peak MiB": round(peak_mib()),
    }


def alone(config: Any, sink: Any) -> dict[str, float]:
    """The mean over clients of: train alone, then answer everybody's test rows."""
    from fedloom import run
    from fedloom.assembly import Parts
    from fedloom.contracts import Call
    from fedloom.engine.reference import Reference
    from fedloom.engine.requests import Evaluate

    done = run(config, [sink])
    from safetensors.torch import load_file

    from fedloom.adapters.saved import from_peft

    parts = Parts(config)
    engine = Reference(parts.adapted, parts.tokenizer, parts.data.encoder.stop_ids)
    rows = [row for client in parts.data.clients for row in client.get("test")]
    exact = []
    for client in parts.data.clients:
        file = done.folder / "adapters" / "clients" / client.name / "adapter_model.safetensors"
        x = from_peft(parts.adapted.layout, load_file(file))
        engine.admit(
            Call(
                0, Evaluate(x, parts.adapted.layout, rows, ("loss", "exact_match"), 64, config.evaluate.max_new_tokens)
            )
        )
        ((_, score),) = engine.advance()
        exact.append(score.exact / score.answered)
    return {"alone": sum(exact) / len(exact)}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        sys.exit(main())
