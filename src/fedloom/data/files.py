"""Records from files: .json, .jsonl, .csv, .tsv and .parquet, each also gzipped, or a folder of them.

A record is a mapping from column names to values as the file has them; what they mean is decided in `columns`. Every
error names the file and, where there is one, the line.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from fedloom.errors import UserError

Record: TypeAlias = dict[str, Any]

KINDS: Final[tuple[str, ...]] = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
OWNER: Final = "\x00client"
"""Column that holds whose file a record came from; no file can have a column of this name."""


@dataclass(frozen=True)
class Loaded:
    """Records and what a person should know about how they were read."""

    records: list[Record]
    notes: tuple[str, ...] = ()


def kind_of(path: Path) -> str | None:
    """The kind of a data file by its name (`.jsonl` for `a.jsonl.gz`), or None."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def stem_of(path: Path) -> str:
    """The file's name without its kind: `site-a` for `site-a.jsonl.gz`."""
    kind = kind_of(path) or ""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return name[: len(name) - len(kind)]


@dataclass(frozen=True)
class TableForm:
    """How a .csv or .tsv is written."""

    header: tuple[str, ...] | None = None
    """Names of the columns, where the file has no line of them."""
    quoted: bool = True
    """Whether double quotes stand around fields; else they are text like any other."""


_USUAL: Final = TableForm()


def read_file(path: Path, form: TableForm = _USUAL) -> list[Record]:
    """The records of one file, in its order.

    Args:
        path: the file.
        form: how it is written, where it is a table.

    Raises:
        UserError: it does not exist, is empty or damaged, or is of an unknown kind.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path} is no data file fedloom reads; it reads {', '.join(KINDS)}, each also with .gz")
    data = _bytes(path)
    if not data.strip():
        raise UserError(f"{path} is empty; a data file needs at least one row")
    if kind == ".parquet":
        records = _parquet(path, data)
    elif kind in (".csv", ".tsv"):
        records = list(_table(path, data, "\t" if kind == ".tsv" else ",", form))
    elif kind == ".jsonl":
        records = list(_lines(path, data))
    else:
        records = _json(path, data)
    if not records:
        raise UserError(f"{path} has no rows; a data file needs at least one")
    return records


def read_folder(path: Path, split: str) -> Loaded:
    """The records of a folder's files, in the order of their names.

    Files named after splits (train.jsonl, test.csv) are splits: the one asked for is read. Otherwise every file is read
    and its name kept with its records as their owner, so that each file can be a client.

    Raises:
        UserError: no data file, the split is not there, or a file cannot be read.
    """
    files = sorted(
        file for file in path.iterdir() if file.is_file() and kind_of(file) and not file.name.startswith(".")
    )
    if not files:
        raise UserError(f"folder {path} holds no data file; fedloom reads {', '.join(KINDS)}, each also with .gz")
    splits = {split_named(stem_of(file)): file for file in files}
    if None not in splits and len(splits) == len(files):
        chosen = splits.get(split_named(split) or split)
        names = ", ".join(file.name for file in files)
        if chosen is None:
            raise UserError(f"folder {path} has no split {split!r} (data.split); its files are {names}")
        return Loaded(read_file(chosen), (f"the folder's files are splits ({names}); read {chosen.name} (data.split)",))
    if split != "train":
        raise UserError(f"data.split={split} was asked for, but the files of folder {path} are not named after splits")
    records = []
    for file in files:
        owner = stem_of(file)
        records += [{**record, OWNER: owner} for record in read_file(file)]
    return Loaded(
        records, (f"read {len(files)} files of folder {path}; each is a client where partition.method=natural",)
    )


def split_named(stem: str) -> str | None:
    """The split a file name stands for (`dev` is validation), or None."""
    names = {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev", "eval"),
        "test": ("test", "testing"),
    }
    return next((split for split, known in names.items() if stem.lower() in known), None)


def _bytes(path: Path) -> bytes:
    """The whole file, unpacked."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"data file {path} does not exist") from None
    except OSError as error:
        raise UserError(f"data file {path} cannot be read: {error.strerror or error}") from error
    if not path.name.lower().endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}); copy or download it again") from error


def _text_lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines with their ends; only a line feed ends a line."""
    for number, line in enumerate(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; save the file in UTF-8"
            ) from error


def _lines(path: Path, data: bytes) -> Iterator[Record]:
    for number, line in _text_lines(path, data):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        yield _object(record, f"{path}, line {number}")


def _object(record: Any, place: str) -> Record:
    if not isinstance(record, dict):
        raise UserError(
            f'{place}: a row must be an object like {{"instruction": ..., "output": ...}}, '
            f"this is {type(record).__name__}"
        )
    return record


def _json(path: Path, data: bytes) -> list[Record]:
    """A list of rows, {"data": rows}, {client: rows, ...}, or JSON lines under the name .json."""
    text = "".join(line for _, line in _text_lines(path, data))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one value ended and another began: one row a line
            return list(_lines(path, data))
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
    if isinstance(content, dict):
        return _json_object(path, content)
    if not isinstance(content, list):
        raise UserError(f'{path} holds {type(content).__name__}; rows are a list of objects, or {{"data": [...]}}')
    return [_object(record, f"{path}, row {number}") for number, record in enumerate(content, start=1)]


def _json_object(path: Path, content: Record) -> list[Record]:
    if isinstance(content.get("data"), list):
        return [_object(record, f"{path}, row {number}") for number, record in enumerate(content["data"], start=1)]
    by_client = all(isinstance(v, list) and all(isinstance(r, dict) for r in v) for v in content.values())
    if content and by_client:
        return [{**record, OWNER: client} for client, rows in content.items() for record in rows]
    if any(isinstance(value, str) for value in content.values()):
        return [content]  # JSON lines with a single line
    raise UserError(
        f"{path} is one object with the keys {', '.join(map(str, content)) or '(none)'}; rows are a list of objects, "
        '{"data": [...]}, {client: [...], ...} or one object a line'
    )


def _table(path: Path, data: bytes, delimiter: str, form: TableForm) -> Iterator[Record]:
    """Rows under a header line; fields with the delimiter, quotes or line breaks are quoted by double quotes."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    lines = (line for _, line in _text_lines(path, data))
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    limit = csv.field_size_limit(
        max(len(data), 1)
    )  # a long text is no error; the limit is the process's, so restore it
    try:
        header = [name.strip() for name in next(reader)] if form.header is None else list(form.header)
        if len(set(header)) < len(header) or "" in header:
            raise UserError(f"{path}: the header needs different, non-empty column names; it is {', '.join(header)!r}")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, the header has {len(header)} "
                    f"({', '.join(header)}); put fields that hold a {'comma' if delimiter == ',' else 'tab'} in quotes"
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; check the double quotes of this row") from error
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path, data: bytes) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        records: list[Record] = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole parquet file ({error})") from error
    return records
