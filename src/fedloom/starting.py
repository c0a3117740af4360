"""How a run begins or goes on: its processes, what each of them makes, the folder, and that it is still the same run.

All processes of a run make the same parts from the same recipe; before the first round they compare what they made.
"""

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedloom import atomic, checkpoint
from fedloom.assembly import Parts, fingerprint
from fedloom.checkpoint import Checkpoint
from fedloom.config import Config, dump
from fedloom.contracts import Algorithm
from fedloom.errors import UserError
from fedloom.folder import FORMAT, RunFolder
from fedloom.runtime.group import Group
from fedloom.runtime.launch import Company, company
from fedloom.runtime.place import Place
from fedloom.version import __version__

T = TypeVar("T")


@contextmanager
def gathered(
    config: Config, algorithm: Algorithm[Any] | None, place: Place | None, workers: int, member: str, argument: str
) -> Iterator[Company]:
    """The processes of a run; torch's threads and device are as before afterwards.

    Raises:
        UserError: this run cannot have several processes.
    """
    size = workers if place is None else place.size
    if size > 1 and config.runtime.name != "simulation":
        raise UserError(f"runtime.name={config.runtime.name} cannot have {size} processes; use runtime.name=simulation")
    if place is None and size > 1 and algorithm is not None:
        raise UserError(
            "runtime.workers starts processes with the recipe alone, so they cannot know an algorithm handed over as "
            "an object; start them with torchrun, or use runtime.workers=1"
        )
    threads = torch.get_num_threads()
    try:
        with company(place, workers, config.engine.threads, f"fedloom.experiment:{member}", [argument]) as found:
            if found.place is not None and torch.cuda.is_available():
                torch.cuda.set_device(found.place.local_rank % torch.cuda.device_count())
            yield found
    finally:
        torch.set_num_threads(threads)


def met(company: Company, config: Config, make: Callable[[], T], parts: Callable[[T], Parts]) -> tuple[T, Group]:
    """What this process makes, and the group of all, once all have made the same.

    Raises:
        UserError: one of them cannot.
        RunStopped: one of them ended.
    """
    try:
        made = make()
    except UserError as error:
        if company.rank > 0:  # process 0 says it, as if the mistake were its own
            company.meet(config.runtime.timeout, {}, str(error))
        raise
    traits: dict[str, str] = {}
    if company.size > 1:
        p = parts(made)
        traits = {
            "fedloom": __version__, "torch": torch.__version__, "algorithm": identity(p.algorithm),
            "configuration": fingerprint(p.config), "base model": p.base_fingerprint, "rows": p.data.fingerprint(),
        }  # fmt: skip
    return made, company.meet(config.runtime.timeout, traits)


def new_folder(parts: Parts, group: Group) -> Path:
    """The first process makes it, and tells all the others."""
    name = b""
    if group.rank == 0:
        config = parts.config
        folder = RunFolder.create(Path(config.run.folder), config.run.name, fingerprint(config), datetime.now())
        describe(folder.path, parts, group.size)
        name = str(folder.path).encode()
    return Path(group.gather("the run folder", name)[0].decode())


def saved(folder: RunFolder, config: Config, make: Callable[[], Parts], processes: int) -> tuple[Parts, Checkpoint]:
    """What a run is resumed with; `make` builds it.

    Raises:
        UserError: it is not what the run was begun with.
    """
    path, env = folder.path, folder.env()
    if fingerprint(config) != env.get("config"):
        raise UserError(f"{path / 'config.yaml'} was changed since the run began; put it back to resume")
    if config.runtime.reduce == "sums" and processes != env.get("processes"):
        raise UserError(
            f"{path} was begun by {env.get('processes')} processes with runtime.reduce=sums, whose rounding depends on "
            f"their number; this are {processes}. Resume it with as many (fedloom resume --workers)"
        )
    parts = make()
    page, begun_with = identity(parts.algorithm), env.get("algorithm")
    if page != begun_with:
        raise UserError(f"{path} was begun with the algorithm {begun_with}, not {page}; hand that one to resume()")
    if parts.base_fingerprint != env.get("base"):
        raise UserError(f"the base model {config.model.name} is not the one {path} was begun with; put it back")
    if parts.data.fingerprint() != env.get("data"):
        raise UserError(f"the rows of {config.data.source} are not those {path} was begun with; put them back")
    found = checkpoint.found(path / "checkpoints")
    if not found:
        raise UserError(f"{path} has no checkpoint: it ended before the first. Start it anew with fedloom run")
    kind = type(parts.algorithm.init(parts.adapted.start))
    return parts, checkpoint.load(found[-1], kind)


def identity(algorithm: Algorithm[Any]) -> str:
    """What tells an algorithm page from another: its class and, for a dataclass, its settings."""
    return repr(algorithm) if dataclasses.is_dataclass(algorithm) else type(algorithm).__qualname__


def describe(path: Path, parts: Parts, processes: int) -> None:
    """Write what a run folder says of itself before the first round."""
    import peft
    import transformers

    env = {
        "format": FORMAT,
        "fedloom": __version__,
        "config": fingerprint(parts.config),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "platform": platform.platform(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "device": parts.computing[0],
        "attention": parts.base.attention,
        "dtype": parts.computing[1],
        "algorithm": identity(parts.algorithm),
        "engine": parts.engine,
        "row_invariant": None if parts.chosen is None else parts.chosen.invariant,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "template": parts.data.template_name,
        "adapted": len(parts.adapted.layout.leaves),
        "base": parts.base_fingerprint,
        "data": parts.data.fingerprint(),
        "layout": parts.adapted.layout.fingerprint,
    }
    atomic.write_text(path / "partition.json", json.dumps({"clients": parts.data.holdings}))
    atomic.write_text(path / "env.json", json.dumps(env, indent=1))
    atomic.write_text(path / "config.yaml", dump(parts.config))
