"""Many clients' local trainings at once: their texts in one stream, their adapters in rows, each client by itself.

A slot is a row of weights [P] and one of gradients; a client sits in it until its own last step, then the next one
takes it: unequal numbers of steps, ranks, rates and batch sizes cost nothing. Every shared pass takes the next
micro-batch of as many seated clients as a budget of tokens allows, those first that have waited longest. What a client
computes from its own tokens is computed with the same shapes whoever sits beside it, and the frozen layers treat tokens
one by one: where the machine's kernels do too (`engine.choice.row_invariant`), neighbours change no bit of anything.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fedloom.adapters.adapted import Adapted
from fedloom.adapters.together import Piece
from fedloom.contracts import Call, Carry, ClientId
from fedloom.engine import scoring
from fedloom.engine.attention import Way
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, Probe
from fedloom.engine.scoring import RowLoss
from fedloom.engine.seat import Row, Seat, live
from fedloom.engine.stream import Model, Share, Stream, together
from fedloom.errors import RunStopped
from fedloom.objectives import sft
from fedloom.params import Layout, Params

AHEAD = 2
"""Calls taken on for each slot: enough to choose the longest first, few enough not to hold a cohort's messages."""
LINE = 16
"""Rows begin at multiples of this many numbers, whole cache lines."""


