"""What sections must agree on, although each is right by itself.

Every check looks at a whole configuration and yields problems that name all the keys they read: where one of those was
wrong already, the problem is not reported a second time. Nothing here loads data or a model; what only the rows or the
weights can tell is checked when they are there.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from fedloom.config.bases import BASES
from fedloom.config.kinds import KINDS
from fedloom.config.methods import METHODS
from fedloom.config.objectives import OBJECTIVES
from fedloom.config.offsite import OFFSITE
from fedloom.config.schema import Config
from fedloom.config.tree import KeyPath, dotted
from fedloom.config.words import Problem
from fedloom.config.zeroth import ZEROTH
from fedloom.data import playground
from fedloom.errors import ConfigError, nearest
from fedloom.metrics.summary import columns
from fedloom.runtime.sampling_config import FixedConfig, TraceConfig


@dataclass(frozen=True)
class Contradiction(Problem):
    """A problem between keys; its place is the first."""

    reads: tuple[KeyPath, ...] = ()


Found: TypeAlias = Iterator[Contradiction]
PLAYGROUND: Final = "playground"
CLIENTS: Final = ("partition.clients", "partition.method")


def check(config: Config) -> list[Contradiction]:
    """Every contradiction in a configuration whose sections are each valid."""
    found = [problem for one in CHECKS for problem in one(config)]
    said = (*METHODS, *OBJECTIVES, *BASES, *KINDS, *ZEROTH, *OFFSITE)
    return found + [_problem(text, *reads) for one in said for text, *reads in one(config)]


def require(config: Config) -> Config:
    """The same configuration, for one that was built in Python rather than loaded.

    Raises:
        ConfigError: sections contradict each other.
    """
    found = check(config)
    if found:
        raise ConfigError([problem.text for problem in found])
    return config


def _problem(text: str, *reads: str | KeyPath) -> Contradiction:
    """`text` follows the first key."""
    paths = tuple(tuple(key.split(".")) if isinstance(key, str) else key for key in reads)
    return Contradiction(paths[0], f"{dotted(paths[0])} {text}", paths)


def cohort_size(config: Config) -> Found:
    """A cohort cannot have more clients than there are; nor can more replies be required than are asked for."""
    clients, cohort = config.partition.clients, config.federation.cohort
    if clients is not None and isinstance(cohort, int) and cohort > clients:
        text = f"is {cohort}, but there are {clients} clients (partition.clients). Use at most {clients}, or 100%."
        yield _problem(text, "federation.cohort", *CLIENTS)
    asked = asked_clients(config)
    if asked is not None and config.federation.min_replies > asked:
        text = f"is {config.federation.min_replies}, but only {asked} clients are asked in a round (federation.cohort)."
        yield _problem(text, "federation.min_replies", "federation.cohort", *CLIENTS)


def asked_clients(config: Config) -> int | None:
    """Clients asked in a round, as far as the configuration alone can tell; a share asks at least one.

    By a trace or by coins it may be fewer; then a round may pass without a change.
    """
    clients, cohort, held = config.partition.clients, config.federation.cohort, config.federation.holdout
    if isinstance(cohort, int):
        return cohort
    if clients is None or isinstance(held, list):
        return None
    out = held if isinstance(held, int) else max(1, round(clients * float(held.removesuffix("%")) / 100))
    return max(1, round((clients - out) * float(cohort.removesuffix("%")) / 100))


def cohort_not_empty(config: Config) -> Found:
    """0% asks nobody, ever."""
    cohort = config.federation.cohort
    if isinstance(cohort, str) and float(cohort.removesuffix("%")) == 0:
        yield _problem(f"is {cohort}: no client would ever be asked. Use a share above 0%.", "federation.cohort")


def evaluated_clients(config: Config) -> Found:
    """No more clients can be scored than there are."""
    wanted, clients = config.evaluate.clients, config.partition.clients
    if isinstance(wanted, int) and clients is not None and wanted > clients:
        text = f"is {wanted}, but there are {clients} clients (partition.clients). Use at most {clients}, or all."
        yield _problem(text, "evaluate.clients", *CLIENTS)


def categories(config: Config) -> Found:
    """A client cannot hold more categories than the data has, where the data is the playground."""
    known = playground_skills(config)
    if known is None or config.partition.method != "category":
        return
    wanted = config.partition.per_client
    if wanted > len(known):
        text = f"is {wanted}, but data.playground.skills has {len(known)} categories. Use at most {len(known)}."
        yield _problem(text, "partition.per_client", "partition.method", "data.playground", "data.source")


def playground_skills(config: Config) -> tuple[str, ...] | None:
    """Names of the playground's skills in use; None when the source is another."""
    if config.data.source != PLAYGROUND:
        return None
    chosen = config.data.playground.skills
    if isinstance(chosen, list):
        return tuple(chosen)
    return {
        "quickstart": playground.QUICKSTART,
        "held": tuple(playground.HELD),
        "base": tuple(playground.BASE),
    }[chosen]


