"""A run from beginning to end: folder, rounds, evaluation, checkpoints, the final adapter; and its resumption.

After every round: evaluation if due, best and early stopping, checkpoint if due, and only then are the clients told
that what they wrote is safe. Whatever kills a run, `resume` goes on from the last checkpoint to the same bits.

Several processes may share a run (`torchrun`, `runtime.workers`): all do everything here side by side, and only the
first writes, exports and has sinks. What one of them alone knows goes through the group.
"""

import dataclasses
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

import fedloom
from fedloom import atomic, checkpoint, recorder
from fedloom.adapters import build as adapters
from fedloom.aggregate.rules import Gather
from fedloom.assembly import Parts, fingerprint
from fedloom.checkpoint import Checkpoint, Progress
from fedloom.config import Config, dump, load, parse
from fedloom.config.checks import require
from fedloom.config.methods import without_effect
from fedloom.contracts import Algorithm, Model
from fedloom.engine.schedule import round_rate
from fedloom.errors import UserError
from fedloom.evaluation import Evaluator
from fedloom.events import (
    BestModel,
    CheckpointSaved,
    EarlyStopped,
    Events,
    JsonLines,
    Noted,
    RoundFinished,
    RunFinished,
    RunStarted,
    Sink,
)  # fmt: skip
from fedloom.folder import FORMAT, RunFolder
from fedloom.metrics.summary import better
from fedloom.models.load import location
from fedloom.params import Layout
from fedloom.recorder import Recorder
from fedloom.rounds import advance
from fedloom.runtime import place as places
from fedloom.runtime.folding import Traffic
from fedloom.runtime.group import Group
from fedloom.runtime.launch import Company, company
from fedloom.runtime.place import Place

PERSONAL_EXPORTS = 100
"""Private models are written as adapter folders up to this many clients."""


T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run that ended."""

    folder: Path
    status: str
    """finished or early_stopped."""
    metrics: dict[str, float]
    """The last evaluation's summary."""


def run(config: Config, sinks: Sequence[Sink] = (), algorithm: Algorithm[Any] | None = None) -> Run:
    """Train as the configuration says.

    Args:
        config: a whole configuration (`fedloom.load`).
        sinks: called with every event.
        algorithm: a page of your own in place of the one the configuration names.

    Raises:
        UserError: something in the configuration cannot work here.
        RunStopped: the run ended early, resumable.
    """
    require(config)
    place = places.found()
    if place is not None and config.runtime.workers not in (1, place.size):
        raise UserError(
            f"runtime.workers={config.runtime.workers}, but {place.size} processes were started together; leave it out"
        )
    with _company(config, algorithm, place, config.runtime.workers, "run_member", dump(config)) as company:
        parts, group = _met(company, config, lambda: Parts(config, algorithm), lambda parts: parts)
        path = _new_folder(parts, group)
        return Session(parts, path, sinks, None, group).go()


def resume(
    path: Path, sinks: Sequence[Sink] = (), algorithm: Algorithm[Any] | None = None, workers: int | None = None
) -> Run:
    """Continue a run from its last checkpoint, to the bits it would have had unbroken.

    Args:
        path: the run folder.
        sinks: called with every event.
        algorithm: the page the run was begun with, if it was one of your own.
        workers: processes; None: as many as `runtime.workers` says, or as were started together.

    Raises:
        UserError: no run folder, a finished run, or one this version cannot continue.
        RunStopped: the run ended early once more.
    """
    folder = RunFolder(path)
    if folder.status in ("finished", "early_stopped"):
        raise UserError(f"{path} is {folder.status.replace('_', ' ')}; there is nothing to resume")
    written = folder.env().get("fedloom")
    if written != fedloom.__version__:
        raise UserError(
            f"{path} was begun by fedloom {written}, this is {fedloom.__version__}; resume it with that one"
        )
    config = load(path / "config.yaml")
    place, count = places.found(), config.runtime.workers if workers is None else workers
    if place is not None and workers not in (None, place.size):
        raise UserError(f"{workers} workers are wanted, but {place.size} processes were started together")
    with _company(config, algorithm, place, count, "resume_member", str(path)) as company:
        (parts, saved), group = _met(
            company, config, lambda: _saved(folder, config, algorithm, company.size), lambda made: made[0]
        )
        return Session(parts, path, sinks, saved, group).go()


def run_member(config: str) -> None:
    """`run` in a process that another one started."""
    run(parse(config))


def resume_member(path: str) -> None:
    """`resume` in a process that another one started."""
    resume(Path(path))


