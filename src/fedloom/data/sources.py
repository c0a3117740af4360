"""From the configured source to a table of rows: the playground, a file or folder, a named set, or a hub data set."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedloom import rng
from fedloom.data import columns as cols
from fedloom.data import files, hub
from fedloom.data.config import ColumnsConfig, DataConfig, PlaygroundConfig
from fedloom.data.named import NAMED, NamedSet
from fedloom.data.rows import SPLITS, Row, Split
from fedloom.errors import UserError, nearest

_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Table:
    """All rows of a run, before anybody holds them."""

    name: str
    rows: tuple[Row, ...]
    split_of: tuple[Split, ...] | None
    """One per row where the source comes split (the playground); None: the partition splits each client's rows."""
    template: str | None
    """The named set's own template."""
    notes: tuple[str, ...] = ()
    """What a person should know: other names detected, rows skipped and why."""


@dataclass(frozen=True)
class _Found:
    """Records, how to read them, and the table's name."""

    name: str
    records: list[files.Record]
    present: tuple[str, ...]
    """All columns of the source; records may lack those that mean nothing to us."""
    columns: ColumnsConfig
    notes: tuple[str, ...] = ()
    named: NamedSet | None = None


def load(config: DataConfig, seed: int) -> Table:
    """Read the configured source.

    Args:
        config: the section `data`.
        seed: root seed; draws the playground's rows and those of `data.limit`.

    Raises:
        UserError: the source is unknown, cannot be read, or has not the columns needed; the message says which it has.
    """
    table = _playground(config, seed) if config.source == "playground" else _table(_find(config), config)
    table = _limited(table, config.limit, seed)
    if not table.rows:
        raise UserError(f"{table.name}: no row is left to train on ({'; '.join(table.notes) or 'the source is empty'})")
    return table


def load_own(config: DataConfig, name: str) -> Table:
    """Read a client's own source, a file or a folder, every row of which is the client's.

    It is read as a simulation reads it as one of several files in a folder, as long as the files' columns are the same.

    Args:
        config: the section `data`, its source the client's own.
        name: the client's.

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
    found = _path(path, config)
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
    table = _table(mine, config)
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
    if not table.rows:
        raise UserError(f"{table.name}: no row is left to train on ({'; '.join(table.notes) or 'the source is empty'})")
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


def _find(config: DataConfig) -> _Found:
    source = config.source
    if source in NAMED:
        return _named(source, NAMED[source], config)
    path = Path(source).expanduser()
    if path.exists():
        return _path(path, config)
    if config.root is not None and (Path(config.root).expanduser() / source).exists():
        return _path(Path(config.root).expanduser() / source, config)
    if _looks_like_path(source) or not _HUB_ID.fullmatch(source):
        raise UserError(
            f"data.source={source}: there is no such file or folder"
            + (f" (looked in {Path.cwd()})" if not path.is_absolute() else "")
            + hub.meant(source, ["playground", *NAMED])
        )
    records, present = hub.read_hub(source, config.subset, config.split, config.columns, ["playground", *NAMED])
    return _Found(source, records, present, config.columns)


def _path(path: Path, config: DataConfig) -> _Found:
    if path.is_dir() and hub.is_hub_folder(path):
        records, present = hub.read_hub(str(path), config.subset, config.split, config.columns)
        return _Found(path.name, records, present, config.columns)
    if config.subset is not None:
        raise UserError(f"data.subset={config.subset} needs a Hugging Face data set; {path} is none")
    if path.is_dir():
        loaded = files.read_folder(path, config.split)
        return _plain(path.name, loaded.records, config.columns, loaded.notes)
    if config.split != "train":
        raise UserError(
            f"data.split={config.split} was asked for, but the file {path} has no splits; give that split's file"
        )
    return _plain(files.stem_of(path) or path.name, files.read_file(path), config.columns)


def _plain(
    name: str,
    records: list[files.Record],
    columns: ColumnsConfig,
    notes: tuple[str, ...] = (),
    named: NamedSet | None = None,
) -> _Found:
    return _Found(name, records, cols.present_in(records), columns, notes, named)


def _named(name: str, named: NamedSet, config: DataConfig) -> _Found:
    """A named set: its copy in hub layout, its plain copy, or the hub."""
    subset = config.subset or named.subset
    root = Path(config.root).expanduser() if config.root is not None else None
    if root is not None:
        if not root.is_dir():
            raise UserError(f"data.root={config.root} is no folder; it should hold local copies of data sets")
        folder = root / named.hub if named.hub else None
        if folder is not None and folder.is_dir():
            columns = _merged(config, named.columns)
            records, present = hub.read_hub(str(folder), subset, config.split, columns)
            return _Found(name, records, present, columns, (f"{name} is read from {folder}",), named)
        for copy in named.local:
            file = _existing(root, copy.files.get(config.split))
            if file is not None:
                columns = _merged(config, copy.columns or named.columns)
                return _plain(name, files.read_file(file), columns, (f"{name} is read from {file}",), named)
    looked = "" if root is None else f"{config.root} holds no copy of split {config.split} of {name}"
    if named.hub is None:
        raise UserError(
            f"{name} is not on the Hugging Face hub. Get it from {named.home} and put it at "
            f"<data.root>/{named.local[0].files['train']}" + (f"; {looked}" if looked else "")
        )
    notes = (f"{looked}; read from the Hugging Face hub ({named.hub})",) if looked else ()
    columns = _merged(config, named.columns)
    records, present = hub.read_hub(named.hub, subset, config.split, columns)
    return _Found(name, records, present, columns, notes, named)


def _existing(root: Path, name: str | None) -> Path | None:
    candidates = [root / name, root / f"{name}.gz"] if name else []
    return next((path for path in candidates if path.is_file()), None)


def _merged(config: DataConfig, own: ColumnsConfig) -> ColumnsConfig:
    """The set's columns, the user's on top."""
    return own.model_copy(update={k: v for k, v in config.columns.model_dump().items() if v is not None})


def _table(found: _Found, config: DataConfig) -> Table:
    owned = any(files.OWNER in record for record in found.records)
    columns = cols.resolve(found.columns, found.present, found.name, owned=owned)
    rows, skipped = cols.rows_of(found.records, columns, found.name)
    kept = tuple(row for row in rows if row is not None)
    if found.named is not None and found.named.category_ends is not None:
        kept = tuple(replace(row, category=found.named.category_of(row.category)) for row in kept)
    template = found.named.template if found.named is not None else None
    return Table(found.name, kept, None, template, (*found.notes, *columns.notes, *skipped))


def _limited(table: Table, limit: int | None, seed: int) -> Table:
    """`limit` rows drawn from the seed, in the table's order."""
    if limit is None or len(table.rows) <= limit:
        return table
    chosen = sorted(rng.permutation(rng.key(seed, "limit"), len(table.rows))[:limit])
    return replace(
        table,
        rows=tuple(table.rows[i] for i in chosen),
        split_of=None if table.split_of is None else tuple(table.split_of[i] for i in chosen),
        notes=(*table.notes, f"data.limit: {limit} of {len(table.rows)} rows drawn"),
    )