def skills_exist(config: Config) -> Found:
    """Skills are named from the playground's lists, each once, and at least one."""
    chosen = config.data.playground.skills
    if not isinstance(chosen, list):
        return
    known = {**playground.BASE, **playground.HELD}
    if not chosen:
        yield _problem("is an empty list. Name at least one skill, or use quickstart.", "data.playground.skills")
    for name in dict.fromkeys(chosen):
        if name not in known:
            hint = nearest(name, known) if len(nearest(name, known)) < 60 else " `fedloom list skills` prints them."
            yield _problem(f"names {name!r}, which is no skill.{hint}", "data.playground.skills")
        elif chosen.count(name) > 1:
            yield _problem(f"names {name} twice. Keep one.", "data.playground.skills")


def natural_needs_clients(config: Config) -> Found:
    """The playground's rows belong to nobody."""
    if config.data.source == PLAYGROUND and config.partition.method == "natural":
        text = "is natural, but the rows of the playground belong to nobody. Use category, iid or dirichlet."
        yield _problem(text, "partition.method", "data.source")


def metrics_evaluated(config: Config) -> Found:
    """What decides (best round, early stop) must be measured."""
    known = columns(config.evaluate.measured)
    stop = config.evaluate.early_stop
    deciding = [("evaluate.best", config.evaluate.best)]
    deciding += [("evaluate.early_stop.metric", stop.metric)] if stop else []
    for key, metric in deciding:
        if metric in known:
            continue
        measured = ", ".join(config.evaluate.measured) or "nothing"
        hint = nearest(metric, known)
        more = hint if hint.startswith(" Did") else " Add it to evaluate.metrics, or choose one of those."
        text = f"is {metric}, but evaluate.metrics measures {measured} (and their _mean, _std, _worst_decile).{more}"
        yield _problem(text, key, "evaluate.metrics")


def rows_to_score(config: Config) -> Found:
    """The evaluated split must have rows."""
    split, data = config.evaluate.split, config.data
    on_playground = data.source == PLAYGROUND
    key = f"data.playground.{split}_rows" if on_playground else f"data.{split}"
    own = data.playground.test_rows if split == "test" else data.playground.validation_rows
    if split == "test" and data.test_split is not None and not on_playground:
        return
    share = data.test if split == "test" else data.validation
    if (own if on_playground else share) == 0:
        example = "40" if on_playground else "0.1"
        text = f"is {split}, but {key} is 0: there would be nothing to score. Set {key}, for example to {example}."
        yield _problem(text, "evaluate.split", key, "data.source")


def shares_leave_training(config: Config) -> Found:
    """Validation and test are shares of one whole."""
    data = config.data
    if data.validation + data.test >= 1:
        text = f"is {data.validation:g} and data.test is {data.test:g}: together they leave nothing to train on."
        yield _problem(text, "data.validation", "data.test")


def shares_of_playground(config: Config) -> Found:
    """The playground draws each split by itself; shares would silently mean nothing."""
    data = config.data
    if data.source != PLAYGROUND:
        return
    for split in ("validation", "test"):
        share, default = getattr(data, split), type(data).model_fields[split].default
        if share not in (default, 0):
            text = (
                f"is {share:g}, but the playground has its own rows for it. Set data.playground.{split}_rows instead."
            )
            yield _problem(text, f"data.{split}", "data.source")


