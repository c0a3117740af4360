"""Offsite-tuning from the owner's side: what the federation trained on an emulator, put back into the owner's model.

The emulator's vector and the owner's are the same numbers in the same order, and one layout, the emulator's, says what
they mean. The owner's model is adapted in the blocks the emulator's were taken from; its modules are called by the
emulator's names there, so that starts, frozen factors, sparse places, directions and clients of other ranks mean the
same in both. That every name, shape and scale fits is checked leaf by leaf before the first round.

Under FedBiOT the emulator has LoRA in the blocks between as well. Those leaves stay out of the owner's model, whose
vector then holds the others alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedloom.adapters.adapted import Adapted
from fedloom.adapters.blocks import Called
from fedloom.adapters.build import adapt
from fedloom.adapters.config import AdapterConfig, FullConfig
from fedloom.adapters.lora import Ranks
from fedloom.algorithms.config import AlgorithmConfig, FedBiotConfig
from fedloom.config import Config
from fedloom.contracts import Algorithm, Call, Client, ClientId, Engine, Model
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Evaluate
from fedloom.evaluation import GLOBAL, Evaluation, Look, Scored, looks, scored
from fedloom.metrics.config import EvaluateConfig
from fedloom.models.layers import find
from fedloom.models.load import Base, location
from fedloom.models.offsite import Plan
from fedloom.models.offsite_config import OffsiteConfig
from fedloom.objectives.base import Objective
from fedloom.params import Layout, Leaf, Params

EMULATOR = "emulator"
"""The split of the clients' rows where another model speaks for the run."""


@dataclass(frozen=True)
class Plug:
    """The owner's model, ready to be given the emulator's vectors."""

    whole: Adapted
    name: str
    """What the adapter's files call it."""
    engine: Engine | None
    """Scores it; None: it is here without its weights."""
    plan: Plan
    shared: Layout
    """The emulator's."""

    def layout(self, layout: Layout) -> Layout:
        """What the owner's vector means, where the emulator's means this."""
        return self.whole.layout if self._parted else layout

    def vector(self, x: Params) -> Params:
        """The owner's part of the emulator's vector [P]: all of it, but under FedBiOT."""
        return self.shared.take(x, self.whole.layout.names) if self._parted else x

    @property
    def _parted(self) -> bool:
        return len(self.whole.layout.leaves) < len(self.shared.leaves)


def adapter(config: AdapterConfig, offsite: OffsiteConfig, layers: Sequence[int]) -> AdapterConfig:
    """What is trained, inside these blocks alone."""
    changes: dict[str, Any] = {"layers": list(layers)}
    if isinstance(config, FullConfig):
        changes["embeddings"] = offsite.embeddings
    return config.model_copy(update=changes)


def trained(algorithm: AlgorithmConfig, plan: Plan) -> Sequence[int]:
    """Blocks of the emulator in which something is trained, by whomever."""
    return range(len(plan.layers)) if isinstance(algorithm, FedBiotConfig) else plan.adapter


def ends(layout: Layout, plan: Plan, blocks: str) -> tuple[str, ...]:
    """Leaves that are the clients': all but those in blocks that stand for the owner's.

    Args:
        layout: the emulator's.
        plan: whose blocks are whose.
        blocks: what the emulator's list of blocks is called.
    """
    emulated = tuple(f"{blocks}.{block}." for block in plan.emulated)
    return tuple(name for name in layout.names if not name.startswith(emulated))


def plug(
    config: Config,
    offsite: OffsiteConfig,
    plan: Plan,
    owned: Base,
    emulator: Adapted,
    tokenizer: Any,
    stop_ids: Sequence[int],
    objective: Objective,
) -> Plug:
    """The owner's model beside the emulator.

    Args:
        config: the whole configuration.
        offsite: its section.
        plan: whose blocks are whose.
        owned: the owner's model, or its skeleton.
        emulator: adapted already.
        tokenizer: writes answers.
        stop_ids: tokens that end an answer.
        objective: how it is scored.

    Raises:
        UserError: the owner's model has not the blocks of the plan.
        ValueError: a tensor does not fit the emulator's.
    """
    blocks = find(owned.module, "offsite")[0]
    called = renamed(plan, blocks)
    inside = adapter(config.adapter, offsite, [plan.home(block) for block in plan.adapter])
    whole = adapt(owned, inside, config.seed, _ranks(emulator), called)
    own = set(ends(emulator.layout, plan, blocks))
    check_fit(Layout.of([leaf for leaf in emulator.layout.leaves if leaf.name in own]), whole.layout)
    engine = None if owned.skeleton else Reference(whole, tokenizer, stop_ids, objective=objective)
    return Plug(whole, location(config.model.name), engine, plan, emulator.layout)


