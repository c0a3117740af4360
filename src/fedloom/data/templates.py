"""How a row becomes text: pieces of prompt and answer, in order, each marked as learned or not.

The response mask comes from here: a piece is learned or it is not, and pieces are tokenised one by one (`encode`), so
that nothing is ever searched for in a rendered text. `alpaca` is Stanford Alpaca's wording (Taori et al. 2023),
`vicuna` FastChat's v1.1 (Zheng et al. 2023); `chat` is whatever the model's own tokenizer says.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from fedloom.data.rows import Row, Turn
from fedloom.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that is tokenised on its own."""

    text: str
    learned: bool = False
    closes: bool = False
    """The end-of-text token follows and is learned too."""


Render: TypeAlias = Callable[[Row], list[Piece]]


@dataclass(frozen=True)
class Template:
    """A way to write rows."""

    name: str
    render: Render
    """Pieces of a row; the last one is learned."""
    turns: bool = False
    """Conversations of several turns and their system turns have a place."""
    system: bool = False
    """`data.system` has a place."""
    input: bool = True
    """A row's input has a place."""
    control: bool = False
    """Control tokens the template writes are such; of a user's text they never are."""


_ALPACA_BOTH: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA_ONLY: Final = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_VICUNA_SYSTEM: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_PLACES: Final = re.compile(r"\{(instruction|input|system)\}")


def template_named(asked: str, own: str | None, system: str | None, chat: Render | None) -> Template:
    """The template of a run.

    Args:
        asked: `data.template`.
        own: the named set's, for auto.
        system: `data.system`.
        chat: renders by the tokenizer's chat template; None: it has none.

    Raises:
        UserError: there is no such template, or it has no place for the system text.
    """
    name = asked if asked != "auto" else own or ("chat" if chat is not None else "alpaca")
    made = _OWN_NAMES[name](system) if name in _OWN_NAMES else _chat(chat) if name == "chat" else _own(name, system)
    if system is not None and not made.system:
        raise UserError(
            f"data.system is set, but template {made.name} has no place for it; use chat, vicuna, or your own "
            "text with {system}"
        )
    return made


def _chat(render: Render | None) -> Template:
    if render is None:
        raise UserError("data.template=chat: this model's tokenizer has no chat template; use alpaca, vicuna or plain")
    return Template("chat", render, turns=True, system=True, control=True)


def _alpaca(system: str | None) -> Template:
    def render(row: Row) -> list[Piece]:
        return [Piece(_fill(_ALPACA_BOTH if row.input else _ALPACA_ONLY, row)), _answer(row.output)]

    return Template("alpaca", render)


def _plain(system: str | None) -> Template:
    def render(row: Row) -> list[Piece]:
        return [Piece("".join(f"{text}\n" for text in (row.instruction, row.input) if text)), _answer(row.output)]

    return Template("plain", render)


def _vicuna(system: str | None) -> Template:
    def render(row: Row) -> list[Piece]:
        turns = conversation(row, system)
        head = turns.pop(0).content if turns[0].role == "system" else _VICUNA_SYSTEM
        pieces, prompt = [], f"{head} "
        for turn in turns:
            if turn.role == "assistant":
                pieces += [Piece(f"{prompt}ASSISTANT:"), _answer(f" {turn.content}")]
                prompt = ""
            elif turn.role == "user":
                prompt += f"USER: {turn.content} "
            else:
                raise UserError(f"template vicuna has no place for a turn of role {turn.role!r}; use chat")
        return pieces

    return Template("vicuna", render, turns=True, system=True)


def _own(text: str, system: str | None) -> Template:
    if "{instruction}" not in text:
        raise UserError(
            f"data.template={text!r} is no template of fedloom and, as a text of your own, lacks {{instruction}}."
            + nearest(text, ["auto", "chat", *_OWN_NAMES])
        )
    if "{output}" in text or "{response}" in text:
        raise UserError(f"data.template={text!r}: the answer always follows the text; leave {{output}} out")

    def render(row: Row) -> list[Piece]:
        return [Piece(_fill(text, row, system)), _answer(row.output)]

    return Template("own", render, system="{system}" in text, input="{input}" in text)


