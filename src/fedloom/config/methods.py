"""Which algorithms, spaces, rules, server optimisers and adapters go together.

Each refusal has a reason in the mathematics; none is a matter of taste. Settings without meaning are refused too.
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.aggregate.config import (
    AggregateConfig,
    BulyanConfig,
    FactorsConfig,
    KrumConfig,
    MeanConfig,
    MultiKrumConfig,
    ServerSgdConfig,
    SlicesConfig,
    SparseConfig,
    TurnsConfig,
)
from fedloom.algorithms.config import (
    FedAvgConfig,
    FedBuffConfig,
    FedKdConfig,
    FedNovaConfig,
    FedSwaConfig,
    HetLoraConfig,
    PFedMeConfig,
    ScaffoldConfig,
)
from fedloom.config import offsite
from fedloom.config.schema import Config
from fedloom.config.zeroth import idle

Said: TypeAlias = Iterator[tuple[str, ...]]
"""(what is wrong, the key it is said of, further keys it depends on)."""


def space_and_algorithm(config: Config) -> Said:
    """Pages that do algebra on the trained numbers, or bring their own geometry, take no other space."""
    algorithm, space = config.algorithm, config.aggregate.space
    if algorithm.spaces == "any" or isinstance(space, FactorsConfig) or (algorithm.spaces == "linear" and space.linear):
        return
    why = "brings its own" if algorithm.spaces == "one" else "works on the trained numbers themselves"
    yield (
        f"is {space.name}, but {algorithm.name} {why}. Leave it out, or use algorithm=fedavg.",
        "aggregate.space",
        "algorithm",
    )


def rule_and_algorithm(config: Config) -> Said:
    """A rule that was chosen to stand attacks must not be left out in silence; nor an attack that hits nobody."""
    algorithm, aggregate = config.algorithm, config.aggregate
    if not algorithm.guarded and not isinstance(aggregate.rule, MeanConfig):
        text = f"is {aggregate.rule.name}, but {algorithm.name} combines replies by itself. Use algorithm=fedavg."
        yield text, "aggregate.rule", "algorithm"
    changed = config.attack.name not in ("none", "label_flip")
    if algorithm.descents == "several" and changed:
        text = (
            f"is {config.attack.name}, which changes what a training gives, but {algorithm.name} trains several times "
        )
        yield f"{text}before it sends. Use label_flip, or another algorithm.", "attack", "algorithm"
    if algorithm.name == "centralized" and config.attack.name != "none":
        yield f"is {config.attack.name}, but no client trains under centralized. Leave it out.", "attack", "algorithm"


def turns_that_learn(config: Config) -> Said:
    """B begins at zero, and beside a zero B no gradient reaches A."""
    space = config.aggregate.space
    if isinstance(space, TurnsConfig) and space.first == "A" and not space.alternate:
        text = "is A in every round, but B stays zero beside it and nothing is ever learned. Use B, or alternate."
        yield text, "aggregate.space.first", "aggregate.space"


def without_effect(config: Config) -> list[str]:
    """Settings the algorithm never looks at, in words: recipes are run with one algorithm after another."""
    algorithm, aggregate, said = config.algorithm, config.aggregate, []
    if not algorithm.server and aggregate.server_optimizer != ServerSgdConfig():
        said.append(f"aggregate.server_optimizer has no effect: {algorithm.name} has a server step of its own")
    if algorithm.weighted != "any" and aggregate.weighting not in (AggregateConfig().weighting, algorithm.weighted):
        how = "counts all clients alike" if algorithm.weighted == "uniform" else "weights clients by the rows they hold"
        said.append(f"aggregate.weighting={aggregate.weighting} has no effect: {algorithm.name} {how}")
    if isinstance(algorithm, FedBuffConfig):
        if not algorithm.weighted_updates and aggregate.weighting != AggregateConfig().weighting:
            said.append("aggregate.weighting has no effect without algorithm.weighted_updates")
    elif any(one.speed != 1 for one in config.clients.values()):
        said.append(f"clients.*.speed has no effect: {algorithm.name} waits for everybody")
    return said + idle(config) + offsite.idle(config)


def lora_needed(config: Config) -> Said:
    """Spaces that look inside LoRA pairs, and pages that do."""
    if isinstance(config.adapter, LoraConfig):
        return
    kind = config.adapter.kind
    if config.aggregate.space.lora:
        text = f"is {config.aggregate.space.name}, which needs LoRA factors, but adapter.kind is {kind}."
        yield text, "aggregate.space", "adapter"
    if config.algorithm.spaces == "one" or config.algorithm.name == "dual":
        yield (
            f"is {config.algorithm.name}, which needs LoRA factors, but adapter.kind is {kind}.",
            "algorithm",
            "adapter",
        )


def blocks_that_learn(config: Config) -> Said:
    """Some block must be left to train, and what stands outside the blocks is trained anyway where all is."""
    adapter = config.adapter
    if not isinstance(adapter, LoraConfig | FullConfig):
        return
    outside = isinstance(adapter, FullConfig) and adapter.embeddings
    if adapter.layers == [] and not outside:
        yield "is an empty list: nothing would be trained. Name a block, or leave it out.", "adapter.layers"
    if adapter.layers is not None and len(set(adapter.layers)) < len(adapter.layers):
        yield f"is {adapter.layers}, which names a block twice. Name each once.", "adapter.layers"
    if outside and adapter.layers is None and config.offsite is None:
        text = "is true, but without adapter.layers everything is trained anyway. Name the blocks, or leave it out."
        yield text, "adapter.embeddings", "adapter.layers"


def mixed_ranks(config: Config) -> Said:
    """Factors of different ranks cannot be averaged number by number."""
    adapter = config.adapter
    if not isinstance(adapter, LoraConfig) or not ranks_differ(config):
        return
    space, algorithm = config.aggregate.space, config.algorithm
    where = "adapter.ranks" if adapter.ranks.name != "homogeneous" else "clients"
    if not space.mixed and not isinstance(algorithm, HetLoraConfig):
        text = (
            f"gives clients different ranks, whose factors cannot be averaged by {algorithm.name} in space "
            f"{space.name}. Use aggregate.space=products (FlexLoRA), slices (raFLoRA), stacked (FLoRA), or "
            "algorithm=hetlora."
        )
        yield text, where, "aggregate.space", "algorithm"
    if adapter.freeze != "none":
        yield "gives clients different ranks, but adapter.freeze=A shares one first factor.", where, "adapter.freeze"
    if adapter.scale != "shared" and (isinstance(algorithm, HetLoraConfig) or isinstance(space, SlicesConfig)):
        name = algorithm.name if isinstance(algorithm, HetLoraConfig) else f"space {space.name}"
        text = f"is {adapter.scale}, but {name} puts ranks of different clients side by side. Use adapter.scale=shared."
        yield text, "adapter.scale", where, "aggregate.space", "algorithm"


def ranks_differ(config: Config) -> bool:
    """Whether any client may hold another rank than `adapter.rank`."""
    adapter = config.adapter
    if not isinstance(adapter, LoraConfig):
        return False
    return adapter.ranks.name != "homogeneous" or any(
        one.rank is not None and one.rank != adapter.rank for one in config.clients.values()
    )


def number_by_number(config: Config) -> Said:
    """The factors of a product turn freely (B G)(G^-1 A), so single numbers mean nothing there."""
    space, rule, server = config.aggregate.space, config.aggregate.rule, config.aggregate.server_optimizer
    if space.linear:
        return
    reason = f"but in space {space.name} the numbers of A and B have no meaning of their own"
    if not isinstance(server, ServerSgdConfig):
        text = f"is {server.name}, which works number by number, {reason}. Use sgd (with momentum, if you like)."
        yield text, "aggregate.server_optimizer", "aggregate.space"
    if space.name == "refactored" and isinstance(server, ServerSgdConfig) and server.momentum:
        text = (
            f"is {server.momentum:g}, but space refactored turns B's basis in every round, so old updates do not fit."
        )
        yield f"{text} Use 0.", "aggregate.server_optimizer.momentum", "aggregate.space"
    if isinstance(space, SlicesConfig) and space.empty == "keep" and server != ServerSgdConfig():
        text = "is not plain averaging, but slices that nobody sent keep their last value, which no step may move."
        yield (
            f"{text} Use lr 1 without momentum, or aggregate.space.empty=zero.",
            "aggregate.server_optimizer",
            "aggregate.space",
        )
    if rule.coordinates:
        text = f"is {rule.name}, which works number by number, {reason}. Use krum, multi_krum, norm_bound or "
        yield f"{text}geometric_median.", "aggregate.rule", "aggregate.space"


def frozen_factor(config: Config) -> Said:
    """With A frozen there is no pair to look into."""
    adapter = config.adapter
    if not isinstance(adapter, LoraConfig) or adapter.freeze == "none":
        return
    pairs = config.algorithm.spaces == "one" or config.algorithm.name in ("dual", "fedbiot")
    if config.aggregate.space.lora or pairs:
        what = config.aggregate.space.name if config.aggregate.space.lora else config.algorithm.name
        yield f"is A, but {what} needs both factors. Leave it out.", "adapter.freeze", "aggregate.space", "algorithm"


def sparse_stage(config: Config) -> Said:
    """SLoRA's two halves stand in two sections."""
    adapter, space = config.adapter, config.aggregate.space
    if not isinstance(adapter, LoraConfig):
        return
    if isinstance(space, SparseConfig):
        if adapter.sparse is None:
            text = "is not given, but aggregate.space=sparse trains a sparse update first. Set it, for example to 0.01."
            yield text, "adapter.sparse", "aggregate.space"
        if space.rounds >= config.federation.rounds:
            text = (
                f"is {space.rounds}, but there are {config.federation.rounds} rounds: none would be left for LoRA. "
                "Use fewer."
            )
            yield text, "aggregate.space.rounds", "federation.rounds"
    elif adapter.sparse is not None:
        text = f"is {adapter.sparse:g}, but only aggregate.space=sparse (SLoRA) knows what to do with it. Leave it out."
        yield text, "adapter.sparse", "aggregate.space"


