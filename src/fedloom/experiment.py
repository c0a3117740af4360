"""A run from beginning to end: folder, rounds, evaluation, checkpoints, the final adapter; and its resumption.

After every round: evaluation if due, best and early stopping, checkpoint if due, and only then are the clients told
that what they wrote is safe. Whatever kills a run, `resume` goes on from the last checkpoint to the same bits.

Several processes may share a run (`torchrun`, `runtime.workers`): all do everything here side by side, and only the
first writes, exports and has sinks. What one of them alone knows goes through the group.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom import atomic, checkpoint, recorder
from fedloom.adapters import build as adapters
from fedloom.aggregate.rules import Gather
from fedloom.assembly import Parts
from fedloom.checkpoint import Checkpoint, Progress
from fedloom.config import Config, dump, load, parse
from fedloom.config.checks import require
from fedloom.config.methods import without_effect
from fedloom.config.offsite import check_made
from fedloom.contracts import Algorithm, Model
from fedloom.data.federated import CUT
from fedloom.engine.schedule import round_rate
from fedloom.errors import AskedToStop, UserError
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
from fedloom.folder import RunFolder
from fedloom.metrics.summary import better
from fedloom.params import Layout
from fedloom.recorder import Recorder
from fedloom.rounds import advance
from fedloom.runtime import place as places
from fedloom.runtime.folding import Traffic
from fedloom.runtime.group import Group
from fedloom.runtime.link import Link
from fedloom.starting import gathered, met, new_folder, saved
from fedloom.version import __version__

PERSONAL_EXPORTS = 100
"""Private models are written as adapter folders up to this many clients."""


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
    check_made(config)
    place = places.found()
    if place is not None and config.runtime.workers not in (1, place.size):
        raise UserError(
            f"runtime.workers={config.runtime.workers}, but {place.size} processes were started together; leave it out"
        )
    with gathered(config, algorithm, place, config.runtime.workers, "run_member", dump(config)) as company:
        parts, group = met(company, config, lambda: Parts(config, algorithm), lambda parts: parts)
        path = new_folder(parts, group)
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
    if written != __version__:
        raise UserError(f"{path} was begun by fedloom {written}, this is {__version__}; resume it with that one")
    config = load(path / "config.yaml")
    place, count = places.found(), config.runtime.workers if workers is None else workers
    if place is not None and workers not in (None, place.size):
        raise UserError(f"{workers} workers are wanted, but {place.size} processes were started together")
    with gathered(config, algorithm, place, count, "resume_member", str(path)) as company:
        (parts, kept), group = met(
            company,
            config,
            lambda: saved(folder, config, lambda: Parts(config, algorithm), company.size),
            lambda made: made[0],
        )
        return Session(parts, path, sinks, kept, group).go()


def run_member(config: str) -> None:
    """`run` in a process that another one started."""
    run(parse(config))


def resume_member(path: str) -> None:
    """`resume` in a process that another one started."""
    resume(Path(path))


class Session:
    """One process's part of a run."""

    def __init__(
        self,
        parts: Parts,
        path: Path,
        sinks: Sequence[Sink],
        saved: Checkpoint | None,
        group: Group,
        remote: Link | None = None,
        halt: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin or go on.

        Args:
            parts: what was built.
            path: the run folder.
            sinks: called with every event.
            saved: the checkpoint to go on from.
            group: the processes of this run.
            remote: the way to clients on other machines.
            halt: whether to stop after this round, resumable.
        """
        self.parts, self.config, self.path, self.group = parts, parts.config, path, group
        self.saved, self.files = saved, list[Recorder | JsonLines]()
        self.events = Events()
        if self.first:
            if saved is not None:
                atomic.recover(path / "checkpoints" / "best")
                recorder.rewind(path, saved.progress.round)
            self.files = [JsonLines(path / "events.jsonl"), Recorder(path, self.config.evaluate.measured)]
            self.events = Events([*self.files, *sinks])
        self.hub = parts.hub(path / "clients", self.events, group, remote)
        self.evaluator = Evaluator(
            parts.evaluation, self.hub, self.events, self.config.seed, parts.looks(self._scored_rows())
        )
        self.progress = saved.progress if saved is not None else Progress()
        self.metrics: dict[str, float] = {}
        self.state: Any = None
        """The algorithm's, after the last round."""
        self.halt = halt
        self.begun = self.round_begun = time.perf_counter()

    def go(self) -> Run:
        """All rounds that are left."""
        try:
            self.state = self._rounds(self._begin())
            return self._end(self.state)
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
                config.run.name, str(self.path), config.algorithm.name, config.model.name, parts.engine,
                *parts.computing, parts.base.parameters,
                parts.adapted.layout.size, len(parts.data.clients), parts.cohort, config.federation.rounds,
                self.progress.round,
            )
        )  # fmt: skip
        for note in (*parts.data.notes, *parts.notes):
            self.events(Noted(note))
        for note in without_effect(config):
            self.events(Noted(note, "warning"))
        if self.saved is not None:
            self.hub.round = self.progress.round
            self.hub.restore(self.saved.federation)
            self.hub.commit(*self._on_disk())
            self.hub.rewind(self.hub.round)
            self._rest(parts.algorithm.model(self.saved.state))
            return self.saved.state
        state = parts.algorithm.init(parts.adapted.start)
        self._rest(parts.algorithm.model(state))
        if not self.evaluator.looks:
            self.events(Noted("no client has rows to score, so nothing is evaluated (data.test)", "warning"))
        self._evaluate(state)
        self._checkpoint(state)
        return state

    def _rounds(self, state: Any) -> Any:
        federation, first = self.config.federation, [state]
        del state  # a start of hundreds of megabytes is not held here for as long as the rounds last
        return advance(
            self.parts.algorithm, first.pop(), self.hub, federation.rounds, federation.retries,
            before=self._round_begins, after=self._round_ends, stop=lambda: self.progress.stopped,
        )  # fmt: skip

    def _end(self, state: Any) -> Run:
        dropped = self._dropped()
        if dropped:
            for word, some in (("left out", dropped.keys() - {CUT}), ("cut", dropped.keys() & {CUT})):
                if some:
                    self.events(Noted(f"{word}: " + ", ".join(f"{dropped[why]} x {why}" for why in sorted(some))))
        self._export(state)
        self.group.gather("the end of the run")
        status = "early_stopped" if self.progress.stopped else "finished"
        deciding = [look.split for look in self.evaluator.looks if look.decides]
        self._finished(status)
        return Run(self.path, status, self.metrics or _last_metrics(self.path, deciding))

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
        halt = self.halt()
        if round == rounds or self.progress.stopped or halt or round % self.config.checkpoint.every == 0:
            self._checkpoint(state)
        if halt and round < rounds and not self.progress.stopped:
            raise AskedToStop(f"stopped after round {round}, as asked; the same command goes on")

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
            if self.parts.plug is not None:
                self._save(shared, self.parts.adapted.layout, self.path / "adapters" / "emulator", owner=False)
        if not needs.personal or self.parts.handing is None:
            return
        everybody = list(self.hub.everybody)
        count = len(everybody)
        if count > PERSONAL_EXPORTS:
            self.events(Noted(f"{count} private models are not written as folders; they are in clients/", "warning"))
            return
        got = self.hub.survey(self.parts.handing.own, lambda _: shared, everybody, Gather())
        for client, (own, _) in zip(got.clients, got.value.model if got.clients else [], strict=True):
            profile = self.hub.profile(client)
            self._save(own, profile.layout, self.path / "adapters" / "clients" / profile.name, owner=False)

    def _save(self, model: Model, layout: Layout, path: Path, owner: bool = True) -> None:
        """Write a model: of the owner's, where clients have an emulator of it, unless `owner` is False."""
        if not self.first:
            return
        adapted, base = self.parts.adapted, self.parts.base_name
        if adapted.w.is_meta:  # a server that tunes all of a model has nothing to add to: its clients have
            self.events(Noted(f"{path.name} is not written: the weights are at the clients, not here", "warning"))
            return
        plug = self.parts.plug
        if owner and plug is not None:
            adapted, base = plug.whole, plug.name
            model, layout = dataclasses.replace(model, x=plug.vector(model.x)), plug.layout(layout)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.folder(path) as aside:
            adapters.save(adapted, self.config.adapter, model, layout, base, aside)
            if self.config.adapter.kind == "full":
                self.parts.tokenizer.save_pretrained(str(aside))
        self._rest(model)

    def _rest(self, model: Model) -> None:
        """A server's adapter holds nothing between two saves but the start that a drift is reckoned from."""
        if self.parts.chosen is None:
            self.parts.adapted.rest(start=model.drift is None)
            if self.parts.plug is not None:
                self.parts.plug.whole.rest(start=model.drift is None)

    def _finished(self, status: str) -> None:
        self.events(RunFinished(self.hub.round, time.perf_counter() - self.begun, status))

    def _scored_rows(self) -> bool:
        clients = self.parts.data.clients
        return any(client.sizes[self.config.evaluate.split] or not client.here for client in clients)


def _last_metrics(path: Path, splits: Sequence[str]) -> dict[str, float]:
    """The last scores of the first of these splits that has some."""
    rows = {str(row["split"]): row for row in RunFolder(path).metrics()}
    last = next((rows[split] for split in splits if split in rows), {})
    return {k: float(v) for k, v in last.items() if isinstance(v, int | float) and k not in ("round", "seconds")}
