"""Who is asked in a round: samplers, and the clients that are held out.

A draw is a function of its arguments alone: `key` differs with seed, round and attempt, `round` counts from 0. Numbers
that decide about a client are drawn by its number, so that leaving somebody out changes nothing for those who were
chosen. Where fewer clients are eligible than are asked for, all of them are drawn.
"""

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedloom import rng
from fedloom.contracts import ClientId
from fedloom.errors import UserError, nearest
from fedloom.runtime.sampling_config import (
    BySizeConfig,
    CyclicConfig,
    FixedConfig,
    PoissonConfig,
    SamplingConfig,
    TraceConfig,
    UniformConfig,
)

Sizes: TypeAlias = Mapping[ClientId, int] | Callable[[ClientId], int]
"""Training rows of each client."""

HEADER: Final = ["round", "client"]
MANY: Final = 10_000
"""Of more clients than this a small share is drawn without permuting all of them."""
_SHOWN: Final = 10  # names in a message


class Sampler(Protocol):
    """Draws cohorts."""

    def draw(self, clients: Sequence[ClientId], count: int, key: int, round: int) -> list[ClientId]:
        """A cohort, sorted.

        Args:
            clients: who may be asked now, sorted: without those held out and those busy.
            count: how many are wanted.
            key: of seed, round and attempt.
            round: rounds behind us.
        """


@dataclass(frozen=True)
class Uniform:
    """Every client with the same chance, without replacement.

    The first of a permutation; a small share of very many clients is drawn without permuting them all.
    """

    def draw(self, clients: Sequence[ClientId], count: int, key: int, round: int) -> list[ClientId]:
        """See `Sampler.draw`."""
        numbers, total = rng.numbers(key), len(clients)
        few = total > MANY and count < total // 50  # where numpy's `choice` has a quick way
        order = numbers.choice(total, count, replace=False) if few else numbers.permutation(total)[:count]
        return sorted(clients[i] for i in order.tolist())


@dataclass(frozen=True, eq=False)
class BySize:
    """One client after the other, each with a chance proportional to its rows among those still left.

    Efraimidis and Spirakis (2006), Weighted random sampling with a reservoir, doi 10.1016/j.ipl.2005.11.003: the
    `count` largest of u^(1/w), u uniform and w the weight, are such a sample. In their order -ln(u) / w are waiting
    times, exponential with rate w, and the `count` shortest win: sizes of any range fit into floats.
    """

    rows: NDArray[np.int64]
    """By client number; a client without rows is never drawn."""

    def draw(self, clients: Sequence[ClientId], count: int, key: int, round: int) -> list[ClientId]:
        """See `Sampler.draw`."""
        left = np.flatnonzero(_mask(clients, len(self.rows)) & (self.rows > 0))
        waits = rng.numbers(key).standard_exponential(len(self.rows))[left] / self.rows[left]
        return _sorted(left[np.argpartition(waits, count)[:count]] if count < len(left) else left)


@dataclass(frozen=True)
class Fixed:
    """The first `count` of a list."""

    order: tuple[ClientId, ...]

    def draw(self, clients: Sequence[ClientId], count: int, key: int, round: int) -> list[ClientId]:
        """See `Sampler.draw`; who is not eligible is replaced by the next of the list."""
        here = set(clients)
        return sorted([client for client in self.order if client in here][:count])


@dataclass(frozen=True, eq=False)
class Cyclic:
    """All clients in turn.

    The ring is endless; round t takes the `count` places from t * count on. Any t rounds ask every client equally often
    up to one, whether or not `count` divides the ring. Who is busy in its turn is skipped, and the next comes instead.
    """

    ring: NDArray[np.int64]
    """Everybody who is ever asked, in order."""

    def draw(self, clients: Sequence[ClientId], count: int, key: int, round: int) -> list[ClientId]:
        """See `Sampler.draw`; a round tried again asks the same clients."""
        if len(self.ring) == 0:
            return []
        turned = np.roll(self.ring, -(round * count % len(self.ring)))
        return _sorted(turned[_mask(clients, int(self.ring.max()) + 1)[turned]][:count])


@dataclass(frozen=True)
class Trace:
    """Uniformly among those available in the round; fewer, or nobody, where the trace says so."""

    available: Mapping[int, frozenset[ClientId]]
    """By round from 1; in a round that is missing nobody is there."""

    def draw(self, clients: Sequence[ClientId], count: int, key: int, round: int) -> list[ClientId]:
        """See `Sampler.draw`."""
        there = self.available.get(round % max(self.available) + 1, frozenset())
        return Uniform().draw([client for client in clients if client in there], count, key, round)


