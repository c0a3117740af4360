"""From a configuration to the objects of a run, on every side of it: a simulation, a server, a client."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedloom import plugging, teaching
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.build import adapt
from fedloom.adapters.config import AdapterConfig, LoraConfig
from fedloom.adapters.lora import resized, scale
from fedloom.algorithms import table
from fedloom.algorithms.config import FedBiotConfig, FedKdConfig
from fedloom.algorithms.table import Setting
from fedloom.channel.check import Limits
from fedloom.channel.encoding import stages
from fedloom.clients import client_ranks, cohort_size, match_overrides, overridden
from fedloom.config import Config, dump, parse
from fedloom.contracts import HOME, Algorithm, ClientId, Engine, Profile, Stage
from fedloom.data.federated import ClientRows, FederatedData, build_rows
from fedloom.data.rows import Row
from fedloom.engine import optimizers
from fedloom.engine.choice import Chosen, choose
from fedloom.engine.config import LocalConfig
from fedloom.engine.distil import Holder, Tutoring
from fedloom.engine.fitting import Fitter
from fedloom.errors import UserError
from fedloom.evaluation import Evaluation, Handing, Look, looks
from fedloom.events import Event
from fedloom.models import parting
from fedloom.models.identity import frame, kin
from fedloom.models.layers import find
from fedloom.models.load import Base, location
from fedloom.models.load import fingerprint as base_fingerprint
from fedloom.objectives import table as objectives
from fedloom.objectives.base import Objective
from fedloom.params import Layout
from fedloom.plugging import Plug, PluggedScores, Plugging
from fedloom.runtime.attack import attackers, attacking, flip_answers
from fedloom.runtime.client import ClientData, LocalPlan, Split
from fedloom.runtime.config import ClientOverride
from fedloom.runtime.federation import Hub
from fedloom.runtime.group import Group
from fedloom.runtime.link import Link, Reducer
from fedloom.runtime.loopback import SecondProcess
from fedloom.runtime.sampling import Sampler, holdout, sampler
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Memories, Site, Tasks
from fedloom.runtime.store import InMemory, OnDisk, Store
from fedloom.runtime.team import Team
from fedloom.runtime.wire import Marshal
from fedloom.sides import Both, Side, labelled


@dataclass(frozen=True)
class HomeRows:
    """What the server's own worker holds: all rows for a baseline that may move text, and the global test set."""

    train: ClientRows | None
    test: ClientRows | None

    def get(self, split: Split) -> Sequence[Any]:
        """The rows of a split; none where it holds none."""
        source = self.train if split == "train" else self.test
        return source.get(split) if source is not None else []


