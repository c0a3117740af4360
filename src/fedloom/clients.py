"""What single clients have of their own in a recipe: ranks, rates, steps, speed; and how many are asked."""

from collections.abc import Mapping, Sequence

from fedloom.adapters.config import LoraConfig
from fedloom.adapters.ranks import Ranks
from fedloom.config import Config
from fedloom.contracts import ClientId
from fedloom.engine.config import LocalConfig
from fedloom.errors import UserError, nearest
from fedloom.runtime.config import ClientOverride


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
