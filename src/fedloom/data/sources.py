"""From the configured source to a table of rows: the playground, a file or folder, a named set, or a hub data set."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fedloom.data import columns as cols
from fedloom.data import files, preferences, records
from fedloom.data.config import DataConfig
from fedloom.data.finding import Found, at_path, find
from fedloom.data.rows import Kind, Row
from fedloom.data.table import Table, apart, limited, with_test
from fedloom.errors import UserError

__all__ = ["Table", "load", "load_other", "load_own", "load_public"]

_MAKERS: Final[Mapping[Kind, Callable[[records.Record, cols.Columns, str], Row | str]]] = MappingProxyType(
    {
        "answers": records.answers,
        "labels": records.labels,
        "pairs": preferences.pairs,
        "judged": preferences.judged,
    }
)


def load(config: DataConfig, seed: int, kind: Kind = "answers") -> Table:
    """Read the configured source.

    Args:
        config: the section `data`.
        seed: root seed; draws the playground's rows and those of `data.limit`.
        kind: what the objective learns from.

    Raises:
        UserError: the source is unknown, cannot be read, or has not the columns needed; the message says which it has.
    """
    if config.public and config.public_source is not None:
        raise UserError(
            f"data.public={config.public} and data.public_source={config.public_source} are both set; public rows are "
            "either a share of the training rows or a source of their own, so leave one out"
        )
    table = _read(config, seed, kind)
    _check_some(table)
    table = apart(table, config.public, seed)
    return replace(table, public=load_public(config, seed, kind)) if config.public_source is not None else table


def load_other(config: DataConfig, source: str, seed: int, kind: Kind = "answers") -> Table:
    """Read a further source as the configured one is read (split, columns), all its rows, none of them set apart.

    Args:
        config: the section `data`.
        source: what stands in place of `data.source`.
        seed: root seed.
        kind: what the objective learns from.

    Raises:
        UserError: see `load`.
    """
    whole = {"source": source, "limit": None, "test_split": None, "public": 0.0, "public_source": None}
    return load(config.model_copy(update=whole), seed, kind)


def load_public(config: DataConfig, seed: int, kind: Kind = "answers") -> tuple[Row, ...]:
    """The rows of `data.public_source`, all of them.

    Args:
        config: the section `data`, whose public source is set.
        seed: root seed.
        kind: what the objective learns from.

    Raises:
        UserError: the source cannot be read or has no rows.
    """
    assert config.public_source is not None
    alone = config.model_copy(update={"split": "train", "subset": None})
    try:
        table = load_other(alone, config.public_source, seed, kind)
    except UserError as error:
        raise UserError(f"data.public_source={config.public_source}: {error}") from error
    return tuple(row for i, row in enumerate(table.rows) if table.split_of is None or table.split_of[i] == "train")


def _read(config: DataConfig, seed: int, kind: Kind) -> Table:
    """The source's rows, fewer where that is asked for, with those of another split for testing."""
    if config.source == "playground":
        from fedloom.data.playground_tables import playground_table

        return limited(playground_table(config, seed, kind), config.limit, seed)
    table = limited(_table(find(config, kind), config, kind), config.limit, seed)
    if config.test_split is None:
        return table
    if config.test not in (0.0, DataConfig.model_fields["test"].default):
        raise UserError(
            f"data.test={config.test} and data.test_split={config.test_split} are both set; the test rows are either a "
            "share of each client's or a split of the source, so leave one out (data.test=0)"
        )
    if config.test_split == config.split:
        raise UserError(
            f"data.test_split={config.test_split} is the split that is trained on (data.split); name another"
        )
    other = config.model_copy(update={"split": config.test_split})
    return with_test(table, _table(find(other, kind), other, kind), config.validation, seed)


def _check_some(table: Table) -> None:
    if not table.rows:
        raise UserError(f"{table.name}: no row is left to train on ({'; '.join(table.notes) or 'the source is empty'})")


def load_own(config: DataConfig, name: str, kind: Kind = "answers") -> Table:
    """Read a client's own source, a file or a folder, every row of which is the client's.

    It is read as a simulation reads it as one of several files in a folder, as long as the files' columns are the same.

    Args:
        config: the section `data`, its source the client's own.
        name: the client's.
        kind: what the objective learns from.

    Raises:
        UserError: it is neither file nor folder, cannot be read, has not the columns needed, or holds rows of several
            clients; or `data.limit` is set, which draws from all clients' rows.
    """
    path = _own_path(config)
    if config.limit is not None:
        raise UserError(
            f"data.limit={config.limit} draws from the rows of all clients together, and no machine holds them; leave "
            "it out, and shorten the source where fewer rows are wanted"
        )
    for name_, value in (("test_split", config.test_split), ("public", config.public or None)):
        if value is not None:
            raise UserError(
                f"data.{name_}={value} divides one source for all clients, and here every client has its own; leave it "
                f"out{' (data.public_source names a file of the server)' if name_ == 'public' else ''}"
            )
    found = at_path(path, config, kind)
    owners = {record.get(files.OWNER) for record in found.records}
    if path.is_dir() and len(owners) > 1:
        raise UserError(
            f"folder {path} holds {len(owners)} files that are each a client's rows in a simulation "
            f"({_named_few(owners)}); give the file of client {name} alone, or put its rows into one file"
        )
    mine = replace(
        found,
        records=[{**record, files.OWNER: name} for record in found.records],
        notes=found.notes if owners == {None} else (),
    )
    table = _table(mine, config, kind)
    _check_own(table, config, name)
    return table


def _own_path(config: DataConfig) -> Path:
    """Where a client's own source is: as given, or in `data.root`."""
    given = Path(config.source).expanduser()
    for path in (given, *([Path(config.root).expanduser() / given] if config.root is not None else [])):
        if path.exists():
            return path
    raise UserError(
        f"data.source={config.source}: there is no such file or folder"
        + (f" (looked in {Path.cwd()})" if not given.is_absolute() else "")
        + f"; a client's own rows are in a file ({', '.join(files.KINDS)}, each also with .gz)"
    )


def _check_own(table: Table, config: DataConfig, name: str) -> None:
    _check_some(table)
    owners = {row.client for row in table.rows}
    if len(owners) > 1:
        raise UserError(
            f"{table.name} holds rows of {len(owners)} clients by its column {config.columns.client} "
            f"(data.columns.client): {_named_few(owners)}; give the rows of client {name} alone, or leave "
            "data.columns.client out"
        )


def _named_few(owners: Collection[str | None]) -> str:
    names = sorted(owner or "(none)" for owner in owners)
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _table(found: Found, config: DataConfig, kind: Kind) -> Table:
    owned = any(files.OWNER in record for record in found.records)
    columns = cols.resolve(found.columns, found.present, found.name, owned=owned, kind=kind)
    rows, skipped = records.made(found.records, columns, found.name, _MAKERS[kind])
    kept = tuple(row for row in rows if row is not None)
    if kind == "labels":
        records.check_classes(kept, columns, found.name)
    notes = (*found.notes, *columns.notes, *skipped)
    if found.named is None:
        return Table(found.name, kept, None, None, notes)
    named = found.named
    if named.category_ends is not None:
        kept = tuple(replace(row, category=named.category_of(row.category)) for row in kept)
    if named.classes is not None:
        kept = tuple(_renamed(row, named.classes) for row in kept)
    return Table(found.name, kept, None, named.template, notes, named.labels)


def _renamed(row: Row, classes: Mapping[str, str]) -> Row:
    """With the class's name in place of its number."""
    name = classes.get(row.output, row.output)
    return replace(row, output=name, category=name if row.category == row.output else row.category)