class Session:
    """One process's part of a run."""

    def __init__(self, parts: Parts, path: Path, sinks: Sequence[Sink], saved: Checkpoint | None, group: Group) -> None:
        self.parts, self.config, self.path, self.group = parts, parts.config, path, group
        self.saved, self.files = saved, list[Recorder | JsonLines]()
        self.events = Events()
        if self.first:
            if saved is not None:
                atomic.recover(path / "checkpoints" / "best")
                recorder.rewind(path, saved.progress.round)
            self.files = [JsonLines(path / "events.jsonl"), Recorder(path, self.config.evaluate.metrics)]
            self.events = Events([*self.files, *sinks])
        self.hub = parts.hub(path / "clients", self.events, group)
        self.evaluator = Evaluator(
            parts.evaluation, self.hub, self.events, self.config.seed, self._scored_rows(), parts.everybody is not None
        )
        self.progress = saved.progress if saved is not None else Progress()
        self.metrics: dict[str, float] = {}
        self.begun = self.round_begun = time.perf_counter()

    def go(self) -> Run:
        """All rounds that are left."""
        try:
            state = self._begin()
            state = self._rounds(state)
            return self._end(state)
        except KeyboardInterrupt:
            self._finished("interrupted")
            raise
        finally:
            self.hub.close()
            self.group.close()
            for file in self.files:
                file.close()

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks; all others only compute."""
        return self.group.rank == 0

    # -- the parts of a session

    def _begin(self) -> Any:
        config, parts = self.config, self.parts
        self.events(
            RunStarted(
                config.run.name, str(self.path), config.algorithm.name, config.model.name, parts.chosen.words,
                str(parts.base.device), str(parts.base.dtype).removeprefix("torch."), parts.base.parameters,
                parts.adapted.layout.size, len(parts.data.clients), parts.cohort, config.federation.rounds,
                self.progress.round,
            )
        )  # fmt: skip
        for note in parts.data.notes:
            self.events(Noted(note))
        for note in without_effect(config):
            self.events(Noted(note, "warning"))
        if self.saved is not None:
            self.hub.round = self.progress.round
            self.hub.restore(self.saved.federation)
            self.hub.commit(*self._on_disk())
            self.hub.rewind(self.hub.round)
            return self.saved.state
        state = parts.algorithm.init(parts.adapted.start)
        if not (self.evaluator.clients or self.evaluator.everybody):
            self.events(Noted("no client has rows to score, so nothing is evaluated (data.test)", "warning"))
        self._evaluate(state)
        self._checkpoint(state)
        return state

    def _rounds(self, state: Any) -> Any:
        federation = self.config.federation
        return advance(
            self.parts.algorithm, state, self.hub, federation.rounds, federation.retries,
            before=self._round_begins, after=self._round_ends, stop=lambda: self.progress.stopped,
        )  # fmt: skip

    def _end(self, state: Any) -> Run:
        dropped = self._dropped()
        if dropped:
            self.events(Noted("left out: " + ", ".join(f"{n} x {why}" for why, n in sorted(dropped.items()))))
        self._export(state)
        self.group.gather("the end of the run")
        status = "early_stopped" if self.progress.stopped else "finished"
        self._finished(status)
        return Run(self.path, status, self.metrics or _last_metrics(self.path))

    # -- what happens around a round

    def _round_begins(self) -> None:
        self.hub.traffic = Traffic()
        self.round_begun = time.perf_counter()

    def _round_ends(self, state: Any) -> None:
        """Say what it cost, evaluate and checkpoint if due; the last round always has a checkpoint."""
        round, rounds = self.hub.round, self.config.federation.rounds
        self.progress = dataclasses.replace(self.progress, round=round)
        self._round_finished(time.perf_counter() - self.round_begun)
        if self.evaluator.due(round, rounds):
            self._evaluate(state)
        if round == rounds or self.progress.stopped or round % self.config.checkpoint.every == 0:
            self._checkpoint(state)

    def _round_finished(self, seconds: float) -> None:
        t, c = self.hub.traffic, self.config
        loss = t.loss_sum / t.loss_examples if t.loss_examples else None
        lr = round_rate(c.local.schedule, c.local.lr, self.hub.round - 1, c.federation.rounds)
        self.events(
            RoundFinished(
                self.hub.round, t.counted, t.missing, loss, t.examples, t.tokens, t.steps, t.skipped, lr,
                t.bytes_down, t.bytes_up, seconds, dict(t.figures),
            )
        )  # fmt: skip

    def _evaluate(self, state: Any) -> None:
        shared = self.parts.algorithm.model(state)
        summary = self.evaluator(shared)
        if summary:
            self.metrics = summary
            self._judge(summary, shared)

    def _judge(self, summary: dict[str, float], shared: Model) -> None:
        """Best model and early stopping."""
        evaluate, now = self.config.evaluate, self.progress
        value = summary.get(evaluate.best)
        if value is not None and better(evaluate.best, value, now.best_value):
            now = dataclasses.replace(now, best_round=self.hub.round, best_value=value)
            if shared.whole:
                self._save(shared, self.parts.adapted.layout, self.path / "checkpoints" / "best")
            self.events(BestModel(self.hub.round, evaluate.best, value))
        stop = evaluate.early_stop
        if stop is not None and stop.metric in summary:
            if better(stop.metric, summary[stop.metric], now.stop_best, stop.min_delta):
                now = dataclasses.replace(now, stop_best=summary[stop.metric], stop_count=0)
            else:
                now = dataclasses.replace(now, stop_count=now.stop_count + 1)
            if now.stop_count >= stop.patience:
                now = dataclasses.replace(now, stopped=True)
                self.events(EarlyStopped(self.hub.round, stop.metric, stop.patience))
        self.progress = now

    def _checkpoint(self, state: Any) -> None:
        begun = time.perf_counter()
        root = self.path / "checkpoints"
        if self.first:
            checkpoint.save(root, Checkpoint(self.progress, state, self.hub.snapshot()), self.config.checkpoint.keep)
        self.hub.commit(*self._on_disk())
        path = root / checkpoint.name(self.hub.round)
        self.events(CheckpointSaved(self.hub.round, str(path), time.perf_counter() - begun))

    def _on_disk(self) -> list[int]:
        """Rounds of all checkpoints, as the first process sees them."""
        found = [checkpoint.round_of(path) for path in checkpoint.found(self.path / "checkpoints")]
        rounds: list[int] = json.loads(self.group.gather("a checkpoint", json.dumps(found).encode())[0])
        return rounds

    def _dropped(self) -> dict[str, int]:
        """Examples left out by reason; each process knows of those it encoded."""
        said = self.group.gather("rows left out", json.dumps(self.parts.data.dropped()).encode())
        known: dict[str, dict[str, int]] = {}
        for one in said:
            known |= json.loads(one)
        return dict(sum((Counter(counts) for counts in known.values()), Counter[str]()))

    def _export(self, state: Any) -> None:
        """The shared model if there is one, and every client's own if they have some, as adapter folders."""
        shared, needs = self.parts.algorithm.model(state), self.parts.algorithm.needs
        if shared.whole:
            self._save(shared, self.parts.adapted.layout, self.path / "adapters" / "final")
        if not needs.personal:
            return
        everybody = list(self.hub.everybody)
        count = len(everybody)
        if count > PERSONAL_EXPORTS:
            self.events(Noted(f"{count} private models are not written as folders; they are in clients/", "warning"))
            return
        got = self.hub.survey(self.parts.evaluation.own, lambda _: shared, everybody, Gather())
        for client, (own, _) in zip(got.clients, got.value.model if got.clients else [], strict=True):
            profile = self.hub.profile(client)
            self._save(own, profile.layout, self.path / "adapters" / "clients" / profile.name)

    def _save(self, model: Model, layout: Layout, path: Path) -> None:
        if not self.first:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.folder(path) as aside:
            base = location(self.config.model.name)
            adapters.save(self.parts.adapted, self.config.adapter, model, layout, base, aside)
            if self.config.adapter.kind == "full":
                self.parts.tokenizer.save_pretrained(str(aside))

    def _finished(self, status: str) -> None:
        self.events(RunFinished(self.hub.round, time.perf_counter() - self.begun, status))

    def _scored_rows(self) -> bool:
        return any(client.sizes[self.config.evaluate.split] for client in self.parts.data.clients)