_OWN_NAMES: Final[Mapping[str, Callable[[str | None], Template]]] = MappingProxyType(
    {"alpaca": _alpaca, "vicuna": _vicuna, "plain": _plain}
)


def _answer(text: str) -> Piece:
    return Piece(text, learned=True, closes=True)


def _fill(text: str, row: Row, system: str | None = None) -> str:
    """The places filled in one pass, so that braces in a row's own text stay what they are."""
    values = {"instruction": row.instruction, "input": row.input, "system": system or ""}
    return _PLACES.sub(lambda place: values[place[1]], text)


def conversation(row: Row, system: str | None) -> list[Turn]:
    """The row as turns; `system` stands first unless the row brings a system turn of its own."""
    asked = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    turns = list(row.messages) or [Turn("user", asked), Turn("assistant", row.output)]
    return [Turn("system", system), *turns] if system is not None and turns[0].role != "system" else turns


# --- chat: the tokenizer's own template ------------------------------------------------------------------------------

_OPEN, _SHUT = "\ue0f0", "\ue0f1"  # private-use characters around a control token that a user wrote


def chat_render(tokenizer: Any, system: str | None) -> Render | None:
    """Renders rows by the tokenizer's chat template; None if it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    written = [token for token in tokenizer.all_special_tokens if token]
    control = re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True)))) if written else None

    def guarded(text: str) -> str:
        return control.sub(lambda token: f"{_OPEN}{token[0]}{_SHUT}", text) if control is not None else text

    def render(row: Row) -> list[Piece]:
        turns = [{"role": turn.role, "content": guarded(turn.content)} for turn in conversation(row, system)]
        return chat_pieces(turns, lambda part, ask: _rendered(tokenizer, part, ask))

    return render


def chat_pieces(
    turns: Sequence[dict[str, str]], text_of: Callable[[Sequence[dict[str, str]], bool], str]
) -> list[Piece]:
    """Prompt and answer pieces of a conversation, as differences of growing prefixes.

    Args:
        turns: the conversation; it ends with an assistant turn.
        text_of: the text of a prefix, with or without the opening of the next answer.

    Raises:
        UserError: a prefix's text does not begin the next one's (the template rewrites earlier turns).
    """
    pieces: list[Piece] = []
    done = ""
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = text_of(turns[:i], True)
        whole = text_of(turns[: i + 1], False)
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise UserError(
                "the tokenizer's chat template rewrites earlier turns when further ones follow (some hide earlier "
                "reasoning), so which tokens belong to which answer is not certain; use data.template=vicuna, or rows "
                "of a single question and answer"
            )
        answer = whole[len(prompt) :]
        told = answer.rstrip("\n ") if _ends_marked(answer, turn["content"]) else answer
        pieces += [Piece(prompt[len(done) :]), Piece(told, learned=True)]
        done = prompt + told
    pieces[-1] = Piece(pieces[-1].text, learned=True, closes=True)
    return pieces


def _ends_marked(answer: str, content: str) -> bool:
    """Whether the template writes more than space after the answer's text."""
    return not answer.rstrip().endswith(content.rstrip())


def _rendered(tokenizer: Any, turns: Sequence[dict[str, str]], ask: bool) -> str:
    import jinja2

    try:
        text: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask)
    except jinja2.TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise UserError(
            f"the tokenizer's chat template refuses a conversation with the roles {roles}: {error}; use another "
            "data.template, or rows it accepts"
        ) from error
    return text


def split_guarded(text: str) -> list[tuple[str, bool]]:
    """Parts of a rendered text and whether control tokens in them are such; False for what a user wrote."""
    if _OPEN not in text:
        return [(text, True)]
    parts = re.split(f"{_OPEN}([^{_SHUT}]*){_SHUT}", text)
    return [(part, i % 2 == 0) for i, part in enumerate(parts) if part]