def renamed(plan: Plan, blocks: str) -> Called:
    """From a name in the owner's model to the emulator's name for it.

    Args:
        plan: which of its blocks stand where in the emulator.
        blocks: what the list of blocks is called, in both.
    """
    numbers = {home: block for block, home in enumerate(plan.layers)}

    def called(name: str) -> str:
        number, dot, rest = name.removeprefix(f"{blocks}.").partition(".")
        if not name.startswith(f"{blocks}.") or not number.isdigit():
            return name
        return f"{blocks}.{numbers[int(number)]}{dot}{rest}"

    return called


def check_fit(emulator: Layout, owner: Layout) -> None:
    """Whether both mean the same by every number of a vector.

    Raises:
        ValueError: they do not; the first leaf that differs is named.
    """
    for mine, its in zip(emulator.leaves, owner.leaves, strict=False):
        if mine != its:
            what = ", ".join(f"{field} {theirs} for {ours}" for field, ours, theirs in _differences(mine, its))
            raise ValueError(f"the emulator's {mine.name} does not fit the owner's model: {what}")
    count, wanted = len(owner.leaves), len(emulator.leaves)
    if count != wanted:
        longer = emulator if wanted > count else owner
        where = "in the owner's model" if wanted > count else "in the emulator"
        raise ValueError(f"{longer.leaves[min(count, wanted)].name} is not {where} ({wanted} tensors, there {count})")


def _differences(mine: Leaf, its: Leaf) -> list[tuple[str, Any, Any]]:
    pairs = [(field, getattr(mine, field), getattr(its, field)) for field in mine.__dataclass_fields__]
    return [(field, ours, theirs) for field, ours, theirs in pairs if ours != theirs]


def _ranks(emulator: Adapted) -> Ranks:
    """Every module's rank in the emulator; names may have been chosen by pattern."""
    found = {leaf.module: leaf.shape[0] for leaf in emulator.layout.leaves if leaf.factor == "A"}
    found |= {leaf.module: leaf.shape[1] for leaf in emulator.layout.leaves if leaf.factor == "B"}
    return lambda modules: {name: found.get(name, 1) for name in modules}  # one too many is found by the check


# -- scores


class PluggedScores:
    """Tasks of the owner's model; no client of a deployment knows them."""

    def __init__(self, algorithm: Algorithm[Any], config: EvaluateConfig) -> None:
        self.algorithm, self.config = algorithm, config

    async def score_plugged(self, down: Model, client: Client) -> Scored:
        """Score the owner's model with what this client would use, on its own rows; in a simulation."""
        own = await self.algorithm.personal(down, client)
        return await scored(self.config, client, own, self.config.split, "plugged")

    async def score_plugged_global(self, down: Model, client: Client) -> Scored:
        """Score the owner's model with the shared numbers on rows of nobody; runs on the server's own worker."""
        return await scored(self.config, client, down, "test", "plugged")


def plugged_looks(
    offsite: OffsiteConfig,
    own: Evaluation,
    plugged: PluggedScores | None,
    clients: bool,
    everybody: bool,
    simulated: bool,
) -> list[Look]:
    """What is scored of two models; what decides is the owner's wherever it can be scored.

    Args:
        offsite: what is wanted.
        own: tasks of the emulator.
        plugged: tasks of the owner's model; None: it cannot be scored here.
        clients: some client has rows to score.
        everybody: the server has rows.
        simulated: clients' rows are where the owner's model is.
    """
    if offsite.evaluate == "emulator" or plugged is None or not (simulated or everybody):
        return looks(own, clients, everybody)
    found = list[Look]()
    if simulated and clients:
        found.append(Look(plugged.score_plugged, own.config.split))
    if everybody:
        found.append(Look(plugged.score_plugged_global, GLOBAL, home=True, decides=not simulated))
    if clients and offsite.evaluate == "both":
        found.append(Look(own.score, EMULATOR))
    return found


class Plugging:
    """An engine that scores the owner's model by another one, and leaves all else to the first."""

    def __init__(self, inner: Engine, plugged: Engine, plug: Plug) -> None:
        self.engines = (inner, plugged)
        self.plug = plug
        self._admitted = [0, 0]

    def room(self) -> int:
        """As much as both have."""
        return min(engine.room() for engine in self.engines)

    def admit(self, call: Call[Any]) -> None:
        """Hand it to the one it is for."""
        request, which = call.request, 0
        if isinstance(request, Evaluate) and request.on == "plugged":
            own = replace(request, x=self.plug.vector(request.x), layout=self.plug.layout(request.layout))
            call, which = Call(call.client, own), 1
        self.engines[which].admit(call)
        self._admitted[which] += 1

    def advance(self) -> list[tuple[ClientId, Any]]:
        """What clients train first."""
        which = 0 if self._admitted[0] else 1
        done = self.engines[which].advance()
        self._admitted[which] -= len(done)
        return done

    def abandon(self) -> None:
        """Forget all calls."""
        self._admitted = [0, 0]
        for engine in self.engines:
            engine.abandon()
