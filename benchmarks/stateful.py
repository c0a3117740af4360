"""100,000 registered clients against 100, with the same cohort: round time, memory, commit and rewind.

FedAvg, SCAFFOLD and Ditto through `Hub` and `Site`, client states of 100,000 numbers on disk (`OnDisk`). Training is a
toy, a few vector operations, and rows are made when asked for, so that the federation's own cost is what is seen. Every
registered client has a memory on disk from an earlier round; those about to be asked have a whole one. A round ends as
in an experiment, with the commit of its checkpoint. Each row is a process of its own; the two sizes take turns.

Rewinds: `first` forgets what lies beyond a checkpoint when a run resumes, `later` repeats a round of a running one.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from machine import median, say, table, write
from torch import Tensor

from fedloom import rng
from fedloom.algorithms.ditto import Ditto
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.scaffold import Scaffold
from fedloom.channel.codec import encode
from fedloom.contracts import Call, ClientId, Profile, Trained
from fedloom.engine.config import LocalConfig, OptimizerConfig
from fedloom.engine.requests import Descend
from fedloom.params import Layout, Leaf
from fedloom.rounds import one_round
from fedloom.runtime.client import LocalPlan
from fedloom.runtime.federation import Hub
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.store import Memory, OnDisk, Store
from fedloom.spaces.factors import Factors

NUMBERS, COHORT, STEPS, ROUNDS, WARM, REPEATS = 100_000, 10, 5, 60, 5, 3
SIZES = (100, 100_000)
LAYOUT = Layout.of([Leaf("w", (NUMBERS,))])
PAGES: dict[str, Callable[[], Any]] = {
    "fedavg": lambda: FedAvg(Factors(LAYOUT)),
    "scaffold": lambda: Scaffold(),
    "ditto": lambda: Ditto(Factors(LAYOUT), lam=0.1),
}
KEPT = {"fedavg": "", "scaffold": "c", "ditto": "v"}
"""What each page's clients remember."""


def main() -> int:
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(REPEATS):
        for name in PAGES:
            for clients in SIZES:
                out = subprocess.check_output([sys.executable, __file__, name, str(clients)], text=True)
                found.setdefault((name, clients), []).append(json.loads(out))
                say(f"{name} {clients}: {found[name, clients][-1]}")
    middle = {key: {part: median([run[part] for run in runs]) for part in runs[0]} for key, runs in found.items()}
    rows = [
        {"algorithm": name, "clients": n, **{part: round(value, 3) for part, value in values.items()}}
        for (name, n), values in middle.items()
    ]
    few, many = SIZES
    parts = ("round CPU ms", "round ms", "extra MiB", "peak MiB")
    ratios = [
        {"algorithm": name, **{part: round(middle[name, many][part] / middle[name, few][part], 3) for part in parts}}
        for name in PAGES
    ]
    say(table(rows))
    say(table(ratios))
    setting = {"numbers": NUMBERS, "cohort": COHORT, "rounds": ROUNDS}
    write("stateful", "python benchmarks/run.py stateful", {**setting, "rows": rows, "ratios": ratios})
    return 0


def measure(name: str, clients: int) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return rounds(name, clients, Path(folder))


def rounds(name: str, clients: int, folder: Path) -> dict[str, float]:
    page = PAGES[name]()
    tasks, store = Tasks(page), Store(OnDisk(folder))
    start = torch.zeros(NUMBERS)
    remembered(folder, clients, name, asked(page, clients))
    begun = resident("VmRSS")
    with suppress(OSError):  # lets the kernel forget the peak so far
        Path("/proc/self/clear_refs").write_text("5")
    hub = federation(tasks, store, clients)
    first = spent(lambda: hub.rewind(0))
    state, cpu, wall, commits, later = page.init(start), list[float](), list[float](), list[float](), list[float]()
    for r in range(WARM + ROUNDS):
        cpu_begun, wall_begun = time.process_time(), time.perf_counter()
        state = one_round(page, state, hub, 0)
        hub.round += 1
        commits.append(spent(lambda: hub.commit(max(hub.round - 1, 0), hub.round)))
        cpu.append(time.process_time() - cpu_begun)
        wall.append(time.perf_counter() - wall_begun)
        if r % 10 == 9:
            later.append(spent(lambda: hub.rewind(hub.round)))
    peak = resident("VmHWM")
    return {
        "round CPU ms": median(cpu[WARM:]) * 1e3, "round ms": median(wall[WARM:]) * 1e3,
        "commit ms": median(commits) * 1e3, "first rewind ms": first * 1e3, "later rewinds ms": median(later) * 1e3,
        "start MiB": begun / 2**20, "extra MiB": (peak - begun) / 2**20, "peak MiB": peak / 2**20,
    }  # fmt: skip


def asked(page: Any, clients: int) -> set[ClientId]:
    """Everybody the rounds are going to ask."""
    hub, found = federation(Tasks(page), Store(OnDisk(Path("nowhere"))), clients), set[ClientId]()
    for hub.round in range(WARM + ROUNDS):
        found.update(hub.draw())
    return found


def remembered(folder: Path, clients: int, name: str, whole: set[ClientId]) -> None:
    """A version 0 of every registered client; FedAvg's clients remember nothing, and have none."""
    if not KEPT[name]:
        return
    shelf, small = OnDisk(folder), encode(Memory({"seen": 1}))
    full = encode(Memory({KEPT[name]: torch.zeros(NUMBERS)}))
    for client in range(clients):
        file = shelf._file(client, 0)
        file.parent.mkdir(parents=True)
        file.write_bytes(full if client in whole else small)


def federation(tasks: Tasks, store: Store, clients: int) -> Hub:
    local = LocalConfig(steps=STEPS, batch_size=1, lr=0.1, optimizer=OptimizerConfig(name="sgd"), max_grad_norm=None)
    site = Site(
        tasks=tasks, engine=Toy(), store=store, profile=profile, data=Rows, plan=lambda client: LocalPlan(local, 1000),
        root=0,
    )  # fmt: skip
    link = InProcess(site)
    return Hub(link=link, home=link, tasks=tasks, clients=range(clients), profile=profile, cohort=COHORT, root=0)


def profile(client: ClientId) -> Profile:
    return Profile(client, f"client-{client:06d}", LAYOUT)


class Rows:
    """A client's only row: where its optimum lies, as one number for every coordinate."""

    def __init__(self, client: ClientId) -> None:
        self.row = float(rng.uniform(rng.key(0, "optimum", client), 1))

    def get(self, split: str) -> Sequence[float]:
        return [self.row]


class Toy:
    """Takes all steps of one training at once, of |w - row|² / 2."""

    def __init__(self) -> None:
        self.call: Call[Any] | None = None

    def room(self) -> int:
        return 0 if self.call else 1

    def admit(self, call: Call[Any]) -> None:
        self.call = call

    def abandon(self) -> None:
        self.call = None

    def advance(self) -> list[tuple[ClientId, Any]]:
        assert self.call is not None
        call, self.call = self.call, None
        return [(call.client, trained(call.request))]


def trained(request: Descend) -> Trained:
    w, total = request.start, torch.zeros_like(request.start)
    for (row,), lr in zip(request.batches, request.lrs, strict=True):
        g = w - row
        total += g
        step: Tensor = g if request.correct is None else request.correct(g, w, *request.with_)
        w = w - lr * step
    steps = len(request.lrs)
    return Trained(w, steps, sum(request.lrs), steps, steps, 0.0, gradient=total / steps)


def spent(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def resident(key: str) -> int:
    """VmRSS, memory now, or VmHWM, its peak, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        sys.exit(main())
