"""Whole runs by several processes on the embedded model: the bits of one, a killed one, torchrun, mistakes said once.

Most tests fork processes that have everything imported; those of the launchers start real ones.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fedloom
from fedloom import experiment
from fedloom.algorithms.fedavg import FedAvg
from fedloom.assembly import Parts, fingerprint
from fedloom.config import Config, load
from fedloom.errors import RunStopped, UserError
from fedloom.events import ClientTrained, Event
from fedloom.folder import RunFolder
from fedloom.spaces.factors import Factors
from runtime.processes import forked

TINY = [
    "data.playground.rows=8", "data.playground.test_rows=2", "local.steps=2", "local.batch_size=4", "adapter.rank=2",
    "adapter.dropout=0.1", "adapter.targets=auto", "federation.rounds=2", "federation.cohort=4", "evaluate.every=2",
    "evaluate.forgetting=false", "evaluate.metrics=[loss, exact_match]", "evaluate.max_new_tokens=2", "local.lr=0.01",
    "model.dtype=float32", "partition.clients=5", "evaluate.clients=2", "aggregate.server_optimizer.momentum=0",
]  # fmt: skip
BIN = Path(sys.executable).parent


def config(folder: Path, *overrides: str) -> Config:
    return load("quickstart", [*TINY, f"run.folder={folder}", *overrides])


def the_run(runs: Path) -> Path:
    (folder,) = runs.iterdir()
    return folder


def traces(folder: Path) -> dict[str, Any]:
    """All that must be the same: adapters, memories, states, tables but their times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    for name in ("metrics.csv", "clients.csv", "rounds.csv"):
        with (folder / name).open() as file:
            found[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return found


def same(one: Path, other: Path) -> None:
    assert traces(one) == traces(other)
    assert any("adapters" in name for name in traces(one))


@pytest.mark.parametrize(
    ("size", "choice"),
    [
        (3, ["data.max_length=64"]),
        (2, ["algorithm=scaffold"]),
        (3, ["algorithm=ditto"]),
        (2, ["algorithm=flexlora", "clients={'0-2': {rank: 1, steps: 3}}", "runtime.window=1"]),
        (2, ["algorithm=centralized"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_any_number_of_processes_gives_the_bits_of_one(tmp_path: Path, size: int, choice: list[str]) -> None:
    one = experiment.run(config(tmp_path / "one", *choice))
    cfg = config(tmp_path / "many", *choice)

    def work(rank: int) -> None:
        done = experiment.run(cfg, [seen.append])
        assert done.metrics == one.metrics
        assert bool(seen) == (rank == 0)

    seen = list[Event]()
    assert forked(size, tmp_path, work) == [0] * size
    folder = the_run(tmp_path / "many")
    same(one.folder, folder)
    assert RunFolder(folder).env()["processes"] == size
    assert RunFolder(folder).events()[-1]["status"] == "finished"


def test_broken_off_by_three_and_ended_by_two_and_by_one(tmp_path: Path) -> None:
    """Process 1 is killed in round 2, then process 0 in round 3; the others say so, and the bits are those of one."""
    choice = ["algorithm=scaffold", "federation.rounds=3", "evaluate.every=1"]
    one = experiment.run(config(tmp_path / "one", *choice))
    cfg = config(tmp_path / "many", *choice)

    def killed(rank: int) -> None:
        if rank == 1:
            die_after(2)
        with pytest.raises(RunStopped, match=r"process 1 of 3 \(pid \d+\) has ended"):
            experiment.run(cfg)

    assert forked(3, tmp_path, killed)[:2] == [0, -signal.SIGKILL]
    folder = the_run(tmp_path / "many")
    assert RunFolder(folder).status == "unfinished"

    def killed_again(rank: int) -> None:
        if rank == 0:
            experiment.resume(folder, [killing(3)])
        with pytest.raises(RunStopped, match=r"process 0 of 2"):
            experiment.resume(folder)

    (tmp_path / "again").mkdir()
    assert forked(2, tmp_path / "again", killed_again) == [-signal.SIGKILL, 0]
    experiment.resume(folder)
    same(one.folder, folder)


def killing(round: int) -> Any:
    """A sink that ends its process when a client's reply counted in this round."""

    def sink(event: Event) -> None:
        if isinstance(event, ClientTrained) and event.round == round:
            os.kill(os.getpid(), signal.SIGKILL)

    return sink


def die_after(opened: int) -> None:
    """End this process when it has begun to write what a client keeps of round `opened`."""
    from fedloom.runtime.store import OnDisk

    write = OnDisk.write

    def dying(self: OnDisk, client: int, round: int, memory: Any) -> None:
        if round == opened:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, client, round, memory)

    OnDisk.write = dying  # type: ignore[method-assign]


def test_sums_are_equal_to_rounding_and_are_resumed_by_as_many(tmp_path: Path) -> None:
    one = experiment.run(config(tmp_path / "one", "federation.rounds=1"))
    cfg = config(tmp_path / "many", "federation.rounds=1", "runtime.reduce=sums")

    def work(rank: int) -> None:
        assert experiment.run(cfg).metrics == pytest.approx(one.metrics, abs=1e-5)

    assert forked(2, tmp_path, work) == [0, 0]
    folder = the_run(tmp_path / "many")
    (folder / "events.jsonl").write_text("")  # as if it had not ended
    with pytest.raises(UserError, match=r"begun by 2 processes with runtime\.reduce=sums"):
        experiment.resume(folder)


def test_a_page_of_ones_own_runs_in_processes_started_together(tmp_path: Path) -> None:
    page = FedAvg(Factors(Parts(config(tmp_path)).adapted.layout))
    one = experiment.run(config(tmp_path / "one"), algorithm=page)
    cfg = config(tmp_path / "many")
    assert forked(2, tmp_path, lambda rank: experiment.run(cfg, algorithm=page)) == [0, 0]
    same(one.folder, the_run(tmp_path / "many"))


def test_what_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path, "runtime.workers=3")
    with pytest.raises(UserError, match="torchrun"):
        experiment.run(cfg, algorithm=FedAvg(Factors(Parts(config(tmp_path)).adapted.layout)))
    with pytest.raises(UserError, match=r"runtime.workers is 3.*Use simulation"):
        config(tmp_path, "runtime.workers=3", "runtime.name=loopback")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="2 processes were started together"):
        experiment.run(cfg)
    with pytest.raises(UserError, match="cannot have 2 processes"):
        experiment.run(config(tmp_path, "runtime.name=loopback"))
    assert not list(tmp_path.iterdir())


def test_a_process_that_would_do_something_else_is_found_at_the_start(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with pytest.raises(UserError, match="process 1 of 2 differs from process 0 in configuration;"):
            experiment.run(config(tmp_path, f"local.lr={0.01 * (1 + rank)}"))

    assert forked(2, tmp_path, work) == [0, 0]


def test_a_mistake_only_one_process_makes_is_told_by_all(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with pytest.raises(UserError, match=r"process 1 of 2: .*nowhere" if rank == 0 else "nowhere"):
            experiment.run(config(tmp_path, *(["model.name=/nowhere"] if rank else [])))

    assert forked(2, tmp_path, work) == [0, 0]


def test_the_number_of_processes_is_no_part_of_what_is_computed(tmp_path: Path) -> None:
    plain = fingerprint(config(tmp_path))
    assert fingerprint(config(tmp_path, "runtime.workers=4", "runtime.timeout=5")) == plain
    assert fingerprint(config(tmp_path, "runtime.reduce=sums")) != plain


# -- the launchers, with real processes


def started(*command: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, **more)


def test_workers_a_killed_one_and_resume(tmp_path: Path) -> None:
    """`runtime.workers=2`: the worker is killed in the middle of a run; the command line says how to go on."""
    choice = ["algorithm=ditto", "federation.rounds=3"]
    fedloom_ = str(BIN / "fedloom")
    running = started(
        fedloom_, "run", "quickstart", *TINY, *choice, "run.folder=many", "runtime.workers=2", "--json", cwd=tmp_path
    )
    assert running.stdout is not None
    for line in running.stdout:
        if json.loads(line)["event"] == "ClientTrained":
            os.kill(child_of(running.pid), signal.SIGKILL)
            break
    _, said = running.communicate(timeout=120)
    assert running.returncode == 1, said
    folder = the_run(tmp_path / "many")
    assert re.search(r"worker 1 \(pid \d+\) was ended by signal 9 \(SIGKILL; the system may be out of memory\)", said)
    assert f"fedloom resume {folder.relative_to(tmp_path)}" in said
    assert "Traceback" not in said
    experiment.resume(folder, workers=1)
    same(experiment.run(config(tmp_path / "one", *choice)).folder, folder)


def child_of(pid: int) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and f"PPid:\t{pid}\n" in (entry / "status").read_text():
            return int(entry.name)
    raise AssertionError(f"{pid} has no child")


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = (
        "import os, signal, fedloom\n"
        f"config = fedloom.load('quickstart', {[*TINY, 'federation.rounds=50', 'runtime.workers=2']!r})\n"
        "def sink(event):\n"
        "    if type(event).__name__ == 'ClientTrained':\n"
        "        children = open(f'/proc/self/task/{os.getpid()}/children').read()\n"
        "        print(children, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "fedloom.run(config, [sink])\n"
    )
    running = started(sys.executable, "-c", script, cwd=tmp_path)
    out, err = running.communicate(timeout=120)
    assert running.returncode == -signal.SIGKILL, err
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in out.split()) and time.monotonic() < end:
        time.sleep(0.1)
    assert out.split()
    assert not [pid for pid in out.split() if Path(f"/proc/{pid}").exists()]


def test_torchrun(tmp_path: Path) -> None:
    one = fedloom.run(config(tmp_path / "one"))
    command = [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "fedloom", "run", "quickstart"]
    running = started(*command, *TINY, "run.folder=many", "--no-report", cwd=tmp_path)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert out.count("round   2/2") == 1
    assert out.count("finished: ") == 1
    same(one.folder, the_run(tmp_path / "many"))


def test_torchrun_says_a_mistake_once(tmp_path: Path) -> None:
    command = [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "fedloom", "run", "quickstart"]
    out, err = started(*command, "federation.ruonds=3", cwd=tmp_path).communicate(timeout=120)
    assert err.count("Did you mean federation.rounds?") == 1
    assert "exitcode  : 2" in err
    assert not out


@pytest.mark.slow
def test_a_process_may_begin_several_runs_of_several_processes(tmp_path: Path) -> None:
    """Whoever is started for the second run is new, and counts its runs from the first."""
    for name in ("first", "second"):
        config = fedloom.load("quickstart", [*TINY, "runtime.workers=2", f"run.folder={tmp_path / name}"])
        assert fedloom.run(config).status == "finished"