def enough_replies(config: Config) -> Said:
    """What a rule needs is known before anybody is asked, where the cohort is a number."""
    from fedloom.config.checks import asked_clients

    rule, asked = config.aggregate.rule, asked_clients(config)
    if asked is None:
        return
    least = 1
    if isinstance(rule, KrumConfig | MultiKrumConfig):
        least = 2 * rule.f + 3
    elif isinstance(rule, BulyanConfig):
        least = 4 * rule.f + 3
    if asked < least:
        text = (
            f"is {rule.name}, which needs {least} replies, but {asked} clients are asked. Ask more (federation.cohort)."
        )
        yield text, "aggregate.rule", "federation.cohort", "partition.clients"
    elif isinstance(rule, MultiKrumConfig) and rule.m > asked - rule.f - 2:
        text = f"is {rule.m}, but of {asked} replies at most {asked - rule.f - 2} are sure to be honest (n - f - 2)."
        yield text, "aggregate.rule.m", "federation.cohort", "partition.clients"


def numbers_of_pages(config: Config) -> Said:
    """What single algorithms ask of other sections."""
    from fedloom.config.checks import asked_clients

    algorithm, asked = config.algorithm, asked_clients(config)
    if isinstance(algorithm, FedBuffConfig) and asked is not None and algorithm.buffer > asked:
        text = f"is {algorithm.buffer}, but only {asked} clients are at work at once (federation.cohort). Lower it."
        yield text, "algorithm.buffer", "federation.cohort", "partition.clients"
    if isinstance(algorithm, PFedMeConfig) and algorithm.lr * algorithm.lam > 1:
        text = (
            f"is {algorithm.lr:g}: times algorithm.lam={algorithm.lam:g} it is above 1 and would overshoot. Lower one."
        )
        yield text, "algorithm.lr", "algorithm.lam"
    if isinstance(algorithm, FedSwaConfig) and algorithm.cycle is not None and algorithm.every == 1:
        yield "is given, but a cycle of one round has no room to fall. Raise algorithm.every.", "algorithm.cycle"
    optimizer, local = config.local.optimizer, config.local
    if isinstance(algorithm, ScaffoldConfig) and algorithm.option == "II":
        spoils = [
            ("local.max_grad_norm", local.max_grad_norm, "Use null"),
            ("local.optimizer.weight_decay", optimizer.weight_decay, "Use 0"),
        ]
        for key, value, remedy in spoils:
            if value:
                text = f"is {value:g}, but option II reads gradients from how far plain SGD went. {remedy}, or option "
                yield f"{text}gradient.", key, "algorithm.option"
    if isinstance(algorithm, FedNovaConfig):
        for name in ("nesterov", "dampening"):
            if optimizer.args.get(name):
                text = f"has {name}, for which FedNova's normalisation is not known. Leave it out."
                yield text, "local.optimizer.args", "algorithm"
        if any(one.lr is not None for one in config.clients.values()):
            text = "gives single clients a learning rate, but FedNova compares steps of one rate. Leave lr out."
            yield text, "clients", "algorithm"
    momentum = config.local.optimizer.args.get("momentum", 0) if config.local.optimizer.name.lower() == "sgd" else 0
    if isinstance(algorithm, FedNovaConfig) and algorithm.mu and momentum:
        text = "is not 0 while clients use momentum: FedNova has a normalisation for each, not for both. Drop one."
        yield text, "algorithm.mu", "local.optimizer"
    if isinstance(algorithm, FedAvgConfig) and algorithm.keep_inner and config.aggregate.space.name != "factors":
        text = (
            f"is true, but in space {config.aggregate.space.name} clients do not go on from the numbers their "
            "optimiser remembers. Use false."
        )
        yield text, "algorithm.keep_inner", "aggregate.space"


def teacher_and_rows(config: Config) -> Said:
    """What a teacher is taught with, and where a student can follow it."""
    algorithm = config.algorithm
    if not isinstance(algorithm, FedKdConfig):
        return
    if not config.data.public and config.data.public_source is None:
        text = (
            "is fedkd, which distils on rows that belong to no client. Set data.public (a share of the training rows, "
            "such as 0.2) or data.public_source (a file of the server's own)."
        )
        yield text, "algorithm", "data.public"
    if config.objective.name not in ("sft", "classify"):
        text = "is fedkd, where a teacher says what class or token it expects. Use objective=classify or objective=sft."
        yield text, "algorithm", "objective"
    if algorithm.kl == "raw_logits" and config.local.accumulate > 1:
        text = "is raw_logits, a loss that cannot be computed in parts. Use local.accumulate=1, or kl=proper."
        yield text, "algorithm.kl", "local.accumulate"


METHODS: Final = (
    space_and_algorithm,
    rule_and_algorithm,
    turns_that_learn,
    lora_needed,
    blocks_that_learn,
    mixed_ranks,
    number_by_number,
    frozen_factor,
    sparse_stage,
    enough_replies,
    numbers_of_pages,
    teacher_and_rows,
)
