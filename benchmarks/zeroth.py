"""Training without gradients: its memory where every parameter is trained, its time where an adapter is, its bytes.

`python benchmarks/zeroth.py [memory|time|rebuild|bytes]`, all by default. memory: each variant in a process of its own,
46 M parameters in float32, 4 texts of 128 tokens; MiB above what the libraries take, so that the ratio is of model and
activations alone. time: CPU seconds of one thread; variants take turns, a ratio is the median of the turns' ratios.
rebuild: CPU time of a number that is drawn and added, when a model is rebuilt from its amounts. bytes: a round's
messages as they are encoded, at two sizes. `--try` runs a toy and writes nothing.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch
from machine import median, say, table
from rig import Rig, encoded
from timing import interleaved, judged, merge, middle, ratios, spread, targets_table
from transformers import LlamaForCausalLM

from fedloom.adapters import full
from fedloom.algorithms import seeded
from fedloom.algorithms.fedkseed import Moves, Start
from fedloom.algorithms.fedkseed import Result as Sent
from fedloom.algorithms.ferret import Result as Coordinates
from fedloom.algorithms.seeded import History, Log
from fedloom.channel.codec import size
from fedloom.contracts import Call
from fedloom.data.encode import Encoded
from fedloom.drift import Drift, moved
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend, Wander
from fedloom.models.load import Base, load_model
from fedloom.noise import Kind
from fedloom.params import Layout, Leaf
from models import END, PAD, QUERY_VALUE, Steps, client, config, words

TEXTS, LENGTH, WALK = 4, 128, 3
KINDS: Final[tuple[Kind, ...]] = ("gaussian", "rademacher", "uniform")
MEMORY = {
    "inference": "transformers' own forward pass and loss",
    "drift": "FedKSeed's client: from a drift, slopes alone go out",
    "weights": "FedMeZO's client: from a vector, weights go out",
    "gradients": "one step of SGD",
}
AIM_MEMORY, AIM_APART, AIM_TOGETHER = 1.1, 1.7, 1.6


def memory(kind: str) -> dict[str, Any]:
    """Every parameter trained: peak memory of each way."""
    rows = []
    for name, what in MEMORY.items():
        command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--model", kind]
        found = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        rows.append({"way": name, "what": what, "MiB": round(found, 1)})
    least = rows[0]["MiB"]
    for row in rows:
        row["of inference"] = round(row["MiB"] / least, 3)
    what = "every parameter, without gradients, from a drift: peak memory over inference"
    return {"rows": rows, "targets": [judged(what, rows[1]["of inference"], "<=", AIM_MEMORY)]}


def one(name: str, kind: str) -> float:
    """MiB one way takes above what was taken before there was a model."""
    settings = config(kind)
    tokenizer = words(settings.vocab_size)
    before = resident()
    torch.manual_seed(0)
    module = LlamaForCausalLM(settings).eval()
    source = random.Random(0)
    batch = [text(source, module.config.vocab_size) for _ in range(TEXTS)]
    if name == "inference":
        ids = torch.tensor([row.ids for row in batch])
        with torch.no_grad():
            for _ in range(2 * WALK):
                module(input_ids=ids, labels=ids, use_cache=False)
        return resident("VmHWM") - before
    adapted = full.adapt(Base(module, kind, torch.device("cpu"), torch.float32, 0, None))
    del module
    engine = Reference(adapted, tokenizer, (END,))
    engine.admit(Call(0, request(name, adapted, batch)))
    ((_, run),) = engine.advance()
    assert run.steps, run
    return resident("VmHWM") - before


def request(name: str, adapted: Any, batch: list[Encoded]) -> Any:
    batches, lrs = [batch] * WALK, [1e-6] * WALK
    if name == "gradients":
        return Descend(
            torch.zeros(adapted.layout.size), adapted.layout, batches[:1], lrs[:1], OptimizerConfig(name="sgd"), 1.0, 1,
            0, "client",
        )  # fmt: skip
    seeds = [(step,) for step in range(WALK)]
    start = Drift(7, torch.tensor([1e-5, -1e-5])) if name == "drift" else torch.zeros(adapted.layout.size)
    return Wander(start, adapted.layout, batches, lrs, seeds, 1e-3, "client", keep=name == "weights")


def rebuild(numbers: int, amounts: int) -> dict[str, Any]:
    """Nanoseconds for each of `numbers` x `amounts`, by distribution; and what 4,096 amounts come to."""
    layout = Layout.of([Leaf(f"layer.{i}", (numbers // 16,)) for i in range(16)])
    rows = []
    for kind in KINDS:
        drift = Drift(7, torch.full((amounts,), 1e-4), kind)
        moved(torch.zeros(layout.size), layout, Drift(7, torch.full((1,), 1e-4), kind))
        times = []
        for _ in range(3):
            began = process_time()
            moved(torch.zeros(layout.size), layout, drift)
            times.append((process_time() - began) / layout.size / amounts * 1e9)
        found = min(times)
        rows.append({"noise": kind, "ns a number": round(found, 2), "4,096 of 1.6 M, s": round(found * 6.55, 1),
                     "4,096 of 46 M, min": round(found * 188.4 / 60, 1)})  # fmt: skip
    return {"rows": rows, "targets": []}


def messages() -> dict[str, Any]:
    """KiB of a client's round, as encoded: pool 4,096, 200 steps."""
    rows, targets = [], []
    for numbers in (1_600_000, 46_000_000):
        layout = Layout.of([Leaf(f"layer.{i}.weight", (numbers // 10,)) for i in range(10)])
        origin = seeded.origin(layout)
        moves = Moves(torch.zeros(200, dtype=torch.int16), torch.zeros(200), 1e-3)
        many = Moves(torch.zeros(0, dtype=torch.int16), torch.zeros(4096), 1e-3)
        amounts, chances, none = torch.zeros(4096), torch.zeros(4096), torch.zeros(0)
        history = History(torch.zeros(1, 4096), 1, {})
        found = {
            "FedKSeed, down": (Start(amounts, none, moves.index[:0], none), 18),
            "FedKSeed, up, 200 steps": (Sent(moves=moves, origin=origin, weight=200.0), 18),
            "FedKSeed, up, any number of steps": (Sent(moves=many, origin=origin, weight=200.0), 18),
            "FedKSeed-Pro, down": (Start(amounts, chances, moves.index[:0], none), 34),
            "FedKSeed-Pro, the server draws, down": (Start(amounts, none, moves.index, none), 18),
            "Ferret, down, a round missed": (Log(4096, 64).down(history)(0), 18),
            "Ferret, up": (Coordinates(gamma=amounts, origin=origin, weight=200.0), 18),
        }
        for name, (message, aim) in found.items():
            kib = size(message) / 1024
            rows.append({"numbers": f"{numbers / 1e6:g} M", "message": name, "KiB": round(kib, 2)})
            targets.append(judged(f"{name}, {numbers / 1e6:g} M numbers: KiB", kib, "<=", aim))
    return {"rows": rows, "targets": targets}


def text(source: random.Random, vocab: int) -> Encoded:
    ids = tuple(source.randrange(2, vocab) for _ in range(LENGTH))
    return Encoded(ids, ids, ids[:1], "", None)


def resident(which: str = "VmRSS") -> float:
    """MiB in memory now, or (VmHWM) at most so far; other counters remember the process this one came from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def time(kind: str, turns: int) -> dict[str, Any]:
    """An adapter trained: a step over one padded forward pass of the base."""
    rows, targets = [], []
    work = client(0, kind, 4, 4)
    base = load_model(Rig(kind, QUERY_VALUE).model).module.eval()
    apart, together = Rig(kind, QUERY_VALUE, tokens=1), Rig(kind, QUERY_VALUE)
    reference = Rig(kind, QUERY_VALUE, engine="reference")
    steps = encoded(work)
    times = interleaved(
        {
            "inference": lambda: inferred(base, work),
            "plain loop": lambda: walked(reference, steps),
            "two passes": lambda: walked(apart, steps),
            "one pass": lambda: walked(together, steps),
        },
        turns,
    )
    aims = {"plain loop": None, "two passes": AIM_APART, "one pass": AIM_TOGETHER}
    for name, aim in aims.items():
        found = ratios(times[name], times["inference"])
        rows.append(
            {"way": name, "over one padded forward pass": middle(found), "range": spread(found), "turns": turns}
        )
        if aim is not None:
            targets.append(judged(f"an adapter, batch 4, {name}: a step over inference", median(found), "<=", aim))
    ms = middle([1e3 * t / len(work) for t in times["inference"]], 1)
    rows.append({"way": "inference", "over one padded forward pass": 1.0, "range": f"{ms} ms", "turns": turns})
    return {"rows": rows, "targets": targets}


def inferred(module: Any, work: Steps) -> None:
    """What transformers computes of each batch: filled up on the right, loss of the labelled tokens."""
    for batch in work:
        longest = max(len(row.ids) for row in batch)
        ids = torch.tensor([row.ids + (PAD,) * (longest - len(row.ids)) for row in batch])
        real = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in batch])
        labels = torch.tensor([row.labels + (-100,) * (longest - len(row.ids)) for row in batch])
        with torch.no_grad():
            float(module(input_ids=ids, attention_mask=real, labels=labels, use_cache=False).loss)


def walked(rig: Rig, steps: list[list[Encoded]]) -> None:
    seeds = [(step,) for step in range(len(steps))]
    rig.engine.admit(Call(0, Wander(rig.adapted.start, rig.layout, steps, [1e-4] * len(steps), seeds, 1e-3, "client")))
    found: list[Any] = []
    while not found:
        found = rig.engine.advance()
    assert found[0][1].steps == len(steps), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="default: all")
    parser.add_argument("--try", dest="toy", action="store_true", help="a toy model, nothing written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="small", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        say(str(one(asked.one, asked.model)))
        return 0
    kind = "micro" if asked.toy else asked.model
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "memory": lambda: memory(kind), "time": lambda: time(kind, 1 if asked.toy else 7),
        "rebuild": lambda: rebuild(16_000 if asked.toy else 1_600_000, 4 if asked.toy else 64), "bytes": messages,
    }  # fmt: skip
    for part in asked.parts or parts:
        result = parts[part]()
        say(f"\n## {part}\n\n{table(result['rows'])}\n\n{targets_table(result['targets'])}\n")
        if not asked.toy:
            merge("zeroth", part, f"python benchmarks/zeroth.py {part}", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
