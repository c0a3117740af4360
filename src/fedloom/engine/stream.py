"""Texts of several clients one behind the other, without filling: what one shared forward pass is given.

A text that begins as an earlier one (`Text.shared`) brings only what comes after: its trunk is in the stream already.

Products over fewer than LEAST rows are computed by other kernels on some machines, in other bits: a shorter stream is
filled up with a text of nobody, and so are the places where the model's word is wanted. Where a library prepares every
number of rows anew (bfloat16 on a CPU: 0.6 ms for each new size of each layer), they are filled up to round numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.adapters.adapted import Adapted
from fedloom.adapters.together import Piece, Segment
from fedloom.engine.attention import Span, Way, texts
from fedloom.engine.padded import apart, exact
from fedloom.models.load import takes
from fedloom.objectives.base import Forward, Text

LEAST = 4
ROUND = 64
"""Tokens of a stream are a multiple of this where sizes are prepared one by one."""


@dataclass(frozen=True)
class Share:
    """What one client brings: texts, the adapter they meet, and the key of its dropout."""

    texts: Sequence[Text]
    pieces: Sequence[Piece]
    seed: int | None = None
    sparse: bool = False
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    """The numbers of its head, where the model has one."""

    @property
    def tokens(self) -> int:
        """Of all its texts; what two of them share counts once."""
        return sum(text.own for text in self.texts)


@dataclass(frozen=True)
class Stream:
    """The pass: tokens, texts, whose they are, and where the model's word is wanted."""

    ids: Tensor
    """[1, tokens]"""
    positions: Tensor
    """[1, tokens], from 0 in every text; from the end of its trunk in one that has one."""
    spans: Sequence[Span]
    """Each text's own tokens."""
    trunks: Mapping[int, Span]
    """By number of a text: the tokens of the one before it that it begins with."""
    segments: Sequence[Segment]
    places: Tensor
    """[n] tokens after which the model's word is wanted; the last ones may be filling."""
    targets: Tensor
    """[wanted] what stands there in truth."""
    counts: Sequence[int]
    """Wanted words of each text, without the filling's."""
    texts: Sequence[int]
    """Texts of each share."""
    heads: Sequence[Mapping[str, Tensor]]
    """Each share's head."""

    def met(self, shares: Sequence[Share]) -> "Stream":
        """The same texts, meeting other adapters and heads, without dropout."""
        segments = [
            Segment(segment.start, segment.stop, share.pieces, None, share.sparse)
            for segment, share in zip(self.segments, shares, strict=True)
        ]
        return replace(self, segments=segments, heads=[share.heads for share in shares])


def laid_out(shares: Sequence[Share], pad: int, device: torch.device, multiple: int = LEAST) -> Stream:
    """Lay the shares out, the first in front.

    Args:
        shares: what each client brings.
        pad: the token of the text of nobody.
        device: where the model is.
        multiple: tokens and places are filled up to a multiple of this.
    """
    ids, positions, places, targets, counts = list[int](), list[int](), list[int](), list[int](), list[int]()
    spans, trunks, segments = list[Span](), dict[int, Span](), list[Segment]()
    for share in shares:
        begun = first = len(ids)
        for text in share.texts:
            start = len(ids)
            if text.shared:
                trunks[len(spans)] = first, first + text.shared
            else:
                first = start
            ids.extend(text.ids[text.shared :])
            positions.extend(range(text.shared, len(text.ids)))
            behind = start - text.shared
            places.extend((first if place < text.shared else behind) + place for place in text.places)
            targets.extend(text.targets)
            counts.append(len(text.places))
            spans.append((start, len(ids)))
        segments.append(Segment(begun, len(ids), share.pieces, share.seed, share.sparse))
    filling = -len(ids) % multiple
    if filling:
        spans.append((len(ids), len(ids) + filling))
        positions.extend([0] * filling)
        ids.extend([pad] * filling)
    places.extend([0] * (-len(places) % multiple or multiple * (not places)))
    return Stream(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        spans,
        trunks,
        segments,
        torch.tensor(places, device=device),
        torch.tensor(targets, dtype=torch.long, device=device),
        counts,
        [len(share.texts) for share in shares],
        [share.heads for share in shares],
    )


def together(shares: Iterable[Share], budget: int) -> Iterator[list[Share]]:
    """Shares in their order, as many at a time as a budget of tokens allows; a larger one goes by itself."""
    chosen, tokens = list[Share](), 0
    for share in shares:
        if chosen and tokens + share.tokens > budget:
            yield chosen
            chosen, tokens = [], 0
        chosen.append(share)
        tokens += share.tokens
    if chosen:
        yield chosen


class Model:
    """The adapted model, run over streams."""

    def __init__(self, adapted: Adapted, attention: Way) -> None:
        """Prepare.

        Args:
            adapted: the model with its adapted layers.
            attention: how each text is attended to.
        """
        module: Any = adapted.module
        self.inner: nn.Module = module.get_base_model() if hasattr(module, "get_base_model") else module
        self.adapted, self.attention = adapted, attention
        self.selects = takes(self.inner, "logits_to_keep")
        prepared = adapted.w.device.type == "cpu" and next(self.inner.parameters()).dtype == torch.bfloat16
        self.multiple = ROUND if prepared else LEAST

    def laid_out(self, shares: Sequence[Share], pad: int) -> Stream:
        """The shares as this model takes them best."""
        return laid_out(shares, pad, self.adapted.w.device, self.multiple)

    @contextmanager
    def pass_(self, stream: Stream, forward: Forward) -> Iterator[Callable[[], list[list[Tensor]]]]:
        """Within, forward and backward of this stream; yields what computes what is said of each share's texts.

        The context must cover the backward pass too: checkpointed layers are computed again there.
        """
        moment = self.adapted.moment
        moment.segments = stream.segments
        try:
            with texts(self.inner.config, stream.spans, self.attention, stream.trunks):
                yield lambda: self._said(stream, forward)
        finally:
            moment.segments = None

    def _said(self, stream: Stream, forward: Forward) -> list[list[Tensor]]:
        if forward == "pooled":
            return self._pooled(stream)
        said = iter(apart(self._words(stream), stream.targets, stream.counts, forward))
        return [[next(said) for _ in range(count)] for count in stream.texts]

    def _words(self, stream: Stream) -> Tensor:
        """[wanted, vocabulary]"""
        selection: dict[str, Any] = {"logits_to_keep": stream.places} if self.selects else {}
        logits: Tensor = self.inner(
            input_ids=stream.ids, position_ids=stream.positions, use_cache=False, **selection
        ).logits[0]
        return (logits if self.selects else logits[stream.places])[: len(stream.targets)]

    def _pooled(self, stream: Stream) -> list[list[Tensor]]:
        """Class logits by each share's own head, computed from its own texts alone."""
        model: Any = self.inner
        hidden = model.hidden(stream.ids, stream.positions + model.first_position)
        pooled = model.pool(hidden, stream.spans[: len(stream.counts)]).split(list(stream.texts))
        return [
            list(exact(torch.func.functional_call(model.head, dict(head), (mine,))).unbind())
            for head, mine in zip(stream.heads, pooled, strict=True)
        ]

    def training(self, wanted: bool) -> None:
        """Switch the modules' mode, which walks through all of them, only where it changes."""
        if self.inner.training != wanted:  # peft's wrapper begins in training mode whatever is inside
            self.adapted.module.train(wanted)
