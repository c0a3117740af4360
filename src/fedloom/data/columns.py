"""Which column of a source means what, and rows from records.

A column is taken by its configured name, else by its default name, else by a common alias, which is reported. Where
several aliases fit the text columns, nobody guesses: it is an error that lists what there is.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedloom.data.config import ColumnsConfig
from fedloom.data.files import OWNER
from fedloom.data.rows import Row, Turn
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

_ROLES: Final = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
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
    notes: tuple[str, ...] = ()


def present_in(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """All columns of the records, in order of appearance."""
    return tuple(dict.fromkeys(name for record in records for name in record if name != OWNER))


def may_mean(config: ColumnsConfig, column: str) -> bool:
    """Whether `resolve` could choose this column."""
    usual = {*ALIASES, *(alias for aliases in ALIASES.values() for alias in aliases)}
    return column in config.model_dump().values() or column.lower() in usual


def resolve(config: ColumnsConfig, present: Sequence[str], source: str, *, owned: bool = False) -> Columns:
    """Decide which column means what.

    Args:
        config: the user's own names; they go before everything else.
        present: the source's columns.
        source: what errors call it.
        owned: the records know their client (a file each), so that none is looked for in a column.

    Raises:
        UserError: a configured column is not there, a needed one is missing, or several could be meant.
    """
    for meaning, name in config.model_dump().items():
        if name is not None and name not in present:
            raise UserError(f"data.columns.{meaning}={name} is not a column of {source}; {_listed(present)}")
    finder = _Finder(config, present, source)
    own_text = config.instruction is not None or config.output is not None
    if own_text and config.messages is not None:
        raise UserError("data.columns.messages stands in place of instruction and output; set one or the other")
    messages = None if own_text else finder.find("messages")
    if messages is not None:
        instruction = input_ = output = None
    else:
        instruction, input_, output = finder.instruction_and_input()
    category = finder.find("category", needed=False)
    client = config.client if owned else finder.find("client", needed=False)
    return Columns(instruction, input_, output, category, client, messages, tuple(finder.notes))


class _Finder:
    """Takes columns one by one; one that is taken has no second meaning unless the user says so."""

    def __init__(self, config: ColumnsConfig, present: Sequence[str], source: str) -> None:
        self.config, self.present, self.source = config, present, source
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
        found = found or [name for name in free if name.lower() in ALIASES[meaning]]
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

    def instruction_and_input(self) -> tuple[str, str | None, str]:
        instruction = self.find("instruction")
        if instruction is None and self.config.input is None and "input" in self.present:
            instruction = "input"
            self.taken.add("input")
            self.notes.append("column input is read as instruction, as there is no other")
        output = self.find("output")
        if output is None and "label" in self.present and "label" not in self.taken:
            output = "label"
            self.taken.add("label")
            self.notes.append("column label is read as output, as there is no other")
        missing = [m for m, name in (("instruction", instruction), ("output", output)) if name is None]
        if missing:
            raise UserError(
                f"{self.source} has no column {' and no column '.join(missing)} (nor one of the usual other names); "
                f"{_listed(self.present)}. Say which is meant: {', '.join(f'data.columns.{m}=NAME' for m in missing)}"
            )
        assert instruction is not None
        assert output is not None
        return instruction, self.find("input"), output


def rows_of(records: Sequence[Mapping[str, Any]], columns: Columns, source: str) -> tuple[list[Row | None], list[str]]:
    """One row per record, None where it cannot be learned from, and notes that count and explain the latter.

    Raises:
        UserError: a value is a list or an object where text is needed, or a conversation is malformed.
    """
    skipped: Counter[str] = Counter()
    rows: list[Row | None] = []
    for number, record in enumerate(records, start=1):
        place = f"{source}, row {number}"
        made = _chat(record, columns, place) if columns.messages else _plain(record, columns, place)
        if isinstance(made, str):
            skipped[made] += 1
            rows.append(None)
        else:
            rows.append(made)
    return rows, [f"{count} of {len(records)} rows skipped: {why}" for why, count in sorted(skipped.items())]


def _plain(record: Mapping[str, Any], columns: Columns, place: str) -> Row | str:
    instruction = _text(record, columns.instruction, place)
    output = _text(record, columns.output, place)
    if instruction is None:
        return f"no {columns.instruction}"
    if output is None:
        return f"no {columns.output}"
    return Row(
        instruction=sys.intern(instruction),  # one instruction often serves many rows of a client
        input=_text(record, columns.input, place) or "",
        output=output,
        category=_shared(_text(record, columns.category, place)),
        client=_client(record, columns, place),
    )


def _chat(record: Mapping[str, Any], columns: Columns, place: str) -> Row | str:
    turns = _turns(record.get(columns.messages or ""), place)
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        return "no assistant turn"
    first = next((turn.content for turn in turns if turn.role == "user"), "")
    return Row(
        instruction=first,
        input="",
        output=turns[last].content,
        category=_shared(_text(record, columns.category, place)),
        client=_client(record, columns, place),
        messages=tuple(turns[: last + 1]),  # what follows the last answer teaches nothing
    )


def _client(record: Mapping[str, Any], columns: Columns, place: str) -> str | None:
    """Whose row it is: by its column, else by the file it came from."""
    return _shared(_text(record, columns.client, place) if columns.client else record.get(OWNER))


def _shared(text: str | None) -> str | None:
    """One object for all equal texts; None for none and for empty ones."""
    return sys.intern(text) if text else None


def _turns(value: Any, place: str) -> list[Turn]:
    """Turns from {role, content} or ShareGPT's {from, value}, also where the list is written as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: the messages are text that is not JSON ({error.msg})") from error
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise UserError(f"{place}: messages must be a list of {{role, content}} or {{from, value}}")
    turns = []
    for turn in value:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(
                f"{place}: every message needs the texts role and content (or from and value); "
                f"one has {', '.join(f'{k}: {type(v).__name__}' for k, v in turn.items())}"
            )
        turns.append(Turn(_ROLES.get(role.lower(), role.lower()), content))
    return turns


def _text(record: Mapping[str, Any], column: str | None, place: str) -> str | None:
    """A value as text: numbers and truth values become text, None stays None."""
    value = record.get(column) if column is not None else None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):  # how tables write that there is nothing
        return None
    if isinstance(value, Mapping | list | tuple):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        raise UserError(f"{place}: column {column} holds {kind}; fedloom needs text there (data.columns)")
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


def _listed(present: Sequence[str]) -> str:
    more = f" and {len(present) - _SHOWN} more" if len(present) > _SHOWN else ""
    return f"its columns are: {', '.join(present[:_SHOWN]) or '(none)'}{more}"