def _playground(config: DataConfig, seed: int) -> Table:
    from fedloom.data import playground

    for name, default in (("subset", None), ("split", "train"), ("columns", ColumnsConfig())):
        if getattr(config, name) != default:
            raise UserError(f"data.{name} is for files and hub data sets; the playground has its own (data.playground)")
    for name in ("validation", "test"):
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise UserError(
                f"data.{name}={getattr(config, name)} divides sources that come in one piece; the playground's rows of "
                f"each split are set by data.playground.{name}_rows"
            )
    settings = config.playground
    skills = _skills(settings, sorted(playground.BASE), sorted(playground.HELD), playground.QUICKSTART)
    counts = dict(zip(SPLITS, (settings.rows, settings.validation_rows, settings.test_rows), strict=True))
    rows: list[Row] = []
    split_of: list[Split] = []
    for split, count in counts.items():
        made = playground.rows(skills, count, split, seed) if count else []
        rows += [Row(r["instruction"], r["input"], r["output"], r["category"]) for r in made]
        split_of += [split] * len(made)
    return Table("playground", tuple(rows), tuple(split_of), None)


def _skills(settings: PlaygroundConfig, base: Sequence[str], held: Sequence[str], quick: Sequence[str]) -> list[str]:
    groups = {"base": base, "held": held, "quickstart": quick}
    if isinstance(settings.skills, str):
        return list(groups[settings.skills])
    if not settings.skills:
        raise UserError("data.playground.skills is an empty list; name at least one skill, or quickstart, held or base")
    for skill in settings.skills:
        if skill not in base and skill not in held:
            raise UserError(f"data.playground.skills: {skill!r} is no skill.{nearest(skill, [*base, *held])}")
    twice = sorted({skill for skill in settings.skills if settings.skills.count(skill) > 1})
    if twice:
        raise UserError(f"data.playground.skills names {', '.join(twice)} more than once")
    return list(settings.skills)


def _looks_like_path(source: str) -> bool:
    return (
        files.kind_of(Path(source)) is not None
        or source.startswith((".", "~", os.sep))
        or Path(source).is_absolute()
        or source.count("/") > 1
        or "\\" in source
    )
