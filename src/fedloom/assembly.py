"""From a configuration to the objects of a run. The second process of the loopback runtime uses the same half."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedloom.adapters.adapted import Adapted
from fedloom.adapters.build import adapt
from fedloom.adapters.config import LoraConfig
from fedloom.adapters.lora import resized, scale
from fedloom.adapters.ranks import Ranks
from fedloom.algorithms import table
from fedloom.algorithms.table import Setting
from fedloom.config import Config, dump, parse
from fedloom.contracts import HOME, Algorithm, ClientId, Profile
from fedloom.data.federated import ClientRows, FederatedData, build, build_rows
from fedloom.data.rows import Row
from fedloom.engine import optimizers
from fedloom.engine.choice import Chosen, choose
from fedloom.engine.config import LocalConfig
from fedloom.errors import UserError, nearest
from fedloom.evaluation import Evaluation
from fedloom.events import Event
from fedloom.models.load import Base, load_model, load_tokenizer
from fedloom.models.load import fingerprint as base_fingerprint
from fedloom.params import Layout
from fedloom.runtime.attack import attackers, attacking, flip_answers
from fedloom.runtime.client import ClientData, LocalPlan, Split
from fedloom.runtime.config import ClientOverride
from fedloom.runtime.federation import Hub, Link, Reducer
from fedloom.runtime.group import Group
from fedloom.runtime.loopback import SecondProcess
from fedloom.runtime.sampling import holdout, sampler
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.store import InMemory, OnDisk, Store
from fedloom.runtime.team import Team
from fedloom.runtime.wire import Marshal


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

    def __init__(self, config: Config, algorithm: Algorithm[Any] | None = None) -> None:
        """Build everything.

        Args:
            config: the whole configuration.
            algorithm: a page of the caller's own, in place of the one the recipe names.

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
        self.config = config
        self.tokenizer = load_tokenizer(config.model)
        self.data: FederatedData = build(config.data, config.partition, config.seed, self.tokenizer)
        names = [client.name for client in self.data.clients]
        self.overrides = match_overrides(config.clients, names)
        self.holdouts = holdout(config.federation.holdout, names, config.seed)
        self.clients: Sequence[ClientId] = (
            [i for i in range(len(names)) if i not in self.holdouts] if self.holdouts else range(len(names))
        )
        self.cohort = cohort_size(config.federation.cohort, len(self.clients))
        self.sampler = sampler(
            config.federation.sampling, names, lambda i: self.data.clients[i].sizes["train"], count=self.cohort,
            seed=config.seed, holdouts=self.holdouts,
        )  # fmt: skip
        self.attackers = attackers(config.attack, names, config.seed, self.holdouts)
        if config.attack.name == "label_flip":
            for i in attacking(config.attack, names, config.seed, self.holdouts):
                self.data.clients[i] = self.data.clients[i].answered(flip_answers)
        self.base: Base = load_model(
            config.model, trained_whole=config.adapter.kind == "full", longest=config.data.max_length
        )
        _check_length(self.base, config.data.max_length)
        self.base_fingerprint = base_fingerprint(self.base.module)
        self.ranks = client_ranks(config, self.overrides, len(names))
        self.adapted: Adapted = adapt(
            self.base, config.adapter, config.seed, None if self.ranks is None else self.ranks.largest
        )
        self.chosen: Chosen = self._engine()
        self.config = config.model_copy(update={"engine": self.chosen.config})
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self.algorithm: Algorithm[Any] = built(config, self._setting()) if algorithm is None else algorithm
        _check_needs(self.algorithm, config)
        self.evaluation = Evaluation(self.algorithm, config.evaluate)
        self.tasks = Tasks(self.algorithm, self.evaluation)
        self.everybody = self._global_rows()
        pooled = self.data.pooled(self.holdouts) if self.algorithm.needs.pooled_data else None
        self.home = HomeRows(pooled, self.everybody)

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

    def site(self, store: Path | None) -> Site:
        """The clients' side; `store` is the folder of their memories."""
        return Site(
            tasks=self.tasks,
            engine=self.chosen.engine,
            store=Store(OnDisk(store) if store else InMemory()),
            profile=self.profile,
            data=self.rows,
            plan=self.plan,
            root=self.config.seed,
            window=self.config.runtime.window,
            attack=self.attackers.get,
        )

    def marshal(self) -> Marshal:
        """Messages of this run as bytes."""
        return Marshal(self.tasks, self.adapted.layout.fingerprint, fingerprint(self.config))

    def cost(self, client: ClientId, task: str) -> float:
        """About how much text a task reads, in characters; from the rows as they are, without encoding them."""
        local, rows = self.plan(client).local, self.data.clients[client]
        training = task not in vars(Evaluation)
        split: Split = "train" if training else self.config.evaluate.split
        length = rows.length(split)
        if not training:
            scored = self.config.evaluate.rows_per_client
            return length * min(rows.sizes[split], rows.sizes[split] if scored is None else scored)
        passes = math.ceil(rows.sizes[split] / local.batch_size) * (local.epochs or 0)
        return length * local.batch_size * (local.steps if local.steps is not None else max(1, round(passes)))

    def hub(self, store: Path | None, events: Callable[[Event], None], group: Group) -> Hub:
        """The federation, on the runtime the recipe names and the processes there are."""
        link: Link
        reducer: Reducer | None = None
        if group.size > 1:
            link = team = Team(self.site(store), group, self.marshal(), self.cost, self.config.runtime.window)
            reducer = team if self.config.runtime.reduce == "sums" else None
        elif self.config.runtime.name == "loopback":
            arguments = {"config": dump(self.config), "store": str(store) if store else None}
            link = SecondProcess("fedloom.assembly:worker_site", arguments, self.marshal())
        else:
            link = InProcess(self.site(store))
        return Hub(
            link=link,
            home=link,
            tasks=self.tasks,
            clients=self.clients,
            everybody=range(len(self.data.clients)),
            sampler=self.sampler,
            profile=self.profile,
            cohort=self.cohort,
            root=self.config.seed,
            min_replies=self.config.federation.min_replies,
            reducer=reducer,
            events=events,
        )

    def _engine(self) -> Chosen:
        c = self.config
        return choose(
            c.engine, self.adapted, self.tokenizer, self.data.encoder.stop_ids,
            optimizer=c.local.optimizer, dtype=self.base.dtype, parameters=self.base.parameters,
            checkpointing=c.model.gradient_checkpointing, attention=self.base.attention,
        )  # fmt: skip

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
        )  # fmt: skip

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
            from fedloom.data.sources import load

            data = self.config.data.model_copy(update={"source": evaluate.global_source, "limit": None})
            rows += load(data, self.config.seed).rows
        if evaluate.forgetting:
            rows += base_skill_rows(self.config)
        return build_rows(rows, self.data.encoder, "global") if rows else None


