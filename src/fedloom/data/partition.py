"""Who holds which rows: one plan for train, validation and test.

A method deals rows to clients once. Where the source is not split, each client's rows are then split category by
category; where it is, validation and test rows follow the train rows: each category goes to the clients in proportion
to the train rows of it they hold. Either way a client is only tested on categories it trains on. Nothing is lost or
held twice (except clients that `natural` leaves out, which are counted), and the seed alone decides.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom import rng
from fedloom.data import deal
from fedloom.data.config import DataConfig, NaturalConfig, PartitionConfig
from fedloom.data.rows import SPLITS, Split
from fedloom.data.sources import Table
from fedloom.errors import UserError

UNNAMED = "(none)"
"""How rows without a category are listed."""


@dataclass(frozen=True)
class Share:
    """One client's rows, as indices into `Table.rows`, ascending."""

    name: str
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Everybody's rows, in the order of the clients."""

    shares: tuple[Share, ...]
    notes: tuple[str, ...] = ()


def plan(table: Table, partition: PartitionConfig, data: DataConfig, seed: int) -> Plan:
    """Deal the table's rows to clients.

    Raises:
        UserError: there are fewer rows than clients, rows lack the category or client that the method needs, or a
            client would have nothing to train on.
    """
    _check_fractions(data)
    if table.split_of is None:
        pool = list(range(len(table.rows)))
    else:
        pool = [i for i, split in enumerate(table.split_of) if split == "train"]
    root = _root(seed, partition.method)
    if isinstance(partition, NaturalConfig):
        names, held, notes = _natural(table, pool, partition)
    else:
        held, notes = _dealt(table, pool, partition, root)
        width = len(str(len(held) - 1))
        names = [f"client-{i:0{max(width, 3)}d}" for i in range(len(held))]
    _all_hold(held, names, partition, table.name)
    if table.split_of is None:
        parts = [_split(table, rows, data, root, i) for i, rows in enumerate(held)]
    else:
        parts = _followed(table, held, isinstance(partition, NaturalConfig), root)
    shares = [_share(name, part) for name, part in zip(names, parts, strict=True)]
    return Plan(tuple(shares), tuple(notes))


def own(table: Table, data: DataConfig, seed: int, name: str, index: int) -> Share:
    """What a client holds to whom the whole table belongs: its share under `natural` among others.

    Args:
        table: one client's rows, from a source that is not split.
        data: the section `data`.
        seed: root seed.
        name: the client's.
        index: its number, from 0. A simulation numbers its clients in the order of their names.

    Raises:
        UserError: the fractions leave no rows to train on.
    """
    if table.split_of is not None:
        raise ValueError(f"{table.name} comes split; only a whole source is one client's")
    _check_fractions(data)
    return _share(name, _split(table, range(len(table.rows)), data, _root(seed, "natural"), index))


def holdings(table: Table, plan: Plan) -> list[dict[str, Any]]:
    """Per client its name, the sizes of its splits, and how many train rows of each category it holds."""
    return [
        {
            "name": share.name,
            "train": len(share.train),
            "validation": len(share.validation),
            "test": len(share.test),
            "categories": dict(sorted(Counter(table.rows[i].category or UNNAMED for i in share.train).items())),
        }
        for share in plan.shares
    ]


def _check_fractions(data: DataConfig) -> None:
    if data.validation + data.test >= 1:
        raise UserError(
            f"data.validation={data.validation} and data.test={data.test} leave no rows to train on; together they "
            "must stay below 1"
        )


def _root(seed: int, method: str) -> int:
    """What all draws of a partition descend from."""
    return rng.key(seed, "partition", method)


def _share(name: str, part: Mapping[Split, Sequence[int]]) -> Share:
    return Share(name, *(tuple(sorted(part[split])) for split in SPLITS))


def _dealt(table: Table, pool: Sequence[int], partition: Any, root: int) -> tuple[list[list[int]], list[str]]:
    """Rows of each client by the method, and notes."""
    if partition.clients > len(pool):
        raise UserError(
            f"{table.name} has {len(pool)} rows for partition.clients={partition.clients}; every client needs at least "
            "one row, so take fewer clients or more rows"
        )
    draw, n = rng.python(root), partition.clients
    if partition.method == "iid":
        return deal.iid(pool, n, draw), []
    if partition.method == "quantity":
        return deal.quantity(pool, n, partition.alpha, partition.min_size, draw)
    groups = _categories(table, pool, partition.method)
    if partition.method == "dirichlet":
        return deal.dirichlet(groups, n, partition.alpha, partition.min_size, draw)
    if partition.method == "category":
        return deal.category(groups, n, partition.per_client, draw)
    return deal.shards(groups, n, partition.per_client, draw), []


def _categories(table: Table, pool: Sequence[int], method: str) -> dict[str, list[int]]:
    """Rows of each category, categories in order of appearance.

    Raises:
        UserError: some rows have none.
    """
    groups: dict[str, list[int]] = {}
    without = 0
    for i in pool:
        category = table.rows[i].category
        if category is None:
            without += 1
        else:
            groups.setdefault(category, []).append(i)
    if without:
        raise UserError(
            f"partition.method={method} needs a category for every row, and {without} of {len(pool)} rows of "
            f"{table.name} have none; name their column (data.columns.category) or use method=iid or quantity"
            f"{_unclear(table, 'category')}"
        )
    return groups


