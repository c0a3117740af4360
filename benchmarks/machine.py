"""What a result was measured on, and where results go."""

import json
import platform
import resource
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

import fedloom

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    import peft
    import transformers

    return {
        "date": date.today().isoformat(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": torch.cpu.get_capabilities().get("num_logical_cores"),
        "bf16": bool(torch.cpu.get_capabilities().get("avx512_bf16")),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "fedloom": fedloom.__version__,
    }


def write(name: str, command: str, result: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"command": command, "machine": machine(), **result}, indent=1) + "\n")
    return path


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(str(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def median(values: list[float]) -> float:
    return statistics.median(values)


def say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