def worker_site(config: str, store: str | None) -> tuple[Site, Marshal]:
    """What the second process builds, from the recipe's text alone."""
    parts = Parts(parse(config))
    return parts.site(Path(store) if store else None), parts.marshal()


def fingerprint(config: Config) -> str:
    """Sixteen hex digits over every setting that changes what is computed; not how many processes compute it."""
    runtime = config.runtime.model_copy(update={"workers": 1, "timeout": type(config.runtime)().timeout})
    text = dump(config.model_copy(update={"run": type(config.run)(), "runtime": runtime}))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def cohort_size(cohort: int | str, clients: int) -> int:
    """Clients asked in a round.

    Raises:
        UserError: more than there are.
    """
    if isinstance(cohort, str):
        return max(1, round(clients * float(cohort.rstrip("%")) / 100))
    if cohort > clients:
        raise UserError(f"federation.cohort={cohort}, but there are {clients} clients; ask for at most that many")
    return cohort


def built(config: Config, setting: Setting) -> Algorithm[Any]:
    """The page of the recipe.

    Raises:
        UserError: it cannot be made for this adapter.
    """
    try:
        return table.build(config.algorithm, config.aggregate, setting)
    except ValueError as error:
        raise UserError(f"algorithm={config.algorithm.name}: {error}") from None


def client_ranks(config: Config, overrides: Mapping[ClientId, ClientOverride], clients: int) -> Ranks | None:
    """Every client's LoRA ranks; None for other adapters.

    Raises:
        UserError: a rank is given, but the adapter has none.
    """
    named = {i: override.rank for i, override in overrides.items() if override.rank is not None}
    if not isinstance(config.adapter, LoraConfig):
        if named:
            raise UserError(f"clients: a rank is given, but adapter.kind={config.adapter.kind} has no ranks")
        return None
    return Ranks(config.adapter, clients, named, config.seed)


def match_overrides(clients: dict[str, ClientOverride], names: Sequence[str]) -> dict[ClientId, ClientOverride]:
    """Overrides by client number; a later entry wins where two name one client.

    Raises:
        UserError: an entry names no client.
    """
    found: dict[ClientId, ClientOverride] = {}
    for key, override in clients.items():
        first, dash, last = key.partition("-")
        if key in names:
            chosen = range(names.index(key), names.index(key) + 1)
        elif key.isdigit():
            chosen = range(int(key), int(key) + 1)
        elif dash and first.isdigit() and last.isdigit():
            chosen = range(int(first), int(last) + 1)
        else:
            raise UserError(f"clients.{key}: no client has this name.{nearest(key, names[:200])}")
        if not chosen or chosen[-1] >= len(names):
            raise UserError(f"clients.{key}: clients are numbered 0 to {len(names) - 1}")
        found |= {
            i: found.get(i, ClientOverride()).model_copy(update=override.model_dump(exclude_unset=True)) for i in chosen
        }
    return found


def overridden(local: LocalConfig, override: ClientOverride) -> LocalConfig:
    """`local` with a client's own settings; steps and epochs replace each other."""
    changes = {k: v for k, v in override.model_dump(exclude={"speed", "rank"}).items() if v is not None}
    if "steps" in changes:
        changes["epochs"] = None
    elif "epochs" in changes:
        changes["steps"] = None
    return local.model_copy(update=changes)


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


def _check_length(base: Base, max_length: int) -> None:
    if base.max_positions is not None and max_length > base.max_positions:
        raise UserError(
            f"data.max_length={max_length}, but {base.name} was built for {base.max_positions} tokens; lower it"
        )
