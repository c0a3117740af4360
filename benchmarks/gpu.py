"""Clients side by side on a GPU: Llama-shaped random models of 0.5 and 7 billion parameters, bfloat16, LoRA.

Batches of 1 and 4 rows of 64 and 512 tokens: the plain engine (one client after another, eager), the same loop
compiled, and 4, 8 and 16 clients together; real tokens per second, most memory, and the share of the roofline, which is
the larger of two times: the operations at the speed of a large product measured here, and reading every weight once
forward and once backward at the speed of a large copy measured here.

`python benchmarks/gpu.py [--models 0.5b 7b]`; without CUDA it ends with 2. `--device cpu --tiny` tries the script.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import median, say, table
from plain import Plain
from rig import Rig, encoded
from timing import merge, spread
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from models import END, PAD, PARTS, QUERY_VALUE, Row, Steps, words

NUMBERS = {"toy": (261, 64, 128, 2, 2), "0.5b": (32000, 1024, 4096, 24, 16), "7b": (32000, 4096, 11008, 32, 32)}
SIZES = {kind: dict(zip(PARTS, numbers, strict=True)) for kind, numbers in NUMBERS.items()}
CASES = [(batch, length) for length in (64, 512) for batch in (1, 4)]
SLOTS = (4, 8, 16)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    steps: int = 4
    """Of a client-round."""
    turns: int = 5
    clients: int = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("0.5b", "7b"), default=["0.5b", "7b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy model, one turn, nothing written")
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        say("gpu: this torch sees no CUDA device; run it where there is one, or try the script: --device cpu --tiny")
        return 2
    if not asked.device.startswith("cuda") and not asked.tiny:
        say(f"gpu: models of this size are not measured on {asked.device}; add --tiny to try the script there")
        return 2
    plan, kinds = (Plan(2, 1, 4), ["toy"]) if asked.tiny else (Plan(), asked.models)
    rows = [row for kind in kinds for row in measured(kind, asked.device, plan)]
    say(f"\n## gpu\n\n{table(rows)}\n")
    if not asked.tiny:
        merge("gpu", "gpu", "python benchmarks/gpu.py", {"gpu": torch.cuda.get_device_name(), "rows": rows})
    return 0


def measured(kind: str, device: str, plan: Plan) -> Iterator[dict[str, Any]]:
    """Rows of one model; each way of training in turn, with the model loaded anew."""
    limits = Limits(torch.device(device))
    with saved(kind, device) as folder:
        for batch, length in CASES[: 1 if kind == "toy" else None]:
            work = [client(kind, seed, batch, length, plan.steps) for seed in range(plan.clients)]
            for name, make in ways(kind, folder, device, work).items():
                yield {"model": kind, "batch": batch, "length": length, "way": name,
                       **one(make, kind, work, limits, plan.turns)}  # fmt: skip


def one(
    make: Callable[[], Callable[[], object]], kind: str, work: list[Steps], limits: "Limits", turns: int
) -> dict[str, Any]:
    """Tokens per second, memory, share of the roofline; or why there is none of it."""
    cuda = limits.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        train, seconds = make(), list[float]()
        for _ in range(turns + 2):
            begun = time.perf_counter()
            train()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    except torch.cuda.OutOfMemoryError:
        return {"tokens / s": "out of memory", "range": "", "peak GiB": "", "% of the roofline": ""}
    kept = seconds[2:]
    count = sum(len(row.ids) for steps in work for rows in steps for row in rows)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    row = {"tokens / s": round(count / median(kept)), "range": spread([count / s for s in kept], 0)}
    share = limits.seconds(kind, work) / median(kept)
    found = {**row, "peak GiB": round(peak, 2), "% of the roofline": round(100 * share, 1)}
    say(str(found))
    return found


def ways(kind: str, folder: Path, device: str, work: list[Steps]) -> dict[str, Callable[[], Callable[[], object]]]:
    held = [encoded(steps) for steps in work]

    def engine(name: str, slots: int = 1) -> Callable[[], object]:
        rig = Rig(kind, QUERY_VALUE, dtype="bfloat16", slots=slots, engine=name, device=device, folder=folder)
        return lambda: rig.train(held)

    def compiled() -> Callable[[], object]:
        plain = Plain(folder, QUERY_VALUE, device=device, dtype=torch.bfloat16)
        start = plain.take()
        plain.model.forward = torch.compile(plain.model.forward, dynamic=True)
        return lambda: [plain.train(start, steps) for steps in work]

    found: dict[str, Callable[[], Callable[[], object]]] = {"one by one": lambda: engine("reference")}
    found["one by one, compiled"] = compiled
    return found | {f"{slots} together": (lambda slots=slots: engine("slots", slots)) for slots in SLOTS}  # type: ignore[misc]


class Limits:
    """What the device can do, measured on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        n = 8192 if device.type == "cuda" else 512
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        big = torch.empty(2**30 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device)
        other = torch.empty_like(big)
        self.speed = 2.0 * n**3 / timed(lambda: a @ b, device)
        self.bandwidth = 2.0 * big.numel() / timed(lambda: other.copy_(big), device)

    def seconds(self, kind: str, work: list[Steps]) -> float:
        """The least time: all clients' tokens at full speed, or the weights read twice for every step of a batch."""
        shape = SIZES[kind]
        wide, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
        weights = layers * (4 * wide * wide + 3 * wide * inner)
        rows = [row for steps in work for step in steps for row in step]
        count, learned = sum(len(row.ids) for row in rows), sum(len(row.ids) - row.prompt for row in rows)
        attention = 6 * wide * layers * sum(len(row.ids) ** 2 for row in rows)
        head = shape["vocab_size"] * wide
        mathematics = (4.0 * weights * count + attention + 4.0 * head * learned) / self.speed
        reading = len(work[0]) * 2 * 2.0 * (weights + head) / self.bandwidth  # all clients in one pass for each step
        return max(mathematics, reading)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the median of ten after three."""
    found = []
    for _ in range(13):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return median(found[3:])


@contextmanager
def saved(kind: str, device: str) -> Iterator[Path]:
    """A random model in a folder of its own, made on the device and removed at the end."""
    shape = SIZES[kind]
    settings = LlamaConfig(
        **shape, num_key_value_heads=shape["num_attention_heads"], max_position_embeddings=1024,
        tie_word_embeddings=False, pad_token_id=PAD, eos_token_id=END, bos_token_id=END, dtype=torch.bfloat16,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model: nn.Module = LlamaForCausalLM(settings).to(torch.bfloat16)
        model.save_pretrained(name)
        words(shape["vocab_size"]).save_pretrained(name)
        del model
        yield Path(name)


def client(kind: str, seed: int, batch: int, length: int, steps: int) -> Steps:
    """Rows of one length, the first two fifths of them the prompt."""
    source, prompt = random.Random(seed), length * 2 // 5

    def row() -> Row:
        ids = tuple(source.randrange(2, SIZES[kind]["vocab_size"]) for _ in range(length))
        return Row(ids, (-100,) * prompt + ids[prompt:], prompt)

    return [[row() for _ in range(batch)] for _ in range(steps)]


if __name__ == "__main__":
    sys.exit(main())
