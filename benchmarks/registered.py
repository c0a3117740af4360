"""1,613 registered clients (natural_instructions, real) against 16, with the same cohort: start, rounds, memory.

Each federation runs in a process of its own; rounds ask 16 clients (1 % of 1,613). The small federation is the first
16 clients of the same data. Peak memory is the process's largest resident size.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

from machine import median, peak_mib, say, table, write

ROUNDS, COHORT = 8, 16


def main() -> int:
    root = os.environ.get("FEDLOOM_DATA")
    if root is None:
        say("registered: skipped; set FEDLOOM_DATA to a folder that holds natural_instructions/")
        return 0
    rows = [json.loads(subprocess.check_output([sys.executable, __file__, str(n)], text=True)) for n in (16, 1613)]
    few, many = rows
    ratios = {
        "round": round(many["round CPU s"] / few["round CPU s"], 3),
        "memory": round(many["peak MiB"] / few["peak MiB"], 3),
    }
    say(table(rows))
    say(f"ratios 1,613 / 16: {ratios}")
    write("registered", "FEDLOOM_DATA=... python benchmarks/run.py registered", {"rows": rows, "ratios": ratios})
    return 0


def measure(clients: int) -> dict[str, Any]:
    from fedloom import load
    from fedloom.events import Event, RoundFinished, RoundStarted
    from fedloom.experiment import run
    from fedloom.models.load import load_model

    loaded = [0.0]
    stamps, tokens = list[float](), list[int]()

    def sink(event: Event) -> None:
        if isinstance(event, RoundStarted) and not stamps:
            loaded.append(time.perf_counter() - loaded[0])
        if isinstance(event, RoundFinished):
            stamps.append(time.process_time())
            tokens.append(event.tokens)

    with tempfile.TemporaryDirectory() as folder:
        config = load(
            "quickstart",
            [
                "data.source=natural_instructions", f"data.root={os.environ['FEDLOOM_DATA']}",
                f"partition={{method: natural, clients: {clients}}}", f"federation.cohort={COHORT}",
                f"federation.rounds={ROUNDS}", "data.max_length=256", "data.overlong=cut", "data.test=0.1",
                "evaluate.every=0", "evaluate.forgetting=false", "evaluate.clients=1", "evaluate.metrics=[loss]",
                "evaluate.rows_per_client=1", "local.steps=4", "local.batch_size=4", f"run.folder={folder}",
            ],
        )  # fmt: skip
        load_model(config.model)  # warms what every start pays: imports and the file cache
        loaded[0] = time.perf_counter()
        run(config, [sink])
    spans = [b - a for a, b in pairwise(stamps)]
    return {
        "clients": clients, "cohort": COHORT, "start s": round(loaded[1], 1), "round CPU s": round(median(spans), 3),
        "tokens / round": round(median([float(t) for t in tokens])),
        "CPU ms / 1k tokens": round(1e6 * sum(spans) / sum(tokens[1:]), 1), "peak MiB": round(peak_mib()),
    }  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        sys.exit(main())