def _unclear(table: Table, meaning: str) -> str:
    """The note, if any, that several columns could have this meaning."""
    return "".join(f". {note}" for note in table.notes if f"could each be the {meaning}" in note)


def _natural(
    table: Table, pool: Sequence[int], partition: NaturalConfig
) -> tuple[list[str], list[list[int]], list[str]]:
    """Rows of each client of the source, clients in order of their names (numbers in them count as numbers)."""
    groups: dict[str, list[int]] = defaultdict(list)
    without = 0
    for i in pool:
        client = table.rows[i].client
        if client is None:
            without += 1
        else:
            groups[client].append(i)
    if without:
        raise UserError(
            f"partition.method=natural needs to know whose every row is, and {without} of {len(pool)} rows of "
            f"{table.name} do not say; name their column (data.columns.client), give a folder with one file per "
            f"client, or use another method{_unclear(table, 'client')}"
        )
    notes = []
    names = [name for name in sorted(groups, key=deal.natural_order) if len(groups[name]) >= partition.min_size]
    small = [name for name in groups if len(groups[name]) < partition.min_size]
    if small:
        rows = sum(len(groups[name]) for name in small)
        notes.append(f"{len(small)} clients with fewer than {partition.min_size} rows are left out ({rows} rows)")
    if not names:
        most = max(len(rows) for rows in groups.values())
        raise UserError(
            f"no client of {table.name} has partition.min_size={partition.min_size} rows; the most is {most}"
        )
    if partition.clients is not None:
        if partition.clients > len(names):
            raise UserError(
                f"partition.clients={partition.clients}, but {table.name} has {len(names)} clients"
                + (f" with at least {partition.min_size} rows" if small else "")
            )
        if partition.clients < len(names):
            rows = sum(len(groups[name]) for name in names[partition.clients :])
            notes.append(f"the first {partition.clients} of {len(names)} clients are taken ({rows} rows left out)")
        names = names[: partition.clients]
    return names, [groups[name] for name in names], notes


def _all_hold(held: Sequence[Sequence[int]], names: Sequence[str], partition: Any, source: str) -> None:
    empty = [name for name, rows in zip(names, held, strict=True) if not rows]
    if empty:
        shown = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        raise UserError(
            f"{len(empty)} of {len(held)} clients would have no rows of {source} to train on ({shown}); take fewer "
            f"clients or more rows (partition.method={partition.method})"
        )


def _split(table: Table, rows: Sequence[int], data: DataConfig, root: int, client: int) -> dict[Split, list[int]]:
    """A client's rows cut into splits, category by category; every category keeps a train row.

    Their order and the client's number alone decide, not where in the table they stand: a client that has no other
    rows cuts them as a simulation does.
    """
    groups: dict[str | None, list[int]] = {}
    for i in rows:
        groups.setdefault(table.rows[i].category, []).append(i)
    draw = rng.python(rng.key(root, "split", client))
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for group in groups.values():
        draw.shuffle(group)
    spare = {name: len(group) - 1 for name, group in groups.items()}
    wanted: dict[Split, float] = {"validation": data.validation, "test": data.test}
    for split, fraction in wanted.items():
        counts = deal.quotas({n: len(g) for n, g in groups.items()}, int(len(rows) * fraction + 0.5), spare, draw)
        for name, count in counts.items():
            spare[name] -= count
            parts[split] += [groups[name].pop() for _ in range(count)]
    parts["train"] = [i for group in groups.values() for i in group]
    return parts


def _followed(table: Table, held: Sequence[Sequence[int]], natural: bool, root: int) -> list[dict[Split, list[int]]]:
    """Validation and test rows of a split source, dealt as the train rows were."""
    parts: list[dict[Split, list[int]]] = [{"train": list(rows), "validation": [], "test": []} for rows in held]

    def kind(i: int) -> str | None:
        return table.rows[i].client if natural else table.rows[i].category

    trained = [Counter(kind(i) for i in rows) for rows in held]
    assert table.split_of is not None
    for split in SPLITS[1:]:
        draw = rng.python(rng.key(root, "follow", split))
        groups: dict[str | None, list[int]] = {}
        for i, own in enumerate(table.split_of):
            if own == split:
                groups.setdefault(kind(i), []).append(i)
        for name, group in groups.items():
            weights = {client: counts[name] for client, counts in enumerate(trained) if counts[name]}
            if not weights and natural:
                continue  # a client that was left out
            if not weights:
                weights = {client: len(rows) for client, rows in enumerate(held)}
            draw.shuffle(group)
            sizes = {client: len(parts[client][split]) for client in weights}
            for client, count in deal.quotas(weights, len(group), None, draw, sizes).items():
                parts[client][split] += [group.pop() for _ in range(count)]
    return parts
