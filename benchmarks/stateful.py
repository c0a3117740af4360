"""100,000 registered clients against 100, with the same cohort: round time, memory, commit and rewind.

FedAvg, SCAFFOLD and Ditto through `Hub` and `Site`, client states of 100,000 numbers in files (`OnDisk`). Training is a
toy, a few vector operations, and rows are made when asked for, so that the federation's own cost is what is seen.
Everybody who will be asked has a memory from an earlier round. A round ends as in an experiment, with the commit of its
checkpoint.

Times: both federations in one process, a round of each in turn, so that other work on the machine meets both. Memory:
each federation in a process of its own, largest resident size beyond the start. Rewinds, with a memory of every
registered client: `first` forgets what lies beyond a checkpoint when a run resumes, `later` is a round that is tried
again. That many files are laid where the kernel keeps files in memory (/dev/shm), if there is such a place.
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

NUMBERS, COHORT, STEPS, ROUNDS, WARM, REPEATS = 100_000, 10, 5, 60, 5, 5
SIZES = FEW, MANY = 100, 100_000
LAYOUT = Layout.of([Leaf("w", (NUMBERS,))])
PAGES: dict[str, Callable[[], Any]] = {
    "fedavg": lambda: FedAvg(Factors(LAYOUT)),
    "scaffold": lambda: Scaffold(),
    "ditto": lambda: Ditto(Factors(LAYOUT), lam=0.1),
}
KEPT = {"fedavg": "", "scaffold": "c", "ditto": "v"}
"""What each page's clients remember."""


def main() -> int:
    rows = []
    for name in PAGES:
        times = [run("times", name) for _ in range(REPEATS)]
        memory = {n: [run("memory", name, n) for _ in range(REPEATS)] for n in SIZES}
        for n in SIZES:
            extra, peak = (median([found[part] for found in memory[n]]) for part in ("extra", "peak"))
            rows.append(
                {
                    "algorithm": name, "clients": n,
                    "round CPU ms": round(median([found[f"cpu {n}"] for found in times]), 2),
                    "round ms": round(median([found[f"wall {n}"] for found in times]), 1),
                    "commit ms": round(median([found[f"commit {n}"] for found in times]), 3),
                    "extra MiB": round(extra, 1), "peak MiB": round(peak, 1),
                }
            )  # fmt: skip
            say(str(rows[-1]))
    parts = ("round CPU ms", "round ms", "extra MiB", "peak MiB")
    ratios = [
        {"algorithm": few["algorithm"], **{part: round(many[part] / few[part], 3) for part in parts}}
        for few, many in zip(rows[::2], rows[1::2], strict=True)
    ]
    rewinds = [{"clients with a memory": n, **run("rewinds", n)} for n in SIZES]
    for shown in (rows, ratios, rewinds):
        say(table(shown))
    setting = {"numbers": NUMBERS, "cohort": COHORT, "rounds": ROUNDS}
    result = {**setting, "rows": rows, "ratios": ratios, "rewinds": rewinds}
    write("stateful", "python benchmarks/run.py stateful", result)
    return 0


def run(what: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, what, *map(str, arguments)]
    found: dict[str, float] = json.loads(subprocess.check_output(command, text=True))
    return found


# -- what is measured


def times(name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        feds = {n: Running(name, n, Path(folder) / str(n)) for n in SIZES}
        for r in range(WARM + ROUNDS):
            for n in SIZES if r % 2 else SIZES[::-1]:
                feds[n].go()
    found = {}
    for n, fed in feds.items():
        found |= {
            f"{part} {n}": median(values[WARM:]) * 1e3
            for part, values in (("cpu", fed.cpu), ("wall", fed.wall), ("commit", fed.commits))
        }
    return found


def memory(name: str, clients: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        begun = resident("VmRSS")
        with suppress(OSError):  # lets the kernel forget the peak of the imports
            Path("/proc/self/clear_refs").write_text("5")
        fed = Running(name, int(clients), Path(folder))
        for _ in range(WARM + ROUNDS):
            fed.go()
        peak = resident("VmHWM")
    return {"extra": (peak - begun) / 2**20, "peak": peak / 2**20}


def rewinds(clients: str) -> dict[str, float]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        remember(Path(folder), range(int(clients)), encode(Memory({"seen": 1})))
        fed = Running("scaffold", int(clients), Path(folder))
        first = spent(lambda: fed.hub.rewind(0))
        later = []
        for _ in range(20):
            one_round(fed.page, fed.state, fed.hub, 0)  # all counted, but the round is tried again
            later.append(spent(lambda: fed.hub.rewind(fed.hub.round)))
            fed.go()
    return {"first rewind ms": round(first * 1e3, 1), "later rewinds ms": round(median(later) * 1e3, 2)}


class Running:
    """A federation, round by round."""

    def __init__(self, name: str, clients: int, folder: Path) -> None:
        self.page = PAGES[name]()
        self.hub = federation(Tasks(self.page), Store(OnDisk(folder)), clients)
        self.state = self.page.init(torch.zeros(NUMBERS))
        self.cpu, self.wall, self.commits = list[float](), list[float](), list[float]()
        if KEPT[name]:
            asked = set[ClientId]()
            for self.hub.round in range(WARM + ROUNDS):
                asked.update(self.hub.draw())
            self.hub.round = 0
            remember(folder, sorted(asked), encode(Memory({KEPT[name]: torch.zeros(NUMBERS)})))

    def go(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.state = one_round(self.page, self.state, self.hub, 0)
        self.hub.round += 1
        self.commits.append(spent(lambda: self.hub.commit(self.hub.round - 1, self.hub.round)))
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def remember(folder: Path, clients: Sequence[ClientId], data: bytes) -> None:
    """A version 0 of these clients' memories."""
    shelf = OnDisk(folder)
    for client in clients:
        file = shelf._file(client, 0)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


# -- the toy federation


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
        torch.set_num_threads(1)
        measures: dict[str, Callable[..., dict[str, float]]] = {"times": times, "memory": memory, "rewinds": rewinds}
        print(json.dumps(measures[sys.argv[1]](*sys.argv[2:])))
    else:
        sys.exit(main())
