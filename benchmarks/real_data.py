"""Real data on the embedded model: FedAvg beside each client alone and all rows in one place, equal examples a round.

Small budgets on purpose (minutes of one core). A byte-level model of 1.8 M parameters cannot follow these texts; the
losses show that federated tuning learns what the data has to teach such a model, nothing more. Writes
docs/results/*.svg.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import peak_mib, say, table, write

COMMON = [
    "model.name=nano", "adapter={kind: lora, rank: 16, alpha: 32, targets: all-linear}",
    "evaluate.metrics=[loss, perplexity]",
    "data.overlong=cut", "data.max_length=1600", "evaluate.every=2", "evaluate.rows_per_client=3", "local.batch_size=4",
    "local.lr=2e-3", "local.schedule={name: linear, floor: 0.2}", "evaluate.batch_size=16",
]  # fmt: skip
SETS = {
    "dolly": [
        "data.source=dolly", "partition={method: natural, clients: 10}", "federation.cohort=5",
        "local.steps=3", "federation.rounds=6",
    ],
    "natural_instructions": [
        "data.source=natural_instructions", "partition={method: natural, clients: 40}", "federation.cohort=8",
        "local.steps=3", "federation.rounds=6",
    ],
    "gsm8k": [
        "data.source=gsm8k", "partition={method: iid, clients: 10}", "federation.cohort=5", "local.steps=3",
        "federation.rounds=6", "data.limit=3000",
    ],
}  # fmt: skip
ALGORITHMS = {"fedavg": "fedavg", "alone": "local", "centralized": "centralized"}
PICTURES = Path(__file__).parents[1] / "docs" / "results"


def main() -> int:
    if "FEDLOOM_DATA" not in os.environ:
        say("real_data: skipped; set FEDLOOM_DATA to the folder of data sets")
        return 0
    rows: list[dict[str, Any]] = []
    for data in SETS:
        curves = {}
        for name in ALGORITHMS:
            out = subprocess.run([sys.executable, __file__, data, name], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(out.stdout.splitlines()[-1])
            curves[name] = found.pop("curve")
            rows.append(found)
            say(str(found))
        draw(data, curves)
    say(table(rows))
    write(
        "real_data",
        "FEDLOOM_DATA=... python benchmarks/run.py real_data",
        {"settings": SETS, "common": COMMON, "rows": rows},
    )
    return 0


def measure(data: str, name: str) -> dict[str, Any]:
    from fedloom import load, run
    from fedloom.events import Event, Noted, RoundFinished
    from fedloom.folder import RunFolder

    notes, bytes_up, begun = list[str](), [0], time.process_time()

    def sink(event: Event) -> None:
        if isinstance(event, Noted):
            notes.append(event.message)
        if isinstance(event, RoundFinished):
            bytes_up[0] += event.bytes_up

    with tempfile.TemporaryDirectory() as folder:
        choice = [f"algorithm={ALGORITHMS[name]}", f"data.root={os.environ['FEDLOOM_DATA']}", f"run.folder={folder}"]
        done = run(load("my-data", [*COMMON, *SETS[data], *choice]), [sink])
        seen = RunFolder(done.folder)
        rows, rounds = seen.metrics(), seen.rounds()
        sizes = [client["train"] for client in seen.partition()]
    return {
        "data": data, "variant": name, "clients": len(sizes), "training rows": sum(sizes),
        "loss before": round(float(rows[0]["loss"] or 0), 3), "loss after": round(float(rows[-1]["loss"] or 0), 3),
        "worst tenth after": round(float(rows[-1]["loss_worst_decile"] or 0), 3),
        "examples": int(sum(float(r["examples"] or 0) for r in rounds)), "MB up": round(bytes_up[0] / 1e6, 1),
        "left out": next((n.removeprefix("left out: ") for n in notes if n.startswith("left out")), "none"),
        "CPU s": round(time.process_time() - begun), "peak MiB": round(peak_mib()),
        "curve": [(row["round"], row["loss"]) for row in rows if row["split"] == "test"],
    }  # fmt: skip


def draw(data: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "fedloom"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot([x for x, _ in curve], [y for _, y in curve], marker="o", label=name)
    axes.set(xlabel="round", ylabel="test loss (nats per byte)", title=data)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{data}.svg", metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        sys.exit(main())
