"""Which column of a source means what.

A column is taken by its configured name, else by its default name, else by a common alias, which is reported. Where
several aliases fit the text columns, nobody guesses: it is an error that lists what there is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from fedloom.data.config import ColumnsConfig
from fedloom.data.files import OWNER
from fedloom.data.rows import Kind
from fedloom.errors import UserError

ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "messages": ("conversations", "conversation"),
    "instruction": ("prompt", "question", "query", "problem"),
    "input": ("context",),
    "output": ("response", "answer", "completion", "target", "label_text", "label text"),
    "category": ("type", "task", "class", "label"),
    "client": ("client_id", "site", "user", "user_id"),
}
"""Common other names of a column; the default name is the column's own."""

_OF_KIND: Final[Mapping[Kind, Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "answers": {},
        "labels": {
            "instruction": (
                *("sentence", "text", "content", "sentence1", "premise", "question1"),
                *("prompt", "question", "query"),
            ),
            "input": ("sentence2", "hypothesis", "question2", "context"),
            "label": ("labels", "target", "class", "sentiment", "label_text", "label text"),
        },
        "pairs": {
            "chosen": ("chosen_response", "response_chosen", "preferred"),
            "rejected": ("rejected_response", "response_rejected", "dispreferred"),
            "category": ("type", "task", "class"),
        },
        "judged": {
            "output": (*ALIASES["output"], "messages", *ALIASES["messages"]),  # a whole talk
            "label": ("good", "is_good", "desirable"),
            "category": ("type", "task", "class"),
        },
    }
)
"""What is different about the other names where rows are of a kind."""

_USES: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        "answers": ("instruction", "input", "output", "messages"),
        "labels": ("instruction", "input", "label"),
        "pairs": ("instruction", "input", "chosen", "rejected"),
        "judged": ("instruction", "input", "output", "label"),
    }
)
"""Meanings that rows of a kind have, besides category and client."""

OBJECTIVES: Final[Mapping[Kind, str]] = MappingProxyType(
    {"answers": "sft", "labels": "classify", "pairs": "dpo", "judged": "kto"}
)
"""The objective that learns from rows of a kind."""

_SHOWN: Final = 30  # columns listed in an error


@dataclass(frozen=True)
class Columns:
    """The source's column for each meaning; None: it has none."""

    instruction: str | None
    input: str | None
    output: str | None
    category: str | None
    client: str | None
    messages: str | None
    label: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    notes: tuple[str, ...] = ()


