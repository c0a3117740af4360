"""What is known of a named data set: where it is, how its columns are called, what its rows are for."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedloom.data.config import ColumnsConfig
from fedloom.data.files import Record, TableForm
from fedloom.data.rows import Kind


@dataclass(frozen=True)
class LocalCopy:
    """Plain files below `data.root`, and their columns where they differ from the hub's."""

    files: Mapping[str, tuple[str, ...]]
    """Split to paths, relative to the root; the rows of several stand one after the other."""
    columns: ColumnsConfig | None = None
    form: TableForm = TableForm()
    """How the files are written, where they are tables."""


@dataclass(frozen=True)
class NamedSet:
    """One data set of the field."""

    title: str
    hub: str | None
    """Its id on the Hugging Face hub; None: it is not there."""
    licence: str
    columns: ColumnsConfig
    local: tuple[LocalCopy, ...] = ()
    """Looked for in this order."""
    subset: str | None = None
    template: str = "alpaca"
    home: str = ""
    """Where its files are published, for sets that are not on the hub."""
    category_ends: str | None = None
    """What is cut from the end of a category (a regular expression), where sources number their categories."""
    note: str = ""
    kind: Kind = "answers"
    """What its rows are for."""
    labels: tuple[str, ...] | None = None
    """Its classes, in the usual order."""
    classes: Mapping[str, str] | None = None
    """Names of classes that files write as numbers."""
    raw: tuple[str, ...] = ()
    """Columns that `records` reads."""
    records: Callable[[Record], list[Record]] | None = None
    """What one record of the source becomes; None: it stays as it is."""

    def category_of(self, raw: str | None) -> str | None:
        """The category without what the source appends to it."""
        return re.sub(self.category_ends + r"\Z", "", raw) if raw and self.category_ends else raw


def columns_of(
    instruction: str = "instruction",
    output: str = "output",
    *,
    input: str | None = None,
    category: str | None = None,
    client: str | None = None,
) -> ColumnsConfig:
    """Columns of instructions and answers."""
    return ColumnsConfig(instruction=instruction, input=input, output=output, category=category, client=client)


def copies(
    *folders: str, train: str = "train", columns: ColumnsConfig | None = None, **splits: str
) -> tuple[LocalCopy, ...]:
    """Copies called <folder>/<split>.jsonl, gzipped or not."""
    names = {"train": train, **splits}
    return tuple(
        LocalCopy({split: (f"{folder}/{name}.jsonl",) for split, name in names.items()}, columns) for folder in folders
    )
