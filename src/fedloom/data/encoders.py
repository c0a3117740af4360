"""Which encoder makes examples of a run's rows, and what all encoders have in common."""

from collections.abc import Sequence
from typing import Any, Protocol

from fedloom.data.columns import OBJECTIVES
from fedloom.data.config import DataConfig
from fedloom.data.encode import Encoder
from fedloom.data.labelled import LabelEncoder
from fedloom.data.pairs import JudgedEncoder, PairEncoder
from fedloom.data.rows import Row
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError


class Example(Protocol):
    """What an encoder makes of a row; the objective knows the rest."""

    @property
    def size(self) -> int:
        """Tokens that go through the model for it."""

    @property
    def category(self) -> str | None:
        """The row's category."""


class RowEncoder(Protocol):
    """Makes examples of rows."""

    @property
    def max_length(self) -> int:
        """Tokens an example's text may have."""

    @property
    def template_name(self) -> str:
        """The template in use, after `auto` was resolved."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens after which an answer is complete; none where nothing is written."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes, in the order of the head's outputs; None: rows have none."""

    def check(self, rows: Sequence[Row]) -> None:
        """Refuse rows that cannot be encoded at all (UserError), before anything is trained."""

    def encode_all(self, rows: Sequence[Row]) -> Sequence[Any]:
        """An example for each row, or a string that says why it is left out."""


def encoder_of(tokenizer: Any, data: DataConfig, wanted: Wanted, template: str | None = None) -> RowEncoder:
    """The encoder of a run.

    Args:
        tokenizer: the model's, from transformers.
        data: the section `data`.
        wanted: what the objective learns from; its labels must be there for kind labels.
        template: the named set's own, for `template: auto`.

    Raises:
        UserError: the template, the tokenizer or the labels cannot work.
    """
    if wanted.kind != "answers" and data.loss_on != "answer":
        raise UserError(
            f"data.loss_on={data.loss_on} is for objective=sft; objective={OBJECTIVES[wanted.kind]} compares "
            "answers or classes, so leave it out"
        )
    if wanted.kind == "labels":
        if wanted.labels is None:
            raise UserError(
                "objective.labels is not set, and nobody here sees all rows to find the classes in them; name the "
                "classes in objective.labels, in the order of the head's outputs"
            )
        return LabelEncoder(tokenizer, data, wanted.labels)
    encoder = Encoder(tokenizer, data, template)
    if wanted.kind == "pairs":
        return PairEncoder(encoder, wanted.max_prompt_length)
    if wanted.kind == "judged":
        return JudgedEncoder(encoder, wanted.max_prompt_length)
    return encoder