def full_is_float32(config: Config) -> Found:
    """Trained numbers are float32, so a fully trained model cannot be held in bfloat16."""
    if config.adapter.kind == "full" and config.model.dtype == "bfloat16":
        text = "is bfloat16, but adapter.kind=full trains these numbers, and those are float32. Use float32 or auto."
        yield _problem(text, "model.dtype", "adapter.kind")


def device_name(config: Config) -> Found:
    """Devices are few; whether this one exists is seen when the model is loaded."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.model.device):
        yield _problem(f"is {config.model.device!r}. Use auto, cpu, cuda or cuda:N, such as cuda:0.", "model.device")


def revision_of_nano(config: Config) -> Found:
    """The embedded model has no revisions."""
    if config.model.name == "nano" and config.model.revision is not None:
        yield _problem(
            "is given, but the embedded model `nano` has no revisions. Remove it.", "model.revision", "model.name"
        )


def one_global_set(config: Config) -> Found:
    """`forgetting` asks the embedded model for its own skills, and is itself the split `global`."""
    evaluate = config.evaluate
    if not evaluate.forgetting:
        return
    if config.data.source != PLAYGROUND:
        text = "is true, but it scores skills of the playground, and data.source is another. Set it to false."
        yield _problem(text, "evaluate.forgetting", "data.source")
    if evaluate.global_source is not None:
        text = "is given and evaluate.forgetting is true; both would be the split `global`. Keep one."
        yield _problem(text, "evaluate.global_source", "evaluate.forgetting")


def parts_of_a_batch(config: Config) -> Found:
    """A batch cannot be split into more parts than it has examples."""
    local = config.local
    if local.accumulate > local.batch_size:
        text = f"is {local.accumulate}, but local.batch_size is {local.batch_size}. Use at most {local.batch_size}."
        yield _problem(text, "local.accumulate", "local.batch_size")


def sampling_complete(config: Config) -> Found:
    """A fixed cohort needs clients, a trace its file."""
    sampling = config.federation.sampling
    if isinstance(sampling, TraceConfig) and sampling.file is None:
        text = "is not given, but trace needs a CSV file with the header round,client. Name it."
        yield _problem(text, "federation.sampling.file", "federation.sampling")
    if isinstance(sampling, FixedConfig) and not sampling.clients:
        text = "is empty. Name the clients that are asked in every round, such as [0-3]."
        yield _problem(text, "federation.sampling.clients", "federation.sampling")


def single_clients(config: Config) -> Found:
    """Numbers and ranges among `clients` must exist."""
    total = config.partition.clients
    for name, override in config.clients.items():
        key = ("clients", name)
        if override.steps is not None and override.epochs is not None:
            yield _problem("has both steps and epochs. Keep one.", key)
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", name)
        if match is None:
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            yield _problem(f"is a range from {first} down to {last}. Write {last}-{first}.", key)
        elif total is not None and last >= total:
            yield _problem(f"does not exist: the {total} clients are 0 to {total - 1}.", key, *CLIENTS)


def workers_of_a_simulation(config: Config) -> Found:
    """The loopback runtime has its clients in one second process."""
    workers = config.runtime.workers
    if workers > 1 and config.runtime.name != "simulation":
        text = f"is {workers}, but runtime.name={config.runtime.name} has one process for clients. Use simulation."
        yield _problem(text, "runtime.workers", "runtime.name")


CHECKS: Final[tuple[Callable[[Config], Found], ...]] = (
    cohort_size,
    cohort_not_empty,
    evaluated_clients,
    categories,
    skills_exist,
    natural_needs_clients,
    metrics_evaluated,
    rows_to_score,
    shares_leave_training,
    shares_of_playground,
    full_is_float32,
    device_name,
    revision_of_nano,
    one_global_set,
    parts_of_a_batch,
    sampling_complete,
    single_clients,
    workers_of_a_simulation,
)
