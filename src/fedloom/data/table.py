"""All rows of a run before anybody holds them, and the draws that make them fewer."""

from dataclasses import dataclass, replace

from fedloom import rng
from fedloom.data.rows import Row, Split
from fedloom.errors import UserError


@dataclass(frozen=True)
class Table:
    """All rows of a run, before anybody holds them."""

    name: str
    rows: tuple[Row, ...]
    split_of: tuple[Split, ...] | None
    """One per row where the source comes split (the playground, `data.test_split`); None: the partition splits each
    client's rows."""
    template: str | None
    """The named set's own template."""
    notes: tuple[str, ...] = ()
    """What a person should know: other names detected, rows skipped and why."""
    labels: tuple[str, ...] | None = None
    """The named set's own classes, in the usual order."""
    public: tuple[Row, ...] = ()
    """Rows set apart for nobody (`data.public`, `data.public_source`)."""


def limited(table: Table, limit: int | None, seed: int) -> Table:
    """`limit` rows drawn from the seed, in the table's order."""
    if limit is None or len(table.rows) <= limit:
        return table
    chosen = sorted(rng.permutation(rng.key(seed, "limit"), len(table.rows))[:limit])
    note = f"data.limit: {limit} of {len(table.rows)} rows drawn"
    return replace(_taken(table, chosen), notes=(*table.notes, note))


def with_test(table: Table, test: Table, validation: float, seed: int) -> Table:
    """The table's rows to train on, a share of them for validation, and another split's rows for testing."""
    count = len(table.rows)
    drawn = set(rng.permutation(rng.key(seed, "validation rows"), count)[: int(count * validation + 0.5)])
    split_of: list[Split] = ["validation" if i in drawn else "train" for i in range(count)]
    split_of += ["test"] * len(test.rows)
    return replace(
        table,
        rows=(*table.rows, *test.rows),
        split_of=tuple(split_of),
        notes=(*table.notes, *(note for note in test.notes if note not in table.notes)),
    )


def apart(table: Table, share: float, seed: int) -> Table:
    """A share of the rows to train on, drawn from the seed, set apart for nobody.

    Raises:
        UserError: it is none of them, or all.
    """
    if not share:
        return table
    train = [i for i in range(len(table.rows)) if table.split_of is None or table.split_of[i] == "train"]
    count = int(len(train) * share + 0.5)
    if not 0 < count < len(train):
        raise UserError(
            f"data.public={share} of the {len(train)} training rows of {table.name} are {count}; at least one must be "
            "public and one must be left to clients"
        )
    chosen = {train[i] for i in rng.permutation(rng.key(seed, "public"), len(train))[:count]}
    public = tuple(table.rows[i] for i in sorted(chosen))
    note = f"data.public: {count} of {len(train)} training rows belong to nobody"
    rest = _taken(table, [i for i in range(len(table.rows)) if i not in chosen])
    return replace(rest, public=public, notes=(*table.notes, note))


def _taken(table: Table, chosen: list[int]) -> Table:
    return replace(
        table,
        rows=tuple(table.rows[i] for i in chosen),
        split_of=None if table.split_of is None else tuple(table.split_of[i] for i in chosen),
    )