@dataclass(frozen=True)
class Poisson:
    """Every client by a coin that falls its way with probability count / population, whoever else is eligible."""

    total: int
    """Clients of the run."""
    population: int
    """Those of them who may train: the mean size of a cohort is `count` while all are eligible."""

    def draw(self, clients: Sequence[ClientId], count: int, key: int, round: int) -> list[ClientId]:
        """See `Sampler.draw`; larger or smaller than `count`, and empty now and then."""
        ids = np.asarray(clients, dtype=np.int64)
        return _sorted(ids[rng.numbers(key).random(self.total)[ids] < count / self.population])


def sampler(
    config: SamplingConfig,
    names: Sequence[str],
    sizes: Sizes,
    *,
    count: int,
    seed: int,
    holdouts: Collection[ClientId] = (),
    folder: Path | None = None,
) -> Sampler:
    """The sampler of a configuration.

    Args:
        config: the section `federation.sampling`.
        names: of all clients, by number.
        sizes: training rows of each client; looked at by `size` alone.
        count: clients that a round asks for.
        seed: root seed.
        holdouts: clients that never train.
        folder: where a relative `file` is looked for; default: the working folder.

    Raises:
        UserError: a client does not exist, fewer may be drawn than `count`, or the trace cannot be read.
    """
    out = frozenset(holdouts)
    training = [i for i in range(len(names)) if i not in out]
    _enough(count, len(training), f"{len(training)} of {len(names)} clients may train (federation.holdout)")
    match config:
        case UniformConfig():
            return Uniform()
        case BySizeConfig():
            get = sizes if callable(sizes) else sizes.__getitem__
            rows = np.array([get(i) for i in range(len(names))], dtype=np.int64)
            holding = int((rows[training] > 0).sum())
            _enough(count, holding, f"{holding} of the clients that may train have rows (federation.sampling=size)")
            return BySize(rows)
        case FixedConfig():
            if not config.clients:
                raise UserError("federation.sampling.clients is empty; name the clients that are asked in every round")
            listed = resolve(config.clients, names, "federation.sampling.clients")
            order = tuple(i for i in listed if i not in out)
            _enough(count, len(order), f"federation.sampling.clients names {len(order)} that may train")
            return Fixed(order)
        case CyclicConfig():
            drawn = rng.permutation(rng.key(seed, "cyclic"), len(names)) if config.shuffle else range(len(names))
            return Cyclic(np.array([i for i in drawn if i not in out], dtype=np.int64))
        case TraceConfig():
            if config.file is None:
                raise UserError(
                    "federation.sampling.file is not given; trace needs a CSV file with the header round,client"
                )
            return read_trace((folder or Path()) / config.file, names, out)
        case PoissonConfig():
            return Poisson(len(names), len(training))


def holdout(value: int | str | Sequence[str], names: Sequence[str], seed: int) -> frozenset[ClientId]:
    """Clients that never train, such as those a model is later tried on.

    Args:
        value: how many, a share (`10%`), or a list of names, numbers and ranges.
        names: of all clients, by number.
        seed: root seed.

    Raises:
        UserError: nobody would be left, or a client does not exist.
    """
    key = "federation.holdout"
    count = _count(value, len(names)) if isinstance(value, int | str) else 0
    found = some(value, names, rng.key(seed, "holdout"), key) if count < len(names) else frozenset(range(len(names)))
    if len(found) == len(names):
        raise UserError(f"{key} leaves none of {len(names)} clients to train; hold out at most {len(names) - 1}")
    return found


def some(
    value: int | str | Sequence[str], names: Sequence[str], key: int, where: str, without: Collection[ClientId] = ()
) -> frozenset[ClientId]:
    """So many clients or such a share, drawn by a key, or those of a list.

    A larger number draws the same clients and more; a share above 0% draws at least one.

    Args:
        value: how many, a share (`10%`) of those that can be drawn, or a list of names, numbers and ranges.
        names: of all clients, by number.
        key: decides the draw.
        where: the configuration's key, for messages.
        without: never drawn, though a list may name them.

    Raises:
        UserError: there are not so many, or a client does not exist.
    """
    if not isinstance(value, int | str):
        return frozenset(resolve(value, names, where))
    out = frozenset(without)
    pool = [i for i in rng.permutation(key, len(names)) if i not in out]
    count = _count(value, len(pool))
    if count > len(pool):
        raise UserError(f"{where} is {value}, but there are {len(pool)} clients; use at most {len(pool)}")
    return frozenset(pool[:count])


