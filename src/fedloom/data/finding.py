"""Where a source is and what its records are: a file or folder, a named set, or a hub data set."""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fedloom.data import columns as cols
from fedloom.data import files, hub
from fedloom.data.config import ColumnsConfig, DataConfig
from fedloom.data.named import NAMED
from fedloom.data.named_set import LocalCopy, NamedSet
from fedloom.data.rows import Kind
from fedloom.errors import UserError

_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WORDS: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        "answers": "instructions with answers",
        "labels": "texts with classes",
        "pairs": "pairs of answers",
        "judged": "judged answers",
    }
)


@dataclass(frozen=True)
class Found:
    """Records, how to read them, and the table's name."""

    name: str
    records: list[files.Record]
    present: tuple[str, ...]
    """All columns of the source; records may lack those that mean nothing to us."""
    columns: ColumnsConfig
    notes: tuple[str, ...] = ()
    named: NamedSet | None = None


def find(config: DataConfig, kind: Kind) -> Found:
    """The records of the configured source.

    Raises:
        UserError: it is unknown, cannot be read, or is for rows of another kind.
    """
    source = config.source
    if source in NAMED:
        return _named(source, NAMED[source], config, kind)
    path = Path(source).expanduser()
    if path.exists():
        return at_path(path, config, kind)
    if config.root is not None and (Path(config.root).expanduser() / source).exists():
        return at_path(Path(config.root).expanduser() / source, config, kind)
    if _looks_like_path(source) or not _HUB_ID.fullmatch(source):
        raise UserError(
            f"data.source={source}: there is no such file or folder"
            + (f" (looked in {Path.cwd()})" if not path.is_absolute() else "")
            + hub.meant(source, ["playground", *NAMED])
        )
    known = ["playground", *NAMED]
    found, present = hub.read_hub(source, config.subset, config.split, config.columns, known, kind=kind)
    return Found(source, found, present, config.columns)


def at_path(path: Path, config: DataConfig, kind: Kind) -> Found:
    """The records of a file or folder."""
    if path.is_dir() and hub.is_hub_folder(path):
        found, present = hub.read_hub(str(path), config.subset, config.split, config.columns, kind=kind)
        return Found(path.name, found, present, config.columns)
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
) -> Found:
    return Found(name, records, cols.present_in(records), columns, notes, named)


def _named(name: str, named: NamedSet, config: DataConfig, kind: Kind) -> Found:
    """A named set: its copy in hub layout, its plain copy, or the hub."""
    if named.kind != kind:
        raise UserError(
            f"{name} holds {_WORDS[named.kind]}, which objective={cols.OBJECTIVES[named.kind]} learns from; "
            f"objective={cols.OBJECTIVES[kind]} needs {_WORDS[kind]}"
        )
    root = Path(config.root).expanduser() if config.root is not None else None
    if root is not None:
        if not root.is_dir():
            raise UserError(f"data.root={config.root} is no folder; it should hold local copies of data sets")
        folder = root / named.hub if named.hub else None
        if folder is not None and folder.is_dir():
            return _from_hub(name, str(folder), named, config, (f"{name} is read from {folder}",))
        for copy in named.local:
            paths = _existing(root, copy.files.get(config.split))
            if paths:
                return _from_copy(name, paths, copy, named, config)
    looked = "" if root is None else f"{root} holds no copy of split {config.split} of {name}{_kept(root, named)}"
    if named.hub is None:
        raise UserError(
            f"{name} is not on the Hugging Face hub. Get it from {named.home} and put it at "
            f"<data.root>/{named.local[0].files['train'][0]}" + (f"; {looked}" if looked else "")
        )
    notes = (f"{looked}; read from the Hugging Face hub ({named.hub})",) if looked else ()
    try:
        return _from_hub(name, named.hub, named, config, notes)
    except UserError as error:
        raise UserError(f"{looked}; {error}" if looked else str(error)) from error


def _kept(root: Path, named: NamedSet) -> str:
    """What a folder holds of a named set, where that is not what was asked for."""
    splits = sorted({split for copy in named.local for split, names in copy.files.items() if _existing(root, names)})
    return f", only of {' and '.join(splits)} (data.split={splits[0]})" if splits else ""


def _from_hub(name: str, where: str, named: NamedSet, config: DataConfig, notes: tuple[str, ...]) -> Found:
    columns = _merged(config, named.columns)
    found, present = hub.read_hub(
        where, config.subset or named.subset, config.split, columns, kind=named.kind, more=named.raw
    )
    if named.records is not None:
        found = [made for record in found for made in named.records(record)]
        present = cols.present_in(found)
    return Found(name, found, present, columns, notes, named)


def _from_copy(name: str, paths: Collection[Path], copy: LocalCopy, named: NamedSet, config: DataConfig) -> Found:
    read = [record for path in paths for record in files.read_file(path, copy.form)]
    if named.records is not None:
        read = [made for record in read for made in named.records(record)]
    note = f"{name} is read from {' and '.join(map(str, paths))}"
    return _plain(name, read, _merged(config, copy.columns or named.columns), (note,), named)


def _existing(root: Path, names: Collection[str] | None) -> list[Path]:
    """The files below the root, gzipped or not; none unless all are there."""
    found = [
        next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None) for name in names or ()
    ]
    return [path for path in found if path is not None] if None not in found else []


def _merged(config: DataConfig, own: ColumnsConfig) -> ColumnsConfig:
    """The set's columns, the user's on top."""
    return own.model_copy(update={k: v for k, v in config.columns.model_dump().items() if v is not None})


def _looks_like_path(source: str) -> bool:
    return (
        files.kind_of(Path(source)) is not None
        or source.startswith((".", "~", os.sep))
        or Path(source).is_absolute()
        or source.count("/") > 1
        or "\\" in source
    )
