"""Rows from records of preferences: pairs of answers, and judged answers.

A prompt and its answers come in several forms: texts in columns of their own, lists of messages (whole conversations,
or the answer's turn alone), or transcripts as in hh-rlhf, where turns begin with `Human:` and `Assistant:` after an
empty line. Of whole conversations the turns that both share are the prompt and the last turns are the answers; words
that both answers begin with stay in both.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from fedloom.data.columns import Columns
from fedloom.data.records import Record, client_of, shared, text_of, turns_of
from fedloom.data.rows import Row, Turn
from fedloom.errors import UserError

_SPEAKER: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLE: Final = {"Human": "user", "Assistant": "assistant"}
_TRUE: Final = ("true", "yes", "1", "good")
_FALSE: Final = ("false", "no", "0", "bad")


def pairs(record: Record, columns: Columns, place: str) -> Row | str:
    """A prompt with a better and a worse answer; a string says why there is none."""
    chosen = _dialogue(record, columns.chosen, columns, place)
    rejected = _dialogue(record, columns.rejected, columns, place)
    for dialogue in (chosen, rejected):
        if isinstance(dialogue, str):
            return dialogue
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    if chosen[:-1] != rejected[:-1]:
        return f"{columns.chosen} and {columns.rejected} part before the last turn"
    better, worse = chosen[-1].content, rejected[-1].content
    if not better.strip() or not worse.strip():
        return f"empty {columns.rejected if better.strip() else columns.chosen}"
    if better.strip() == worse.strip():
        return f"{columns.chosen} equals {columns.rejected}"
    return _row(record, columns, place, chosen, rejected=worse)


def judged(record: Record, columns: Columns, place: str) -> Row | str:
    """A prompt with an answer that is good or bad; a string says why there is none."""
    dialogue = _dialogue(record, columns.output, columns, place)
    good = _truth(record, columns.label, place)
    if isinstance(dialogue, str):
        return dialogue
    if good is None:
        return f"no {columns.label}"
    if not dialogue[-1].content.strip():
        return f"empty {columns.output}"
    return _row(record, columns, place, dialogue, good=good)


def _row(
    record: Record,
    columns: Columns,
    place: str,
    dialogue: Sequence[Turn],
    *,
    rejected: str | None = None,
    good: bool | None = None,
) -> Row:
    """A single question becomes instruction and input, which every template has a place for; else a conversation."""
    *prompt, answer = dialogue
    single = [turn.role for turn in prompt] == ["user"]
    more = text_of(record, columns.input, place) or ""
    if more and not single:
        dialogue = [*prompt[:-1], Turn(prompt[-1].role, f"{prompt[-1].content}\n\n{more}"), answer]
    return Row(
        instruction=next((turn.content for turn in prompt if turn.role == "user"), ""),
        input=more if single else "",
        output=answer.content,
        category=shared(text_of(record, columns.category, place)),
        client=client_of(record, columns, place),
        messages=() if single else tuple(dialogue),
        rejected=rejected,
        good=good,
    )


def _dialogue(record: Record, column: str | None, columns: Columns, place: str) -> list[Turn] | str:
    """Prompt and answer as turns, the last one the assistant's; a string says why they are not."""
    value = record.get(column) if column is not None else None
    asked = record.get(columns.instruction) if columns.instruction is not None else None
    if value is None or value == []:
        return f"no {column}"
    if columns.instruction is not None and (asked is None or asked == []):
        return f"no {columns.instruction}"
    if isinstance(value, list):
        turns = turns_of(value, f"{place}, column {column}")
        whole = any(turn.role != "assistant" for turn in turns)  # it brings the prompt with it
        turns = turns if whole or asked is None else _prompt(asked, columns, place) + turns
    else:
        text = text_of(record, column, place) or ""
        if asked is not None:
            turns = [*_prompt(asked, columns, place), Turn("assistant", text)]
        else:
            transcript = _transcript(text)
            if transcript is None:
                return f"no prompt: {column} does not begin with a Human's or an Assistant's turn"
            turns = transcript
    turns = _joined(turns)
    if turns[-1].role != "assistant":
        return f"{column} does not end with the assistant's turn"
    return turns if len(turns) > 1 else "no prompt"


def _prompt(asked: Any, columns: Columns, place: str) -> list[Turn]:
    """The prompt's column as turns: messages, a transcript that waits for an answer, or a question."""
    if isinstance(asked, list):
        return turns_of(asked, f"{place}, column {columns.instruction}")
    text = text_of({"": asked}, "", place) or ""
    turns = _transcript(text) if re.search(r"\n\nAssistant:\s*\Z", text) else None
    return turns[:-1] if turns and len(turns) > 1 else [Turn("user", text)]


def _transcript(text: str) -> list[Turn] | None:
    """Turns of a text in which speakers are named after empty lines; None: it does not begin with one."""
    before, *parts = _SPEAKER.split(text)
    if not parts or before.strip():
        return None
    return [Turn(_ROLE[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of one speaker in a row as one: most templates want speakers that alternate."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(turn.role, f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    return joined


def _truth(record: Record, column: str | None, place: str) -> bool | None:
    """Whether an answer is good; None: nobody says.

    Raises:
        UserError: the value is no truth value.
    """
    value = record.get(column) if column is not None else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = text_of({"": value}, "", f"{place}, column {column}")
    if text is None or not text.strip():
        return None
    said = text.strip().lower()
    if said not in (*_TRUE, *_FALSE):
        raise UserError(
            f"{place}: column {column} holds {text[:60]!r}, and must say whether the answer is good: true or false "
            "(also 1 and 0, yes and no, good and bad)"
        )
    return said in _TRUE