@contextmanager
def _company(
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


def _met(company: Company, config: Config, make: Callable[[], T], parts: Callable[[T], Parts]) -> tuple[T, Group]:
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
            "fedloom": fedloom.__version__, "torch": torch.__version__, "algorithm": identity(p.algorithm),
            "configuration": fingerprint(p.config), "base model": p.base_fingerprint, "rows": p.data.fingerprint(),
        }  # fmt: skip
    return made, company.meet(config.runtime.timeout, traits)


def _new_folder(parts: Parts, group: Group) -> Path:
    """The first process makes it, and tells all the others."""
    name = b""
    if group.rank == 0:
        config = parts.config
        folder = RunFolder.create(Path(config.run.folder), config.run.name, fingerprint(config), datetime.now())
        _describe(folder.path, parts, group.size)
        name = str(folder.path).encode()
    return Path(group.gather("the run folder", name)[0].decode())


def _saved(
    folder: RunFolder, config: Config, algorithm: Algorithm[Any] | None, processes: int
) -> tuple[Parts, Checkpoint]:
    """What a run is resumed with.

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
    parts = Parts(config, algorithm)
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


def _describe(path: Path, parts: Parts, processes: int) -> None:
    """Write what a run folder says of itself before the first round."""
    import peft
    import transformers

    env = {
        "format": FORMAT,
        "fedloom": fedloom.__version__,
        "config": fingerprint(parts.config),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "platform": platform.platform(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "device": str(parts.base.device),
        "attention": parts.base.attention,
        "dtype": str(parts.base.dtype).removeprefix("torch."),
        "algorithm": identity(parts.algorithm),
        "engine": parts.chosen.words,
        "row_invariant": parts.chosen.invariant,
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


def _last_metrics(path: Path) -> dict[str, float]:
    rows = [row for row in RunFolder(path).metrics() if row["split"] != "global"]
    last = rows[-1] if rows else {}
    return {k: float(v) for k, v in last.items() if isinstance(v, int | float) and k not in ("round", "seconds")}
