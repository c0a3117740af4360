"""From rows to token ids and labels, piece by piece.

Every piece of a template is tokenised on its own and the ids are put together, so the response mask is exact by
construction and the prompt a model answers from is, token for token, the one it was trained on. Control tokens that a
user's text spells out (`<|end|>`, `</s>`) stay text: the tokenizer is asked to split them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, Final

from fedloom.data.config import DataConfig
from fedloom.data.rows import Row
from fedloom.data.templates import Piece, chat_render, split_guarded, template_named
from fedloom.errors import UserError

IGNORED: Final = -100
"""Label of a token that is not learned; what torch's cross entropy ignores."""

_ANCHOR: Final = "\n"
_BATCH: Final = 512  # rows tokenised in one call


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """As long as `ids` and not shifted: the id itself where it is learned, else -100."""
    prompt: tuple[int, ...]
    """What the last answer is generated from; `ids` begins with it."""
    answer: str
    """Reference text of the last answer."""
    category: str | None

    @property
    def size(self) -> int:
        """Tokens that go through the model."""
        return len(self.ids)


class Encoder:
    """Writes rows by a template and tokenises them.

    Args:
        tokenizer: a tokenizer of transformers.
        data: the section `data` (template, system, max_length, overlong, loss_on).
        template_of_source: the named set's own template, for `template: auto`.

    Raises:
        UserError: the template is unknown, lacks a place for `data.system`, or the tokenizer has no end-of-text token.
    """

    def __init__(self, tokenizer: Any, data: DataConfig, template_of_source: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template_named(
            data.template, template_of_source, data.system, chat_render(tokenizer, data.system)
        )
        self.max_length, self.overlong, self.loss_on = data.max_length, data.overlong, data.loss_on
        self._special = frozenset(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})
        self._start = () if self.template.control else self._start_ids()
        self._anchor = self._anchor_ids()
        self._end: int | None = tokenizer.eos_token_id
        if self._end is None and not self.template.control:
            raise UserError(
                f"template {self.template.name} ends answers with the tokenizer's end-of-text token, and this "
                "tokenizer has none (eos_token); use a chat template, or a tokenizer with one (encoders write no "
                "answers: they learn with objective=classify)"
            )

    @property
    def template_name(self) -> str:
        """The template in use, after `auto` was resolved; `own` for a text of the user's."""
        return self.template.name

    @property
    def labels(self) -> None:
        """There are no classes."""
        return None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens after which an answer is complete: the end-of-text token and the chat template's end marker."""
        ends = [] if self._end is None else [self._end]
        if self.template.control:
            pieces = self.template.render(Row("a", "", "b"))
            ends += [last for last in self._tokenize(pieces, [len(pieces)])[-1][-1:] if last in self._special]
        return tuple(dict.fromkeys(ends))

    def check(self, rows: Sequence[Row]) -> None:
        """Refuse rows that the template has no place for, before anything is trained.

        Raises:
            UserError: some have several turns, roles or an input that the template cannot write.
        """
        several = sum(1 for row in rows if [t.role for t in row.messages] not in ([], ["user", "assistant"]))
        if several and not self.template.turns:
            raise UserError(
                f"{several} of {len(rows)} rows are conversations of several turns or with a system turn, which "
                f"template {self.template_name} has no place for; use data.template=chat or vicuna"
            )
        for row in {tuple(turn.role for turn in row.messages): row for row in rows}.values():
            self.template.render(row)  # a template that refuses roles does so by their order alone
        inputs = sum(1 for row in rows if row.input)
        if inputs and not self.template.input:
            raise UserError(
                f"{inputs} of {len(rows)} rows have an input, and data.template has no {{input}}; add it, or set "
                "data.columns so that no column is the input"
            )

    def encode(self, row: Row) -> Encoded | str:
        """One row; a string says why it is left out (`empty answer`, `overlong`, `answer too long`)."""
        return self.encode_all([row])[0]

    def encode_all(self, rows: Sequence[Row]) -> list[Encoded | str]:
        """Many rows at once, in their order; the same as `encode` on each, and faster."""
        waiting, made = iter(rows), []
        while batch := list(islice(waiting, _BATCH)):
            kept = [row for row in batch if row.output.strip()]
            pieces = [self.template.render(row) for row in kept]
            ids = self.written(pieces)
            encoded = iter([self._joined(*one) for one in zip(kept, pieces, ids, strict=True)])
            made += [next(encoded) if row.output.strip() else "empty answer" for row in batch]
        return made

    def written(self, rows: Sequence[Sequence[Piece]]) -> list[list[list[int]]]:
        """Ids of each piece of some rows, with the closing token where one follows; without `start`."""
        ids = iter(self._tokenize([piece for row in rows for piece in row], [len(row) for row in rows]))
        return [[part + self._closing(piece, part) for piece in row for part in [next(ids)]] for row in rows]

    @property
    def start(self) -> tuple[int, ...]:
        """What stands before the first piece of every row: the beginning-of-text token, or nothing."""
        return self._start

    def kept_start(self, tokens: Sequence[int]) -> int:
        """How many tokens at the start are no text and stay when a prompt is cut."""
        begins = (
            len(tokens) > 0 and self.tokenizer.bos_token_id is not None and tokens[0] == self.tokenizer.bos_token_id
        )
        return len(self._start) or int(begins)

    def _joined(self, row: Row, pieces: Sequence[Piece], ids: Sequence[list[int]]) -> Encoded | str:
        """Put the pieces together and fit them into `max_length`."""
        tokens, labels = list(self._start), [IGNORED] * len(self._start)
        prompt_length = 0
        for piece, part in zip(pieces, ids, strict=True):
            if piece.learned:
                prompt_length = len(tokens)
            tokens += part
            labels += part if piece.learned else [IGNORED] * len(part)
        if self.loss_on == "all":
            begins = self.kept_start(tokens)  # follows nothing, so nobody can predict it
            labels = [IGNORED] * begins + tokens[begins:]
        excess = len(tokens) - self.max_length
        if excess > 0:
            if self.overlong == "drop":
                return "overlong"
            keep = self.kept_start(tokens)
            if keep + excess >= prompt_length:  # at least one token of the prompt must stay to answer from
                return "answer too long"
            del tokens[keep : keep + excess], labels[keep : keep + excess]
            prompt_length -= excess
        return Encoded(tuple(tokens), tuple(labels), tuple(tokens[:prompt_length]), row.output, row.category)

    def _closing(self, piece: Piece, ids: Sequence[int]) -> list[int]:
        """The end-of-text token, unless the chat template wrote an end marker itself."""
        if not piece.closes or self._end is None:
            return []
        written = self.template.control and len(ids) > 0 and ids[-1] in self._special
        return [] if written else [self._end]

    def _tokenize(self, pieces: Sequence[Piece], counts: Sequence[int]) -> list[list[int]]:
        """Ids of each piece; `counts` says how many pieces each row has."""
        first = set(accumulate(counts, initial=0))
        texts: list[tuple[str, bool, bool]] = []  # text, control tokens are such, follows other text
        parts_of = []
        for i, piece in enumerate(pieces):
            parts = split_guarded(piece.text) if self.template.control else [(piece.text, False)]
            parts_of.append(len(parts))
            texts += [(text, control, j > 0 or i not in first) for j, (text, control) in enumerate(parts)]
        ids = self._ids_of(texts)
        waiting = iter(ids)
        return [[token for _ in range(count) for token in next(waiting)] for count in parts_of]

    def _ids_of(self, texts: Sequence[tuple[str, bool, bool]]) -> list[list[int]]:
        """Ids of each text, those that follow other text without the space of a beginning."""
        ids: list[list[int]] = [[] for _ in texts]
        for control in (False, True):
            places = [i for i, text in enumerate(texts) if text[1] is control]
            anchored = [_ANCHOR + texts[i][0] if self._anchor and texts[i][2] else texts[i][0] for i in places]
            for i, found in zip(places, self._raw(anchored, control=control), strict=True):
                ids[i] = self._unanchored(found, texts[i][0], control) if texts[i][2] else found
        return ids

    def _unanchored(self, found: list[int], text: str, control: bool) -> list[int]:
        if found[: len(self._anchor)] == self._anchor:
            return found[len(self._anchor) :]
        return self._raw([text], control=control)[0]  # the line break grew together with one of the text's own

    def _raw(self, texts: list[str], *, control: bool) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=not control,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return ids

    def _start_ids(self) -> tuple[int, ...]:
        """The beginning-of-text token, where this tokenizer puts one before a text."""
        bos = self.tokenizer.bos_token_id
        whole, bare = self.tokenizer("x")["input_ids"], self._raw(["x"], control=False)[0]
        return (bos,) if bos is not None and whole[:1] == [bos] and bare[:1] != [bos] else ()

    def _anchor_ids(self) -> list[int]:
        """Ids of a line break, where the tokenizer puts a space before every text it is given (as SentencePiece does).

        A piece that continues another must not get that space: it is tokenised after a line break, whose ids are then
        taken away. Empty for tokenizers that need no such care.
        """
        alone, after, bare = self._raw([_ANCHOR, _ANCHOR + "x", "x"], control=False)
        return alone if after[: len(alone)] == alone and after[len(alone) :] != bare else []


def marked(encoded: Encoded, tokenizer: Any) -> str:
    """The example as text, what is learned between ⟦ and ⟧, control tokens shown."""
    parts: list[tuple[bool, list[int]]] = []
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        learned = label != IGNORED
        if not parts or parts[-1][0] != learned:
            parts.append((learned, []))
        parts[-1][1].append(token)
    texts = [(learned, tokenizer.decode(ids, skip_special_tokens=False)) for learned, ids in parts]
    return "".join(f"⟦{text}⟧" if learned else text for learned, text in texts)


def dropped_of(encoded: Sequence[Encoded | str]) -> Counter[str]:
    """How many examples were left out, by reason."""
    return Counter(one for one in encoded if isinstance(one, str))
