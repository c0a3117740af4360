"""Offsite-tuning in small: does what clients tune on an emulator help the owner's model, and what must they be given?

The owner's model is a Llama of eight blocks, trained as the embedded one was (`tools/train_nano.py`, with the arguments
in DEEP); its folder is given, or it is trained first (about half an hour of CPU). Every line of results/offsite.jsonl
is one run of recipe `offsite-nano` on it, and is not run again.

    python benchmarks/offsite.py --model DIR [--seeds N] [--minutes M] [--tables]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, say, table, write

CACHE = RESULTS / "offsite.jsonl"
DEEP = ["--steps", "2400", "--hold", "0.1", "--hidden", "128", "--heads", "4", "--mlp", "352", "--layers", "8"]
COMMON = ["evaluate.every=0", "evaluate.metrics=[loss, exact_match]", "data.public=0.1"]
DROP = ["offsite.method=drop"]
ARMS: dict[str, list[str]] = {
    "drop 0.5": [*DROP, "offsite.drop_ratio=0.5"],
    "no emulator: LoRA in all blocks": ["offsite=null"],
    "distilled, drop 0.5": ["offsite.method=distill", "offsite.align.lm_weight=0", "offsite.align.steps=300"],
    "drop 0.2": [*DROP, "offsite.drop_ratio=0.2"],
    "drop 0.8": [*DROP, "offsite.drop_ratio=0.8"],
    "no emulator: LoRA in the clients' blocks": ["offsite=null", "adapter.layers=[0, 7]"],
}
"""What differs from the recipe, by name."""


def measure(model: Path, name: str, seed: int) -> dict[str, Any]:
    """One run: scores before and after, of the owner's model and of the emulator."""
    from fedloom import emulating, load, run
    from fedloom.events import Evaluated, Event

    scores: list[dict[str, Any]] = []

    def sink(event: Event) -> None:
        if isinstance(event, Evaluated):
            found = {key: round(event.metrics[key], 4) for key in ("loss", "exact_match")}
            scores.append({"round": event.round, "split": event.split, **found})

    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"model.name={model}", *COMMON, *ARMS[name], f"seed={seed}", f"run.folder={folder}/runs"]
        config = load("offsite-nano", changes)
        told: dict[str, Any] = {}
        if config.offsite is not None:
            built = emulating.build(config, Path(folder) / "emulator")
            told = {"emulator MB": round(built.bytes / 1e6, 2), "owner MB": round(built.base_bytes / 1e6, 2)}
            if built.facts.align is not None:
                told |= {"apart before": built.facts.align.kd_before, "apart after": built.facts.align.kd_after}
            config = load("offsite-nano", [*changes, f"offsite.emulator={folder}/emulator"])
        run(config, [sink])
    return {"arm": name, "seed": seed, **told, "scores": scores, "CPU s": round(time.process_time() - begun)}


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm: means over seeds, exact match in per cent and loss."""
    made = []
    for name in ARMS:
        runs = [one for one in found if one["arm"] == name]
        if not runs:
            continue
        row: dict[str, Any] = {"arm": name, "seeds": len(runs), "emulator MB": runs[0].get("emulator MB", "")}
        for split, called in (("test", "owner"), ("emulator", "emulator")):
            for place, when in ((0, "before"), (-1, "after")):
                picked = [[s for s in one["scores"] if s["split"] == split] for one in runs]
                row[f"{called} {when}"] = _shown([one[place] for one in picked if one])
        row["CPU s"] = round(statistics.fmean(one["CPU s"] for one in runs))
        made.append(row)
    return made


def _shown(scores: list[dict[str, Any]]) -> str:
    if not scores:
        return ""
    exact = [100 * one["exact_match"] for one in scores]
    apart = f" ({min(exact):.1f} .. {max(exact):.1f})" if len(exact) > 1 else ""
    return f"{statistics.fmean(exact):.1f} %{apart}, {statistics.fmean(one['loss'] for one in scores):.2f}"


def main() -> int:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--model", type=Path, help="folder of the owner's model; default: train it")
    wanted.add_argument("--seeds", type=int, default=3)
    wanted.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    wanted.add_argument("--tables", action="store_true", help="run nothing")
    asked, begun = wanted.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    found = [json.loads(line) for line in CACHE.read_text().splitlines()] if CACHE.exists() else []
    model = asked.model or Path(tempfile.gettempdir()) / "fedloom-benchmarks" / "deep"
    if not asked.tables and not model.exists():
        tool = Path(__file__).parents[1] / "tools" / "train_nano.py"
        subprocess.check_call([sys.executable, str(tool), *DEEP, "--out", str(model)])
    for seed in range(asked.seeds) if not asked.tables else ():
        for name in ARMS:
            known = any((one["arm"], one["seed"]) == (name, seed) for one in found)
            if known or time.monotonic() - begun > 60 * asked.minutes:
                continue
            found.append(measure(model, name, seed))
            say(str(rows(found)[-1] if len(ARMS) == 1 else rows([found[-1]])[0]))
            with CACHE.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
    if found:
        say(table(rows(found)))
        write("offsite", "python benchmarks/run.py offsite", {"model": DEEP, "rows": rows(found)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
