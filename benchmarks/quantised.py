"""What a base in 8 or 4 bits costs: bytes of its linear layers, loss after 100 steps, time of a step.

Real text (dolly, rows of at most 256 bytes, all in one place) on nano, LoRA, two seeds; the loss is that of rows that
nobody trains on. Bytes are of the tensors that stand for the linear layers inside, scales too.
`FEDLOOM_DATA=... python benchmarks/quantised.py`
"""

import os
import sys
import tempfile
import time
from typing import Any

import torch
from machine import say, table, write

STEPS = 100
CASES = ("float32", "bfloat16", "int8", "nf4")
SEEDS = (0, 1)
SETTING = [
    "model.name=nano", "algorithm=centralized", "data.max_length=256", "data.limit=1500", "local.batch_size=4",
    "local.lr=2e-3", "federation.rounds=1", "evaluate.every=0", "evaluate.metrics=[loss]",
]  # fmt: skip


def measure(case: str, seed: int) -> dict[str, Any]:
    from fedloom import load, run
    from fedloom.events import Event, RoundFinished
    from fedloom.models.config import ModelConfig
    from fedloom.models.load import load_model

    changes = ["model.dtype=float32"] if case == "float32" else ["model.dtype=bfloat16"]
    changes += [f"model.quantize={case}"] if case in ("int8", "nf4") else []
    spent = [0.0]

    def sink(event: Event) -> None:
        if isinstance(event, RoundFinished):
            spent[0] = event.seconds

    with tempfile.TemporaryDirectory() as folder:
        more = [f"local.steps={STEPS // 4}", f"run.folder={folder}", f"data.root={os.environ['FEDLOOM_DATA']}"]
        config = load("dolly", [*SETTING, *more, *changes, f"seed={seed}"])  # four clients' steps in one place
        begun = time.process_time()
        done = run(config, [sink])
    held = sum(map(_bytes, _inside(load_model(ModelConfig(**config.model.model_dump())).module)))
    whole = sum(map(_bytes, _inside(load_model(ModelConfig(dtype="float32")).module)))
    return {
        "base": case, "seed": seed, "linear layers, of float32": round(held / whole, 3),
        "loss": round(done.metrics["loss"], 4), "seconds of 100 steps": round(spent[0], 1),
        "CPU s": round(time.process_time() - begun, 1),
    }  # fmt: skip


def _inside(module: Any) -> list[torch.nn.Module]:
    head = module.get_output_embeddings()
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]


def _bytes(layer: Any) -> int:
    state = getattr(layer.weight, "quant_state", None)
    more = [getattr(layer.weight, "SCB", None)] if state is None else list(state.as_dict().values())
    tensors = [layer.weight.data, *(one for one in more if isinstance(one, torch.Tensor))]
    return sum(one.numel() * one.element_size() for one in tensors)


def main() -> int:
    torch.set_num_threads(1)
    if "FEDLOOM_DATA" not in os.environ:
        say("quantised: skipped; set FEDLOOM_DATA to the folder of data sets")
        return 0
    rows = []
    for seed in SEEDS:
        for case in CASES:
            rows.append(measure(case, seed))
            say(str(rows[-1]))
    of = {row["seed"]: row["loss"] for row in rows if row["base"] == "bfloat16"}
    rows = [{**row, "loss, of bfloat16": round(row["loss"] / of[row["seed"]], 4)} for row in rows]
    say(table(rows))
    write("quantised", "FEDLOOM_DATA=... python benchmarks/run.py quantised", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
