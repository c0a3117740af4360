"""Records of a Hugging Face data set, from the hub or from a local folder in hub layout."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedloom.data.columns import may_mean
from fedloom.data.config import ColumnsConfig
from fedloom.data.files import Record
from fedloom.data.rows import Kind
from fedloom.errors import UserError, nearest


def meant(name: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing where no known name is near."""
    hint = nearest(name, known)
    return hint if hint.startswith(" Did") else ""


def is_hub_folder(path: Path) -> bool:
    """Whether a folder says, in the front matter of its README.md, which files are which split."""
    readme = path / "README.md"
    if not readme.is_file():
        return False
    text = readme.read_text(encoding="utf-8", errors="replace")
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return any(line.startswith(("configs:", "dataset_info:")) for line in front.splitlines())


def read_hub(
    name: str,
    subset: str | None,
    split: str,
    columns: ColumnsConfig,
    known: Sequence[str] = (),
    *,
    kind: Kind = "answers",
    more: Sequence[str] = (),
) -> tuple[list[Record], tuple[str, ...]]:
    """All records of one split, and the names of all its columns.

    Args:
        name: a hub id, or the path of a folder in hub layout.
        subset: its configuration, where it has several.
        split: a split it has; slices as `train[:10%]` are understood by the library.
        columns: the configured names; columns that nobody can mean are not read.
        known: other names a mistyped one could have meant.
        kind: of the rows that are wanted.
        more: further columns to read.

    Returns:
        The records, holding only the columns that `columns.resolve` could choose, and all columns there are.

    Raises:
        UserError: it cannot be reached, is unknown, or has no such subset or split.
    """
    import datasets
    from huggingface_hub.errors import HFValidationError

    what = f"data set {name!r}" + (f" (subset {subset})" if subset else "")
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{what} is not on the Hugging Face hub, or is private or gated and needs `hf auth login` "
            f"({_first_line(error)}).{meant(name, known)}"
        ) from error
    except (datasets.exceptions.DataFilesNotFoundError, HFValidationError) as error:
        raise UserError(f"{what} cannot be read: {_first_line(error)}.{meant(name, known)}") from error
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise UserError(f"{what}, split {split}, is damaged: {_first_line(cause)}") from error
    except FileNotFoundError as error:
        raise UserError(f"{what}: a file is missing: {_first_line(error)}") from error
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"{what} could not be fetched: {_first_line(error)}. Without a network, give a local folder or file as "
            f"data.source, or a folder of local copies as data.root.{meant(name, known)}"
        ) from error
    except (ValueError, RuntimeError) as error:  # unknown split or subset, or a set that needs code of its own
        raise UserError(f"{what}, split {split!r}: {_first_line(error)} (data.subset, data.split)") from error
    present = tuple(loaded.column_names)
    loaded = loaded.select_columns([column for column in present if column in more or may_mean(columns, column, kind)])
    return _records(loaded), present


def _records(loaded: Any) -> list[Record]:
    """Plain records; numbers of a class label become the class's name, -1 (there is none) becomes None."""
    import datasets

    labels = {name: kind for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}
    records: list[Record] = loaded.to_list()
    for record in records:
        for name, kind in labels.items():
            if record[name] is not None:
                record[name] = kind.int2str(record[name]) if record[name] >= 0 else None
    return records


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