class Parts:
    """Everything that is built from a configuration, before a federation is put on it."""

    def __init__(self, config: Config, algorithm: Algorithm[Any] | None = None, side: Side | None = None) -> None:
        """Build everything.

        Args:
            config: the whole configuration.
            algorithm: a page of the caller's own, in place of the one the recipe names.
            side: what of it is here; None: all, a simulation.

        Raises:
            UserError: something in the configuration cannot work here.
        """
        if algorithm is not None and config.runtime.name != "simulation":
            raise UserError(
                f"runtime={config.runtime.name} gives its clients the recipe alone, so they cannot know an algorithm "
                "handed over as an object; use runtime=simulation"
            )
        torch.set_num_threads(config.engine.threads)
        optimizers.check(config.local.optimizer)
        self.config, self.side = config, side or Both()
        self.tokenizer = self.side.tokenizer(config)
        self.data: FederatedData = self.side.data(config, self.tokenizer)
        config = self.config = labelled(config, self.data.labels)
        self.objective: Objective = objectives.build(config.objective, config.data.max_length)
        names = [client.name for client in self.data.clients]
        self.overrides = match_overrides(config.clients, names)
        self.holdouts = holdout(config.federation.holdout, names, config.seed)
        self.clients: Sequence[ClientId] = (
            [i for i in range(len(names)) if i not in self.holdouts] if self.holdouts else range(len(names))
        )
        self.cohort = cohort_size(config.federation.cohort, len(self.clients))
        self.sampler = self._sampler() if self.side.server and self.side.clients else None
        self.attackers = attackers(config.attack, names, config.seed, self.holdouts)
        if config.attack.name == "label_flip":
            for i in attacking(config.attack, names, config.seed, self.holdouts):
                self.data.clients[i] = self.data.clients[i].answered(flip_answers)
        self.emulated = self.side.emulated(config)
        self.base: Base = self.side.base(config) if self.emulated is None else self.emulated.base
        self.base_fingerprint = "" if self.base.skeleton else base_fingerprint(self.base.module)
        self.base_kin = "" if self.base.skeleton else kin(self.base.module)
        if self.emulated is not None and self.emulated.facts is not None:  # its folder says it even without weights
            self.base_kin = self.emulated.facts.fingerprint
        self.base_frame = "" if self.base.skeleton else frame(self.base.module)
        self.ranks = client_ranks(config, self.overrides, len(names))
        self.adapted: Adapted = adapt(
            self.base, self._adapter(), config.seed, None if self.ranks is None else self.ranks.largest,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        self.plug = self._plug()
        self.chosen: Chosen | None = None if self.base.skeleton else self._engine()
        if self.chosen is not None:
            self.config = config.model_copy(update={"engine": self.chosen.config})
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self.algorithm: Algorithm[Any] = built(config, self._setting()) if algorithm is None else algorithm
        _check_needs(self.algorithm, config)
        self.evaluation = Evaluation(self.algorithm, config.evaluate)
        self.handing = Handing(self.algorithm) if self.side.server and self.side.clients else None
        scores = self.plug is not None and self.plug.engine is not None
        self.plugged = PluggedScores(self.algorithm, config.evaluate) if scores else None
        more = [owner for owner in (self.handing, self.plugged) if owner is not None]
        self.tasks = Tasks(self.algorithm, self.evaluation, *more)
        known = algorithm is None  # what replies of a page of the caller's own hold, only the caller knows
        steady = known and config.aggregate.space.steady and config.algorithm.steady
        self.stages: tuple[Stage, ...] = stages(config.channel, steady)
        self.everybody = self._global_rows() if self.side.server else None
        pooled = self.data.pooled(self.holdouts) if self.algorithm.needs.pooled_data else None
        learns = self.algorithm.needs.public_rows and self.side.server
        taught = teaching.public(self.data.public, config.algorithm.name) if learns else None
        self.home = HomeRows(taught if pooled is None else pooled, self.everybody)
        self.tutor: Holder | None = self._tutor() if taught is not None else None

    def profile(self, client: ClientId) -> Profile:
        """What the server knows of a client."""
        if client == HOME:
            return Profile(HOME, "server", self.adapted.layout)
        return Profile(client, self.data.clients[client].name, self.layout(client), self._override(client).speed)

    def layout(self, client: ClientId) -> Layout:
        """What a client's vector means: its ranks may be smaller than the shared ones."""
        shared, adapter = self.adapted.layout, self.config.adapter
        if self.ranks is None or not self.ranks.differ or not isinstance(adapter, LoraConfig):
            return shared
        modules = list(self.adapted.extras)
        ranks = self.ranks.of(client, modules)
        kind = tuple(ranks[name] for name in modules)
        if kind not in self._layouts:
            self._layouts[kind] = resized(shared, ranks, lambda rank: scale(adapter, rank))
        return self._layouts[kind]

    def rows(self, client: ClientId) -> ClientData:
        """A client's rows."""
        return self.home if client == HOME else self.data.clients[client]

    def plan(self, client: ClientId) -> LocalPlan:
        """How a client trains; the server's worker trains as much as a cohort together."""
        c = self.config
        local = self._home_local() if client == HOME else overridden(c.local, self._override(client))
        return LocalPlan(local, c.federation.rounds, c.aggregate.weighting)

    @property
    def engine(self) -> str:
        """Which engine trains, in words."""
        return "each client's own" if self.chosen is None else self.chosen.words

    @property
    def computing(self) -> tuple[str, str]:
        """Device and number format of the base, in words."""
        if self.base.skeleton:
            return "its own machine", self.config.model.dtype
        return str(self.base.device), str(self.base.dtype).removeprefix("torch.")

    def site(self, store: Memories) -> Site:
        """The clients' side, with their memories."""
        if self.chosen is None:
            raise ValueError("nothing is computed where the base model's weights are not")
        return Site(
            tasks=self.tasks,
            engine=self._served(self.chosen.engine),
            store=store,
            profile=self.profile,
            data=self.rows,
            plan=self.plan,
            root=self.config.seed,
            window=self.config.runtime.window,
            stages=self.stages,
            attack=self.attackers.get,
        )

    def marshal(self, run: str = "", config: str | None = None) -> Marshal:
        """Messages of this run as bytes; `config` stands for the recipe where that is not this one to the letter."""
        return Marshal(self.tasks, self.adapted.layout.fingerprint, config or fingerprint(self.config), run)

    def cost(self, client: ClientId, task: str) -> float:
        """About how much text a task reads, in characters; from the rows as they are, without encoding them."""
        local, rows = self.plan(client).local, self.data.clients[client]
        training = task not in {*vars(Evaluation), *vars(PluggedScores)}
        split: Split = "train" if training else self.config.evaluate.split
        length = rows.length(split)
        if not training:
            scored = self.config.evaluate.rows_per_client
            return length * min(rows.sizes[split], rows.sizes[split] if scored is None else scored)
        passes = math.ceil(rows.sizes[split] / local.batch_size) * (local.epochs or 0)
        return length * local.batch_size * (local.steps if local.steps is not None else max(1, round(passes)))

    def looks(self, clients: bool) -> list[Look]:
        """What is scored; `clients`: some of them have rows."""
        offsite, everybody = self.config.offsite, self.everybody is not None
        if offsite is None:
            return looks(self.evaluation, clients, everybody)
        return plugging.plugged_looks(
            offsite, self.evaluation, self.plugged, clients, everybody, simulated=self.side.clients
        )

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know of the parts."""
        offsite, leading = self.config.offsite, self.side.server and not self.side.clients
        if offsite is None or offsite.evaluate == "emulator" or not leading or self.everybody is not None:
            return []
        return [
            f"offsite.evaluate={offsite.evaluate}: the server has no rows of its own (evaluate.global_source), so the "
            "emulator alone is scored, and decides which round is the best"
        ]

    @property
    def base_name(self) -> str:
        """What the files of an adapter call the model it was trained on."""
        offsite = self.config.offsite
        where = None if offsite is None else parting.folder(offsite)
        return location(self.config.model.name) if where is None else str(where)

    def hub(self, store: Path | None, events: Callable[[Event], None], group: Group, remote: Link | None = None) -> Hub:
        """The federation, on the runtime the recipe names and the processes there are, or on clients elsewhere."""
        link: Link
        home: Link | None
        reducer: Reducer | None = None
        if remote is not None:
            link, home = remote, None if self.chosen is None else InProcess(self.site(shelved(store)))
        elif group.size > 1:
            link = home = team = Team(
                self.site(shelved(store)), group, self.marshal(), self.cost, self.config.runtime.window
            )
            reducer = team if self.config.runtime.reduce == "sums" else None
        elif self.config.runtime.name == "loopback":
            arguments = {"config": dump(self.config), "store": str(store) if store else None}
            link = home = SecondProcess("fedloom.assembly:worker_site", arguments, self.marshal())
        else:
            link = home = InProcess(self.site(shelved(store)))
        return Hub(
            link=link,
            home=home,
            tasks=self.tasks,
            clients=self.clients,
            everybody=range(len(self.data.clients)),
            sampler=self.sampler or self._sampler(),
            profile=self.profile,
            cohort=self.cohort,
            root=self.config.seed,
            min_replies=self.config.federation.min_replies,
            stages=self.stages,
            limits=Limits(self.config.channel.max_norm, self.config.channel.max_weight),
            reducer=reducer,
            events=events,
        )

    def _sampler(self) -> Sampler:
        """Who is asked; a server knows sizes only when its clients have joined."""
        return sampler(
            self.config.federation.sampling, [client.name for client in self.data.clients],
            lambda i: self.data.clients[i].sizes["train"], count=self.cohort, seed=self.config.seed,
            holdouts=self.holdouts,
        )  # fmt: skip

    def _engine(self) -> Chosen:
        c = self.config
        return choose(
            c.engine, self.adapted, self.tokenizer, self.data.encoder.stop_ids,
            optimizer=c.local.optimizer, dtype=self.base.dtype, parameters=self.base.parameters,
            checkpointing=c.model.gradient_checkpointing, attention=self.base.attention, objective=self.objective,
        )  # fmt: skip

    def _adapter(self) -> AdapterConfig:
        if self.emulated is None or self.config.offsite is None:
            return self.config.adapter
        blocks = plugging.trained(self.config.algorithm, self.emulated.plan)
        return plugging.adapter(self.config.adapter, self.config.offsite, blocks)

    def _plug(self) -> Plug | None:
        """The owner's model, where the base is an emulator of it and this side holds it."""
        emulated, offsite = self.emulated, self.config.offsite
        owned = None if emulated is None else self.side.owned(self.config, emulated.facts)
        if emulated is None or offsite is None or owned is None:
            return None
        if not owned.skeleton:
            self.base_fingerprint += f"-{base_fingerprint(owned.module)}"
        return plugging.plug(
            self.config, offsite, emulated.plan, owned, self.adapted, self.tokenizer, self.data.encoder.stop_ids,
            self.objective,
        )  # fmt: skip

    def _served(self, engine: Engine) -> Engine:
        """All that can be asked of this side."""
        if self.tutor is not None:
            engine = Tutoring(engine, self.tutor)
        if self.plug is not None and self.plug.engine is not None:
            engine = Plugging(engine, self.plug.engine, self.plug)
        return engine

    def _tutor(self) -> Holder | None:
        """Who holds a second model that the recipe's own algorithm learns with."""
        if isinstance(self.config.algorithm, FedBiotConfig) and self.plug is not None:
            return Fitter(self.adapted, self.plug.whole, self.plug.plan, self.tokenizer, self.objective)
        if not isinstance(self.config.algorithm, FedKdConfig):
            return None
        return teaching.build(self.config, self.adapted, self.tokenizer, self.objective)

    def _setting(self) -> Setting:
        c, layout = self.config, self.adapted.layout
        modules = list(self.adapted.extras)
        levels = set[int]()
        if self.ranks is not None:
            for client in self.clients if self.ranks.differ else [0]:
                levels |= set(self.ranks.of(client, modules).values())
            levels |= set(self.ranks.largest(modules).values())  # of clients that only are evaluated, too
        args = c.local.optimizer.args
        return Setting(
            layout=layout, seed=c.seed, rounds=c.federation.rounds, cohort=self.cohort, lr=c.local.lr,
            momentum=float(args.get("momentum", 0.0)) if c.local.optimizer.name.lower() == "sgd" else 0.0,
            density=c.adapter.sparse if isinstance(c.adapter, LoraConfig) else None, levels=tuple(sorted(levels)),
            steps=max(c.local.steps or 1, *(one.steps or 1 for one in self.overrides.values()), 1),
            ends=self._ends(),
        )  # fmt: skip

    def _ends(self) -> tuple[str, ...]:
        """Leaves in the blocks that clients train, where they have an emulator."""
        if self.emulated is None:
            return ()
        return plugging.ends(self.adapted.layout, self.emulated.plan, find(self.base.module, "offsite")[0])

    def _override(self, client: ClientId) -> ClientOverride:
        return self.overrides.get(client, ClientOverride())

    def _home_local(self) -> LocalConfig:
        local = self.config.local
        if local.epochs is not None:
            return local.model_copy(update={"epochs": local.epochs * self.cohort / len(self.clients)})
        return local.model_copy(update={"steps": (local.steps or 1) * self.cohort})

    def _global_rows(self) -> ClientRows | None:
        evaluate, rows = self.config.evaluate, list[Row]()
        if evaluate.global_source is not None:
            from fedloom.data.sources import load_other

            kind = self.config.objective.rows
            rows += load_other(self.config.data, evaluate.global_source, self.config.seed, kind).rows
        if evaluate.forgetting:
            rows += base_skill_rows(self.config)
        return build_rows(rows, self.data.encoder, "global") if rows else None


def worker_site(config: str, store: str | None) -> tuple[Site, Marshal]:
    """What the second process builds, from the recipe's text alone."""
    parts = Parts(parse(config))
    return parts.site(shelved(Path(store) if store else None)), parts.marshal()


def shelved(folder: Path | None) -> Store:
    """Clients' memories in a folder, or nowhere but here."""
    return Store(OnDisk(folder) if folder else InMemory())


def fingerprint(config: Config) -> str:
    """Sixteen hex digits over every setting that changes what is computed; not how many processes compute it, nor how
    long anybody waits for anybody.
    """
    runtime = config.runtime.model_copy(update={"workers": 1, "timeout": type(config.runtime)().timeout})
    changes = {"run": type(config.run)(), "runtime": runtime, "deploy": type(config.deploy)()}
    return hashlib.blake2b(dump(config.model_copy(update=changes)).encode(), digest_size=8).hexdigest()


def built(config: Config, setting: Setting) -> Algorithm[Any]:
    """The page of the recipe.

    Raises:
        UserError: it cannot be made for this adapter.
    """
    try:
        return table.build(config.algorithm, config.aggregate, setting)
    except ValueError as error:
        raise UserError(f"algorithm={config.algorithm.name}: {error}") from None


def base_skill_rows(config: Config) -> list[Row]:
    """A few rows of every skill the embedded model was made with, to see what tuning makes it forget.

    Raises:
        UserError: the recipe does not use the embedded data.
    """
    from fedloom.data import playground

    if config.data.source != "playground":
        raise UserError("evaluate.forgetting needs data.source=playground; use evaluate.global_source for other data")
    made = playground.rows(tuple(playground.BASE), 4, "test", config.seed)
    return [Row(r["instruction"], r["input"], r["output"], r["category"]) for r in made]


def _check_needs(algorithm: Algorithm[Any], config: Config) -> None:
    """What the algorithm declared that it cannot do without."""
    optimizer = config.local.optimizer
    if algorithm.needs.sgd_only and (optimizer.name.lower() != "sgd" or optimizer.args.get("momentum", 0)):
        raise UserError(
            f"{type(algorithm).__name__} is right only for plain SGD on clients, and local.optimizer is "
            f"{optimizer.name}; set local.optimizer=sgd, without momentum"
        )
    if algorithm.needs.pooled_data and config.clients:
        raise UserError(
            "clients: settings of single clients mean nothing where all rows are in one place; leave them out"
        )