def resolve(entries: Sequence[str], names: Sequence[str], where: str) -> tuple[ClientId, ...]:
    """Numbers of the clients of a list, in its order, each once.

    Args:
        entries: names, numbers or ranges (`0-4`); a name wins where it looks like a number.
        names: of all clients, by number.
        where: the configuration's key, for messages.

    Raises:
        UserError: there is no such client.
    """
    numbers = {name: i for i, name in enumerate(names)}
    return tuple(dict.fromkeys(i for entry in entries for i in _find(entry, names, numbers, where)))


def read_trace(path: Path, names: Sequence[str], holdouts: Collection[ClientId] = ()) -> Trace:
    """The trace of a CSV file with the header `round,client`.

    Args:
        path: the file; rounds from 1, clients by name, number or range, lines in any order.
        names: of all clients, by number.
        holdouts: clients that never train; lines about them say nothing.

    Raises:
        UserError: the file is not there, not text, has a line that cannot be read, or leaves every round empty.
    """
    numbers = {name: i for i, name in enumerate(names)}
    available: dict[int, set[ClientId]] = {}
    for line, fields in _lines(path):
        place = f"{path}, line {line}"
        if len(fields) != 2:
            raise UserError(f"{place}: {len(fields)} fields; a line is a round and a client, such as 1,{names[0]}")
        round, client = (field.strip() for field in fields)
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", round):
            raise UserError(f"{place}: round is {round!r}; rounds are whole numbers from 1")
        available.setdefault(int(round), set()).update(_find(client, names, numbers, place))
    kept = {round: frozenset(there.difference(holdouts)) for round, there in available.items()}
    if not any(kept.values()):
        raise UserError(f"{path}: no client is available in any round, so nobody would ever be asked")
    return Trace(kept)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and fields below the header, without empty lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [field.strip().lower() for field in next(reader, [])]
            rows = [(reader.line_num, fields) for fields in reader if fields]
    except FileNotFoundError:
        raise UserError(f"trace {path} does not exist (federation.sampling.file)") from None
    except OSError as error:
        raise UserError(f"trace {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"trace {path} is not UTF-8 text; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; check the double quotes") from error
    if header != HEADER:
        raise UserError(
            f"{path}, line 1: the header is {','.join(header)!r}; a trace begins with the line round,client"
        )
    return rows


def _find(entry: str, names: Sequence[str], numbers: Mapping[str, ClientId], where: str) -> range:
    """The clients an entry means."""
    if entry in numbers:
        return range(numbers[entry], numbers[entry] + 1)
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", entry)
    if match is None:
        hint = nearest(entry, names[:200])
        if not hint.startswith(" Did") and len(names) > _SHOWN:
            hint = f" They are called {', '.join(names[:3])}, ...; numbers from 0 to {len(names) - 1} will do too."
        raise UserError(f"{where}: no client is called {entry!r}.{hint}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UserError(f"{where}: {entry} is a range from {first} down to {last}; write {last}-{first}")
    if last >= len(names):
        raise UserError(f"{where}: {entry} does not exist; the {len(names)} clients are 0 to {len(names) - 1}")
    return range(first, last + 1)


def _count(value: int | str, total: int) -> int:
    """How many of `total` a number or a share means."""
    if isinstance(value, int):
        return value
    share = float(value.removesuffix("%"))
    return max(1, round(total * share / 100)) if share > 0 else 0


def _enough(count: int, there: int, why: str) -> None:
    """Refuse a cohort that can never be filled."""
    if count > there:
        raise UserError(f"federation.cohort asks for {count} clients a round, but {why}; lower it to {there} at most")


def _mask(clients: Sequence[ClientId], total: int) -> NDArray[np.bool_]:
    """Who of `total` is among the clients."""
    mask = np.zeros(total, dtype=np.bool_)
    ids = np.asarray(clients, dtype=np.int64)
    mask[ids[ids < total]] = True
    return mask


def _sorted(ids: NDArray[np.int64]) -> list[ClientId]:
    found: list[ClientId] = np.sort(ids).tolist()
    return found