def present_in(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """All columns of the records, in order of appearance."""
    return tuple(dict.fromkeys(name for record in records for name in record if name != OWNER))


def may_mean(config: ColumnsConfig, column: str, kind: Kind = "answers") -> bool:
    """Whether `resolve` could choose this column."""
    names = {**ALIASES, **_OF_KIND[kind]}
    usual = {*names, *(alias for aliases in names.values() for alias in aliases)}
    return column in config.model_dump().values() or column.lower() in usual


def resolve(
    config: ColumnsConfig, present: Sequence[str], source: str, *, owned: bool = False, kind: Kind = "answers"
) -> Columns:
    """Decide which column means what.

    Args:
        config: the user's own names; they go before everything else.
        present: the source's columns.
        source: what errors call it.
        owned: the records know their client (a file each), so that none is looked for in a column.
        kind: of the rows that are wanted.

    Raises:
        UserError: a configured column is not there or has no meaning in such rows, a needed one is missing, or several
            could be meant.
    """
    for meaning, name in config.model_dump().items():
        if name is not None and name not in present:
            raise UserError(f"data.columns.{meaning}={name} is not a column of {source}; {_listed(present)}")
        if name is not None and meaning not in (*_USES[kind], "category", "client"):
            raise UserError(
                f"data.columns.{meaning}={name} means nothing to objective={OBJECTIVES[kind]}, which reads "
                f"{', '.join(_USES[kind])}; leave it out"
            )
    finder = _Finder(config, present, source, {**ALIASES, **_OF_KIND[kind]})
    found = _KINDS[kind](finder)
    # a class is the category of its row, and its column is often called so
    category = config.category if kind == "labels" else finder.find("category", needed=False)
    client = config.client if owned else finder.find("client", needed=False)
    return Columns(
        found.get("instruction"), found.get("input"), found.get("output"), category, client, found.get("messages"),
        found.get("label"), found.get("chosen"), found.get("rejected"), tuple(finder.notes),
    )  # fmt: skip


class _Finder:
    """Takes columns one by one; one that is taken has no second meaning unless the user says so."""

    def __init__(
        self, config: ColumnsConfig, present: Sequence[str], source: str, aliases: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.config, self.present, self.source, self.aliases = config, present, source, aliases
        self.taken = {name for name in config.model_dump().values() if name is not None}
        self.notes: list[str] = []

    def find(self, meaning: str, *, needed: bool = True) -> str | None:
        """The column with this meaning; several candidates are an error where it is needed, else a note and None."""
        configured = getattr(self.config, meaning)
        if configured is not None:
            return str(configured)
        free = [name for name in self.present if name not in self.taken]
        exact = meaning if meaning in free else None
        found = [exact] if exact else [n for n in free if n.lower() == meaning]
        found = found or [name for name in free if name.lower() in self.aliases.get(meaning, ())]
        if len(found) > 1:
            several = f"the columns {' and '.join(found)} could each be the {meaning}; set data.columns.{meaning}"
            if needed:
                raise UserError(f"{self.source}: {several}. {_listed(self.present)}")
            self.notes.append(f"{several} to use one (none is used now)")
        if len(found) != 1:
            return None
        self.taken.add(found[0])
        if found[0] != meaning:
            self.notes.append(f"column {found[0]} is read as {meaning}")
        return found[0]

    def instruction(self) -> str | None:
        """The instruction's column, or that of the input where there is no other."""
        found = self.find("instruction")
        if found is None and self.config.input is None and "input" in self.present and "input" not in self.taken:
            found = "input"
            self.taken.add("input")
            self.notes.append("column input is read as instruction, as there is no other")
        return found

    def need(self, **found: str | None) -> None:
        """Refuse what was not found."""
        missing = [meaning for meaning, name in found.items() if name is None]
        if missing:
            raise UserError(
                f"{self.source} has no column {' and no column '.join(missing)} (nor one of the usual other names); "
                f"{_listed(self.present)}. Say which is meant: {', '.join(f'data.columns.{m}=NAME' for m in missing)}"
            )


def _answers(finder: _Finder) -> dict[str, str | None]:
    config = finder.config
    own_text = config.instruction is not None or config.output is not None
    if own_text and config.messages is not None:
        raise UserError("data.columns.messages stands in place of instruction and output; set one or the other")
    messages = None if own_text else finder.find("messages")
    if messages is not None:
        return {"messages": messages}
    instruction, output = finder.instruction(), finder.find("output")
    if output is None and "label" in finder.present and "label" not in finder.taken:
        output = "label"
        finder.taken.add("label")
        finder.notes.append("column label is read as output, as there is no other")
    finder.need(instruction=instruction, output=output)
    return {"instruction": instruction, "input": finder.find("input"), "output": output}


def _labels(finder: _Finder) -> dict[str, str | None]:
    instruction, label = finder.instruction(), finder.find("label")
    finder.need(instruction=instruction, label=label)
    return {"instruction": instruction, "input": finder.find("input"), "label": label}


def _pairs(finder: _Finder) -> dict[str, str | None]:
    """The prompt may be part of what is chosen and rejected."""
    chosen, rejected = finder.find("chosen"), finder.find("rejected")
    finder.need(chosen=chosen, rejected=rejected)
    instruction = finder.instruction()
    input_ = finder.find("input") if instruction is not None else None
    return {"instruction": instruction, "input": input_, "chosen": chosen, "rejected": rejected}


def _judged(finder: _Finder) -> dict[str, str | None]:
    """The prompt may be part of the output."""
    output, label = finder.find("output"), finder.find("label")
    finder.need(output=output, label=label)
    instruction = finder.instruction()
    input_ = finder.find("input") if instruction is not None else None
    return {"instruction": instruction, "input": input_, "output": output, "label": label}


_KINDS: Final[Mapping[Kind, Callable[[_Finder], dict[str, str | None]]]] = MappingProxyType(
    {"answers": _answers, "labels": _labels, "pairs": _pairs, "judged": _judged}
)


def _listed(present: Sequence[str]) -> str:
    more = f" and {len(present) - _SHOWN} more" if len(present) > _SHOWN else ""
    return f"its columns are: {', '.join(present[:_SHOWN]) or '(none)'}{more}"
