"""Which rank each client has in each adapted module: the same everywhere, drawn by a published mixture, or named.

The mixtures are FlexLoRA's (Bai et al. 2024, https://arxiv.org/abs/2402.11505, table of rank types): clients are of one
of four types, drawn once for a run.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from fedloom import rng
from fedloom.adapters.config import LoraConfig, RanksConfig
from fedloom.errors import UserError, nearest

MIXTURES = {
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "heavy_tail": (0.80, 0.10, 0.05, 0.05),
    "heavy_tail_strong": (0.05, 0.80, 0.10, 0.05),
    "normal": (0.0575, 0.4425, 0.4425, 0.0575),
}
"""Probabilities of types 0 to 3."""
Named = Mapping[int, int | Mapping[str, int]]
"""By client: one rank for all modules, or ranks by shell pattern of module names."""


class Ranks:
    """Ranks of every client of a run, worked out when they are asked for."""

    def __init__(self, config: LoraConfig, clients: int, named: Named, seed: int) -> None:
        self.config, self.clients, self.named = config, clients, named
        mixture = MIXTURES.get(config.ranks.name)
        self.types = None if mixture is None else _draw(mixture, clients, seed)

    @property
    def differ(self) -> bool:
        """Whether clients may hold other ranks than `adapter.rank`."""
        return self.types is not None or bool(self.named)

    def of(self, client: int, modules: Sequence[str]) -> dict[str, int]:
        """A client's ranks by module.

        Raises:
            UserError: a pattern names no module.
        """
        if self.types is None:
            ranks = dict.fromkeys(modules, self.config.rank)
        else:
            ranks = {name: _rank(self.config.ranks, self.types[client], name) for name in modules}
        wanted = self.named.get(client)
        if isinstance(wanted, int):
            return dict.fromkeys(modules, wanted)
        for pattern, rank in (wanted or {}).items():
            chosen = [name for name in modules if fnmatchcase(name, pattern) or name.endswith(f".{pattern}")]
            if not chosen:
                known = sorted({name.rpartition(".")[2] for name in modules})
                raise UserError(f"clients: a rank is given for {pattern}, which no adapted module is called."
                                f"{nearest(pattern, known)}")  # fmt: skip
            ranks.update(dict.fromkeys(chosen, rank))
        return ranks

    def largest(self, modules: list[str]) -> dict[str, int]:
        """The shared adapter's ranks: the largest any client holds, by module."""
        if not self.differ:
            return dict.fromkeys(modules, self.config.rank)
        most = dict.fromkeys(modules, 1)
        for client in self._kinds():
            for name, rank in self.of(client, modules).items():
                most[name] = max(most[name], rank)
        return most

    def _kinds(self) -> list[int]:
        """One client of every kind there is."""
        seen: dict[object, int] = {}
        for client in range(self.clients):
            if client in self.named:
                seen[client, "named"] = client
            else:
                seen.setdefault(self.types[client] if self.types is not None else None, client)
        return list(seen.values())


def _draw(mixture: Sequence[float], clients: int, seed: int) -> list[int]:
    numbers = rng.uniform(rng.key(seed, "rank types"), clients).tolist()
    bounds = [sum(mixture[: i + 1]) for i in range(len(mixture) - 1)]
    return [sum(u >= bound for bound in bounds) for u in numbers]


def _rank(config: RanksConfig, type_: int, module: str) -> int:
    attention = any(fnmatchcase(module, pattern) for pattern in config.attention)
    return (config.small, config.large, config.medium if attention else config.large, config.medium)[type_]
