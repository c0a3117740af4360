"""Rows from records, once it is known which column means what: answers to learn, and texts with a class."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from fedloom.data.columns import Columns
from fedloom.data.files import OWNER
from fedloom.data.rows import Row, Turn
from fedloom.errors import UserError

Record: TypeAlias = Mapping[str, Any]

_ROLES: Final = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_FEW: Final = 50  # classes a column may hold however few its rows are


def answers(record: Record, columns: Columns, place: str) -> Row | str:
    """A row to learn an answer from."""
    return _chat(record, columns, place) if columns.messages else _plain(record, columns, place)


def labels(record: Record, columns: Columns, place: str) -> Row | str:
    """A text with its class, which is the row's output and, unless another column says so, its category."""
    instruction = text_of(record, columns.instruction, place)
    label = _label(record, columns.label, place)
    if instruction is None:
        return f"no {columns.instruction}"
    if label is None:
        return f"no {columns.label}"
    return Row(
        instruction=instruction,
        input=text_of(record, columns.input, place) or "",
        output=sys.intern(label),
        category=shared(text_of(record, columns.category, place)) if columns.category else sys.intern(label),
        client=client_of(record, columns, place),
    )


def made(
    records: Sequence[Record], columns: Columns, source: str, make: Callable[[Record, Columns, str], Row | str]
) -> tuple[list[Row | None], list[str]]:
    """One row per record, None where it cannot be learned from, and notes that count and explain the latter.

    Raises:
        UserError: a value is not of the kind its column needs.
    """
    skipped: Counter[str] = Counter()
    rows: list[Row | None] = []
    for number, record in enumerate(records, start=1):
        row = make(record, columns, f"{source}, row {number}")
        if isinstance(row, str):
            skipped[row] += 1
        rows.append(None if isinstance(row, str) else row)
    return rows, [f"{count} of {len(records)} rows skipped: {why}" for why, count in sorted(skipped.items())]


def check_classes(rows: Sequence[Row | None], columns: Columns, source: str) -> None:
    """Refuse a label column that holds a measure or free text.

    Raises:
        UserError: nearly every row has a label of its own.
    """
    found = [row.output for row in rows if row is not None]
    different = len(set(found))
    if different > max(_FEW, len(found) / 2):
        raise UserError(
            f"{source}: column {columns.label} holds {different} different values in {len(found)} rows, such as "
            f"{found[0][:60]!r}, so it is no class; name the label's column (data.columns.label)"
        )


def text_of(record: Record, column: str | None, place: str) -> str | None:
    """A value as text: numbers and truth values become text, None stays None.

    Raises:
        UserError: the value is a list or an object.
    """
    value = record.get(column) if column is not None else None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):  # how tables write that there is nothing
        return None
    if isinstance(value, Mapping | list | tuple):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        raise UserError(f"{place}: column {column} holds {kind}; fedloom needs text there (data.columns)")
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


def client_of(record: Record, columns: Columns, place: str) -> str | None:
    """Whose row it is: by its column, else by the file it came from."""
    return shared(text_of(record, columns.client, place) if columns.client else record.get(OWNER))


def shared(text: str | None) -> str | None:
    """One object for all equal texts; None for none and for empty ones."""
    return sys.intern(text) if text else None


def turns_of(value: Any, place: str) -> list[Turn]:
    """Turns from {role, content} or ShareGPT's {from, value}, also where the list is written as JSON text.

    Raises:
        UserError: it is no list of such turns.
    """
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


def _plain(record: Record, columns: Columns, place: str) -> Row | str:
    instruction = text_of(record, columns.instruction, place)
    output = text_of(record, columns.output, place)
    if instruction is None:
        return f"no {columns.instruction}"
    if output is None:
        return f"no {columns.output}"
    return Row(
        instruction=sys.intern(instruction),  # one instruction often serves many rows of a client
        input=text_of(record, columns.input, place) or "",
        output=output,
        category=shared(text_of(record, columns.category, place)),
        client=client_of(record, columns, place),
    )


def _chat(record: Record, columns: Columns, place: str) -> Row | str:
    turns = turns_of(record.get(columns.messages or ""), place)
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        return "no assistant turn"
    first = next((turn.content for turn in turns if turn.role == "user"), "")
    return Row(
        instruction=first,
        input="",
        output=turns[last].content,
        category=shared(text_of(record, columns.category, place)),
        client=client_of(record, columns, place),
        messages=tuple(turns[: last + 1]),  # what follows the last answer teaches nothing
    )


def _label(record: Record, column: str | None, place: str) -> str | None:
    """A class as text: whole numbers without a point, None for none.

    Raises:
        UserError: the value cannot be a class.
    """
    value = record.get(column) if column is not None else None
    if isinstance(value, float) and math.isfinite(value):
        if not value.is_integer():
            raise UserError(
                f"{place}: column {column} holds {value}, a number with a fraction, which is a measure and no class; "
                "name the label's column (data.columns.label), or write classes in place of the numbers"
            )
        value = int(value)  # whole numbers become such where a table has gaps
    if isinstance(value, Mapping | list | tuple):
        raise UserError(
            f"{place}: column {column} holds {'an object' if isinstance(value, Mapping) else 'a list'}, and a row has "
            "one class here; name the label's column (data.columns.label)"
        )
    text = text_of(record if column is None else {column: value}, column, place)
    return text.strip() or None if text is not None else None
