"""Against Flower's own simulation of the same work: ten clients, ten rounds, start and end included.

Flower runs `NumPyClient`s with the plain loop on its Ray backend, one loaded model per actor; ours is a whole
`fedloom.run` with its checkpoints, events and report. CPU seconds are those of all processes that belong to a run,
looked at ten times a second: what a process does in its last tenth is missing. Run by `peers.py` in the peers'
environment; `flower`, `ours DTYPE` are what the measured processes themselves run.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from typing import Any

import flower_runs
import picture
import psutil
from machine import median, say, table
from timing import judged, merge, middle, ratios, spread, targets_table

LEFT_OVER = 36  # PR_SET_CHILD_SUBREAPER: daemons that lose their parent become our children and stay in sight


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="slots")
    parser.add_argument("--try", dest="toy", action="store_true")
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(LEFT_OVER, 1, 0, 0, 0)
    kind, turns = ("micro", 1) if asked.toy else ("tiny", 3)
    commands = {"flower": ["flower"], "ours": ["ours", "float32"], "ours bf16": ["ours", "bfloat16"]}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(turns):
        for name in list(commands)[:: -1 if turn % 2 else 1]:
            found[name].append(watched([sys.executable, __file__, *commands[name], kind, asked.engine]))
            say(f"{name}: {found[name][-1]}")
    cpu = {name: [one["CPU s"] for one in runs] for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        row = {"what": name, "client-rounds": flower_runs.CLIENTS * flower_runs.ROUNDS}
        row |= {key: middle([float(run[key]) for run in runs], 2) for key in runs[0]}
        rows.append({**row, "times faster than Flower": middle(ratios(cpu["flower"], cpu[name]), 2),
                     "range": spread(ratios(cpu["flower"], cpu[name]))})  # fmt: skip
    targets = [
        judged("100 client-rounds, tiny, batch 4: times faster than Flower's simulation",
               median(ratios(cpu["flower"], cpu["ours"])), ">=", 1.7, "than Flower's simulation, tiny, batch 4"),
        judged("the same with a bfloat16 base", median(ratios(cpu["flower"], cpu["ours bf16"])), ">=", 3.0,
               "than Flower's simulation, tiny, batch 4, bf16 base"),
        judged("start beyond imports and loading the model, seconds",
               median([run["start s"] for run in found["ours"]]), "<=", 1.0),
    ]  # fmt: skip
    say(f"\n## flower\n\n{table(rows)}\n\n{targets_table(targets)}\n")
    if not asked.toy and asked.engine == "slots":
        versions = {"flwr": version("flwr"), "ray": version("ray"), "turns": turns}
        merge("peers", "flower", "python benchmarks/peers.py flower", {**versions, "rows": rows, "targets": targets})
        picture.draw()
    return 0


def watched(command: list[str]) -> dict[str, Any]:
    """Run it; CPU seconds of all its processes, wall seconds, the most memory they held, and what it said itself."""
    seen, most, begun = dict[tuple[int, float], float](), 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(command, stdout=out, stderr=words, text=True)
        while True:
            over, held = process.poll() is not None, 0
            below = psutil.Process().children(recursive=True)
            for one in below:
                try:
                    times, memory = one.cpu_times(), one.memory_info()
                    seen[one.pid, one.create_time()] = times.user + times.system
                    held += memory.rss - memory.shared
                except psutil.Error:
                    continue  # gone between two looks
            most = max(most, held)
            if over:
                break
            time.sleep(0.1)
        wall = time.perf_counter() - begun
        for left in below:  # daemons that outlived the run; all of them are our own descendants
            try:
                left.terminate()
            except psutil.Error:
                continue
        psutil.wait_procs(below, timeout=10)
        out.seek(0)
        words.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command} failed: {words.read()[-3000:]}")
        said = json.loads(out.read().splitlines()[-1])
    return {"CPU s": round(sum(seen.values()), 2), "wall s": round(wall, 1), "processes": len(seen),
            "private MiB at most": round(most / 2**20), **said}  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["flower"]:
        print(json.dumps(flower_runs.flower(sys.argv[2])))
    elif sys.argv[1:2] == ["ours"]:
        print(json.dumps(flower_runs.ours(*sys.argv[2:5])))
    else:
        sys.exit(main())
