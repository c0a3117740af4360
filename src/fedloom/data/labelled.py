"""Rows with a class as tokens, with the special tokens the tokenizer puts around a text or a pair of texts."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedloom.data.config import DataConfig
from fedloom.data.rows import Row
from fedloom.data.templates import Template, template_named
from fedloom.errors import UserError

_LISTED: Final = 20  # classes named in an error
_BATCH: Final = 512  # rows tokenised in one call


@dataclass(frozen=True, slots=True)
class Labelled:
    """One text with its class."""

    ids: tuple[int, ...]
    label: int
    """Place in the label map, from 0."""
    category: str | None

    @property
    def size(self) -> int:
        """Tokens that go through the model."""
        return len(self.ids)


class LabelEncoder:
    """Tokenises texts as the model was pre-trained on them, and numbers their classes.

    Args:
        tokenizer: a tokenizer of transformers.
        data: the section `data` (template, max_length, overlong: longer texts are dropped, or cut from the right).
        labels: the classes, in the order of the head's outputs.

    Raises:
        UserError: `data.template` or `data.system` asks for what has no place here, or the classes are no classes.
    """

    def __init__(self, tokenizer: Any, data: DataConfig, labels: Sequence[str]) -> None:
        _check_labels(labels)
        self._tokenizer = _cutting_right(tokenizer)
        single, double = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
        self._separates = double > single
        if data.max_length <= double:
            raise UserError(
                f"data.max_length={data.max_length} leaves no room for text: the tokenizer puts up to {double} special "
                "tokens around one"
            )
        self.labels: tuple[str, ...] = tuple(labels)
        self.max_length, self.overlong = data.max_length, data.overlong
        self._number = {label: i for i, label in enumerate(labels)}
        self._template = _template(data)

    @property
    def template_name(self) -> str:
        """`text` for texts as they are; `own` for a text of the user's around them."""
        return "text" if self._template is None else "own"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """None: nothing is written."""
        return ()

    def check(self, rows: Sequence[Row]) -> None:
        """Refuse rows whose class is not among the labels.

        Raises:
            UserError: some are, or have an input that the user's template has no place for.
        """
        strange = Counter(row.output for row in rows if row.output.strip() and row.output not in self._number)
        if strange:
            label, count = strange.most_common(1)[0]
            more = f" ({len(strange) - 1} further labels are not either)" if len(strange) > 1 else ""
            raise UserError(
                f"{count} of {len(rows)} rows have the label {_short(label)!r}, which is not in the label map "
                f"({_listed(self.labels)}){more}; correct the rows, or name all classes in objective.labels"
            )
        inputs = sum(1 for row in rows if row.input)
        if inputs and self._template is not None and not self._template.input:
            raise UserError(
                f"{inputs} of {len(rows)} rows have a second text, and data.template has no {{input}}; add it, or set "
                "data.columns so that no column is the input"
            )

    def encode_all(self, rows: Sequence[Row]) -> list[Labelled | str]:
        """Many rows, in their order; a string says why one is left out (`empty text`, `no label`, `overlong`).

        Raises:
            UserError: a label is not in the map.
        """
        self.check(rows)
        made: list[Labelled | str] = []
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            ids = iter(self._ids([row for row in batch if _reason(row) is None]))
            made += [_reason(row) or self._made(row, next(ids)) for row in batch]
        return made

    def _made(self, row: Row, ids: list[int]) -> Labelled | str:
        if len(ids) > self.max_length:
            return "overlong"
        return Labelled(tuple(ids), self._number[row.output], row.category)

    def _ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """Ids of each row's text, or two texts, with the tokenizer's special tokens; those a user wrote stay text."""
        texts = [self._texts(row) for row in rows]
        ids: list[list[int]] = [[] for _ in rows]
        for double in (False, True):
            places = [i for i, text in enumerate(texts) if bool(text[1]) is double]
            if not places:
                continue
            found = self._tokenizer(
                [texts[i][0] for i in places],
                [texts[i][1] for i in places] if double else None,
                truncation="longest_first" if self.overlong == "cut" else False,
                max_length=self.max_length if self.overlong == "cut" else None,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )["input_ids"]
            for i, one in zip(places, found, strict=True):
                ids[i] = one
        return ids

    def _texts(self, row: Row) -> tuple[str, str]:
        """The text and the second one; both in one where the tokenizer would put nothing between them."""
        if self._template is not None:
            return self._template.render(row)[0].text, ""
        if not row.input or self._separates:
            return row.instruction, row.input
        return f"{row.instruction}\n{row.input}", ""


def labels_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The classes of some rows, sorted: numbers by their value, else by their text."""
    found = {row.output for row in rows if row.output.strip()}
    return tuple(sorted(found, key=_numeric) if all(map(_is_number, found)) else sorted(found))


def class_notes(labels: Sequence[str], seen: Mapping[str, Sequence[Row]]) -> list[str]:
    """What is odd about who trains on which class: clients with one class, classes with no row.

    Args:
        labels: the classes of the run.
        seen: training rows of each client, by its name.
    """
    held = {name: {row.output for row in rows} for name, rows in seen.items()}
    single = [name for name, classes in held.items() if len(classes) == 1]
    unseen = sorted(set(labels).difference(*held.values()))
    notes = []
    if single:
        notes.append(f"{len(single)} of {len(held)} clients train on rows of one class only ({_some(single)})")
    if unseen:
        notes.append(f"{len(unseen)} of {len(labels)} classes have no row to train on ({_some(unseen)})")
    return notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(_short(name) for name in names[:5]) + (" ..." if len(names) > 5 else "")


def _cutting_right(tokenizer: Any) -> Any:
    """The tokenizer, or a copy of it that cuts texts from the right."""
    if tokenizer.truncation_side == "right":
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.truncation_side = "right"
    return other


def _numeric(text: str) -> tuple[float, str]:
    return float(text), text


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)  # nan has no order
    except ValueError:
        return False


def _template(data: DataConfig) -> Template | None:
    """The user's own text around the row's, or None."""
    if data.system is not None:
        raise UserError("data.system has no place in classification, which reads the text alone; leave it out")
    if data.template == "auto":
        return None
    if "{instruction}" not in data.template:
        raise UserError(
            f"data.template={data.template!r}: classification reads the text as it is (auto), or a text of your own "
            "with {instruction} in it; templates that ask for an answer have no place"
        )
    return template_named(data.template, None, None, None)


def _check_labels(labels: Sequence[str]) -> None:
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"objective.labels names {_listed(twice)} more than once; every class stands there once")
    if len(labels) < 2:
        raise UserError(
            f"classification needs two classes at least, and there is {_listed(labels) or 'none'}; check the label "
            "column, or name all classes in objective.labels"
        )


def _reason(row: Row) -> str | None:
    """Why a row is left out before it is tokenised."""
    if not row.instruction.strip() and not row.input.strip():
        return "empty text"
    return None if row.output.strip() else "no label"


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else ""
    return ", ".join(_short(label) for label in labels[:_LISTED]) + more


def _short(label: str) -> str:
    return label if len(label) <= 60 else f"{label[:57]}..."