class Slots:
    """Serves clients side by side; answers that must be written out go through the plain loop."""

    def __init__(
        self,
        adapted: Adapted,
        tokenizer: Any,
        stop_ids: Sequence[int],
        slots: int = 8,
        tokens_per_step: int = 1024,
        checkpointing: bool = False,
        attention: Way = "fused",
    ) -> None:
        """Prepare.

        Args:
            adapted: the model; its adapter must be of a kind that can be shared.
            tokenizer: writes answers.
            stop_ids: tokens that end an answer.
            slots: clients seated at a time.
            tokens_per_step: most tokens of one pass; one client's larger micro-batch goes by itself.
            checkpointing: compute activations again in the backward pass.
            attention: how each text is attended to.

        Raises:
            ValueError: the adapter cannot be shared, or a number is below 1.
        """
        if adapted.together is None:
            raise ValueError("this kind of adapter cannot be shared by several clients; use the reference engine")
        if slots < 1 or tokens_per_step < 1:
            raise ValueError(f"slots={slots}, tokens_per_step={tokens_per_step}: both must be at least 1")
        self.single = Reference(adapted, tokenizer, stop_ids, checkpointing)
        self.adapted, self.device, self.pad = adapted, self.single.device, self.single.pad
        self.budget, self.together = tokens_per_step, adapted.together
        self.model = Model(adapted, attention)
        self._queue = deque[Call[Any]]()
        self._next = deque[Call[Any]]()
        """Trainings that are seated before any of the queue."""
        self._seats: list[Seat | None] = [None] * slots
        self._stride = -(-adapted.layout.size // LINE) * LINE
        self._rows: tuple[Tensor, Tensor] | None = None
        self._cut = dict[int, Row]()
        self._turn = 0

    def room(self) -> int:
        """How many more calls may wait."""
        seated = sum(seat is not None for seat in self._seats)
        return AHEAD * len(self._seats) - len(self._queue) - len(self._next) - seated

    def admit(self, call: Call[Any]) -> None:
        """Put a call at the end of the queue."""
        self._queue.append(call)

    def abandon(self) -> None:
        """Forget all calls."""
        self._queue.clear()
        self._next.clear()
        self._seats = [None] * len(self._seats)

    def advance(self) -> list[tuple[ClientId, Any]]:
        """Serve what needs no gradients; or seat the waiting and train everybody one micro-batch further."""
        reading = [call for call in self._queue if not isinstance(call.request, Descend)]
        if reading:
            return self._read(reading[0])
        self._sit_down()
        return self._finished() or self._train()

    # -- training

    def _sit_down(self) -> None:
        """Give free slots to the waiting, the longest training first, so that nobody is left to finish alone.

        Those that come while others wait are looked at only when these are seated: the short ones' turn comes too, and
        replies that must be counted in order do not pile up behind them.
        """
        for number, seat in enumerate(self._seats):
            if seat is not None:
                continue
            if not self._next and self._queue:
                self._next = deque(sorted(self._queue, key=lambda call: -_work(call.request)))
                self._queue.clear()
            if self._next:
                self._seats[number] = self._seat(number, self._next.popleft())

    def _train(self) -> list[tuple[ClientId, Any]]:
        """One shared pass, forward and backward, and the steps it completes."""
        seats = self._chosen()
        shares = [seat.share() for seat in seats]
        stream = self.model.laid_out(shares, self.pad)
        counts = torch.tensor([1.0 / seat.descent.count for seat in seats], dtype=torch.float64)
        lengths = torch.tensor([stop - start for start, stop in stream.owned])
        weights = counts.repeat_interleave(lengths).to(self.device)
        with self._words(stream, training=True) as words:
            losses = sft.losses(words, stream.targets)
            if losses.requires_grad:
                losses.backward(weights.to(losses.dtype))
        numbers = list[Tensor]()
        for seat, (start, stop) in zip(seats, stream.owned, strict=True):
            numbers += seat.add(losses.detach()[start:stop].sum())
        values = iter(torch.stack([number.double() for number in numbers]).tolist() if numbers else ())
        for seat in seats:
            if not seat.parts:
                seat.close(next(values), next(values))
        return self._finished()

    def _chosen(self) -> list[Seat]:
        """Who takes part in the next pass, by slot."""
        self._turn += 1
        waiting = sorted((seat for seat in self._seats if seat is not None), key=lambda seat: seat.served)
        chosen, tokens = list[Seat](), 0
        for seat in waiting:
            more = seat.tokens
            if not chosen or tokens + more <= self.budget:
                chosen.append(seat)
                tokens += more
                seat.served = self._turn
        return sorted(chosen, key=lambda seat: seat.number)

    def _finished(self) -> list[tuple[ClientId, Any]]:
        """Results of those that have no step left; their slots are free."""
        done = [seat for seat in self._seats if seat is not None and not seat.parts]
        for seat in done:
            self._seats[seat.number] = None
        return [(seat.client, seat.result()) for seat in done]

    def _seat(self, number: int, call: Call[Any]) -> Seat:
        request: Descend = call.request
        self.adapted.check(request.start, request.layout)
        return Seat(number, call, self._row(number, request.layout), self.together)

    def _row(self, number: int, layout: Layout) -> Row:
        """A slot's row, cut as a layout says; allocated with the first training, cut anew where the layout changes."""
        if self._rows is None:
            w = self.adapted.w.new_zeros(len(self._seats), self._stride)
            self._rows = w, torch.zeros_like(w)
        known = self._cut.get(number)
        if known is None or known.layout is not layout:
            w, g = (rows[number][: layout.size] for rows in self._rows)
            known = self._cut[number] = Row(layout, w, g, self.together.pieces(w, g, layout))
        return known

    # -- without gradients

    def _read(self, first: Call[Any]) -> list[tuple[ClientId, Any]]:
        """Serve a call that trains nothing, and with it every evaluation, if it is one."""
        match first.request:
            case Evaluate():
                return self._evaluate()
            case Probe():
                result: Any = self._probe(first.request)
            case Logits():
                result = self._logits(first.request)
            case Generate():
                self.single.admit(first)
                ((_, result),) = self.single.advance()
            case other:
                raise TypeError(f"this engine cannot serve a {type(other).__name__}")
        self._queue = deque(call for call in self._queue if call is not first)
        return [(first.client, result)]

    def _evaluate(self) -> list[tuple[ClientId, Any]]:
        """All evaluations that wait, whatever their models; each client's rows form batches of their own."""
        asked = [call for call in self._queue if isinstance(call.request, Evaluate)]
        self._queue = deque(call for call in self._queue if not isinstance(call.request, Evaluate))
        groups = list[list[Call[Any]]]()
        for call in asked:
            known = next((group for group in groups if scoring.alike(group[0].request, call.request)), None)
            if known is None:
                groups.append([call])
            else:
                known.append(call)
        shares, places = list[Share](), list[tuple[int, list[int]]]()
        for group in groups:
            like: Evaluate = group[0].request
            pieces, sparse = self.pieces(like.x, like.layout, like.carry)
            for call in group:
                for rows in _by_length(call.request.examples, like.batch_size):
                    shares.append(Share([call.request.examples[row] for row in rows], pieces, None, sparse))
                    places.append((id(call), rows))
        losses = {id(call): [(0.0, 0)] * len(call.request.examples) for call in asked}
        for (owner, numbers), found in zip(places, self._losses(shares), strict=True):
            for row, loss in zip(numbers, found, strict=True):
                losses[owner][row] = loss
        results = dict[ClientId, Any]()
        for group in groups:
            results |= self.single.scored(group, [loss for call in group for loss in losses[id(call)]])
        return [(call.client, results[call.client]) for call in asked]

    def _probe(self, request: Probe) -> list[float]:
        """Every point is a virtual client with the same rows."""
        shares = [
            Share(request.examples, *self._still(point, request.layout, request.carry)) for point in request.points
        ]
        return [sum(nll for nll, _ in rows) / max(1, sum(n for _, n in rows)) for rows in self._losses(shares)]

    @torch.no_grad()
    def _logits(self, request: Logits) -> Tensor:
        share = Share(request.examples, *self._still(request.x, request.layout, request.carry))
        with self._words(self.model.laid_out([share], self.pad), training=False) as words:
            return words.float().cpu()

    @torch.no_grad()
    def _losses(self, shares: Sequence[Share]) -> Iterator[list[RowLoss]]:
        """Each share's rows, in its order."""
        for chosen in together(shares, self.budget):
            stream = self.model.laid_out(chosen, self.pad)
            texts = sum(len(share.examples) for share in chosen)
            with self._words(stream, training=False) as words:
                losses = sft.losses(words, stream.targets).double()
            sums = torch.zeros(texts, dtype=torch.float64, device=self.device).index_add_(0, stream.rows, losses)
            counts = torch.bincount(stream.rows, minlength=texts)
            rows = list(zip(sums.tolist(), counts.tolist(), strict=True))
            for share in chosen:
                yield rows[: len(share.examples)]
                rows = rows[len(share.examples) :]

    def _still(self, x: Params, layout: Layout, carry: Carry) -> tuple[list[Piece], None, bool]:
        pieces, sparse = self.pieces(x, layout, carry)
        return pieces, None, sparse

    # -- both

    def pieces(self, x: Params, layout: Layout, carry: Carry) -> tuple[list[Piece], bool]:
        """What a vector [P] means for the adapted layers, and whether its sparse update counts."""
        self.adapted.check(x, layout)
        pieces = self.together.pieces(x.to(self.adapted.w).clone(), None, layout)
        self.together.carry(pieces, carry)
        return pieces, live(pieces)

    @contextmanager
    def _words(self, stream: Stream, training: bool) -> Iterator[Tensor]:
        """Within, the model's words [wanted, vocabulary] where the stream wants them, and their backward pass.

        Raises:
            RunStopped: memory ran out.
        """
        self.model.training(training)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):  # nothing depends on it
            try:
                with self.model.pass_(stream) as words:
                    yield words()
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                    raise
                raise RunStopped(
                    f"memory ran out in a shared pass of {stream.ids.shape[1]} tokens: begin again with a lower "
                    f"engine.tokens_per_step (now {self.budget}) or engine.slots (now {len(self._seats)}); a single "
                    "client's batch is split by local.accumulate"
                ) from None


def _work(request: Descend) -> int:
    return sum(len(example.ids) for batch in request.batches for example in batch)


def _by_length(examples: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of `size`, the shortest first."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].ids))
    for i in range(0, len(order), size):
        yield order[i : i + size]
