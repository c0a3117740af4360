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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedloom.adapters.adapted import Adapted
from fedloom.adapters.together import Piece
from fedloom.contracts import Call, Carry, ClientFailed, ClientId
from fedloom.drift import Strayed
from fedloom.engine import padded, scoring
from fedloom.engine.attention import Way
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, Probe, Stand, Wander
from fedloom.engine.seat import Row, Seat, live
from fedloom.engine.stream import Model, Share, Stream, together
from fedloom.engine.walkers import Walkers
from fedloom.errors import RunStopped
from fedloom.metrics.scores import Scores
from fedloom.objectives.base import Forward, Objective, Text
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
        objective: Objective | None = None,
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
            objective: what is minimised; None: supervised fine-tuning.

        Raises:
            ValueError: the adapter cannot be shared, or a number is below 1.
        """
        if adapted.together is None:
            raise ValueError("this kind of adapter cannot be shared by several clients; use the reference engine")
        if slots < 1 or tokens_per_step < 1:
            raise ValueError(f"slots={slots}, tokens_per_step={tokens_per_step}: both must be at least 1")
        self.single = Reference(adapted, tokenizer, stop_ids, checkpointing, objective)
        self.objective = self.single.objective
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
        self._walkers = Walkers(self)

    @contextmanager
    def minimising(self, objective: Objective) -> Iterator[None]:
        """Within, this is minimised."""
        before, self.objective = self.objective, objective
        try:
            with self.single.minimising(objective):
                yield
        finally:
            self.objective = before

    def room(self) -> int:
        """How many more calls may wait."""
        seated = sum(seat is not None for seat in self._seats) + len(self._walkers)
        return AHEAD * len(self._seats) - len(self._queue) - len(self._next) - seated

    def admit(self, call: Call[Any]) -> None:
        """Put a call at the end of the queue."""
        self._queue.append(call)

    def abandon(self) -> None:
        """Forget all calls."""
        self._queue.clear()
        self._next.clear()
        self._walkers.clear()
        self._seats = [None] * len(self._seats)

    def advance(self) -> list[tuple[ClientId, Any]]:
        """Serve what trains nothing; or those that walk without gradients, a step; or seat the waiting and train
        everybody one micro-batch further.
        """
        reading = [call for call in self._queue if not isinstance(call.request, Descend | Wander)]
        if reading:
            return self._read(reading[0])
        walking = [call for call in self._queue if isinstance(call.request, Wander)]
        if walking or len(self._walkers):
            return self._walk(walking)
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
        stream = self.model.laid_out([seat.share() for seat in seats], self.pad)
        references = self._references(seats, stream)
        with self._said(stream, training=True) as said:
            sums = [
                self.objective.losses(mine, reference, seat.parts[0]).sum()
                for seat, mine, reference in zip(seats, said, references, strict=True)
            ]
            loss = torch.stack([one / seat.descent.count for seat, one in zip(seats, sums, strict=True)]).sum()
            if loss.requires_grad:
                loss.backward()
        numbers = list[Tensor]()
        for seat, one in zip(seats, sums, strict=True):
            numbers += seat.add(one.detach())
        values = iter(torch.stack([number.double() for number in numbers]).tolist() if numbers else ())
        for seat in seats:
            if not seat.parts:
                seat.close(next(values), next(values))
        return self._finished()

    def _references(self, seats: Sequence[Seat], stream: Stream) -> Sequence[list[Tensor] | None]:
        """What the reference says of the same stream: its texts meet no adapter, or those they began with."""
        match self.objective.reference:
            case None:
                return [None] * len(seats)
            case "base":
                return self._base_said(stream)
            case "start":
                starts = [self.still((), *(s.request.start, s.request.layout, s.request.carry)) for s in seats]
                return self.read_said(stream.met(starts))

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
        return Seat(number, call, self._row(number, request.layout), self.together, self.objective)

    def _row(self, number: int, layout: Layout) -> Row:
        """A slot's row, cut as a layout says; allocated with the first training, cut anew where the layout changes."""
        if self._rows is None:
            w = self.adapted.w.new_zeros(len(self._seats), self._stride)
            self._rows = w, torch.zeros_like(w)
        known = self._cut.get(number)
        if known is None or known.layout is not layout:
            w, g = (rows[number][: layout.size] for rows in self._rows)
            pieces, heads = self.together.pieces(w, g, layout), self.together.heads(w, g, layout)
            known = self._cut[number] = Row(layout, w, g, pieces, heads)
        return known

    # -- without gradients

    def _walk(self, waiting: Sequence[Call[Any]]) -> list[tuple[ClientId, Any]]:
        """Let the waiting begin, as long as there are slots, and all of them go on."""
        begun = list(waiting[: len(self._seats) - len(self._walkers)])
        self._queue = deque(call for call in self._queue if all(call is not other for other in begun))
        failed = [(call.client, why) for call in begun if (why := self._walkers.begin(call)) is not None]
        return failed + self._walkers.advance()

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
            case Stand():
                result = self._stand(first.request)
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
        shares, places, gone = list[Share](), list[tuple[int, list[Any], list[int]]](), dict[ClientId, Any]()
        for group in groups:
            like: Evaluate = group[0].request
            try:
                still = self.still((), self._at(like), like.layout, like.carry)
            except Strayed as strayed:
                gone |= {call.client: ClientFailed(str(strayed), "nonfinite") for call in group}
                continue
            for call in group:
                for rows in _by_length(call.request.examples, like.batch_size):
                    part = [call.request.examples[row] for row in rows]
                    shares.append(replace(still, texts=self.objective.texts(part)))
                    places.append((id(call), part, rows))
        found = {id(call): [Scores()] * len(call.request.examples) for call in asked}
        for (owner, part, rows), (said, base) in zip(places, self._all_said(shares), strict=True):
            for row, score in zip(rows, self.objective.scores(said, base, part), strict=True):
                found[owner][row] = score
        results = dict[ClientId, Any](gone)
        for group in groups:
            if group[0].client in gone:
                continue
            results |= self.single.scored(group, [score for call in group for score in found[id(call)]])
        return [(call.client, results[call.client]) for call in asked]

    def _at(self, request: Evaluate) -> Params:
        """[P] of the model that is scored."""
        if request.drift is None:
            return request.x
        return self.adapted.beside(request.drift, request.layout)[0]

    def _probe(self, request: Probe) -> list[float]:
        """Every point is a virtual client with the same rows."""
        texts = self.objective.texts(request.examples)
        shares = [self.still(texts, point, request.layout, request.carry) for point in request.points]
        count = max(1, self.objective.count(request.examples))
        return [
            float(self.objective.losses(said, base, request.examples).double().sum()) / count
            for said, base in self._all_said(shares)
        ]

    def _stand(self, request: Stand) -> Params | ClientFailed:
        try:
            return self.adapted.beside(request.drift, request.layout)[0].to("cpu")
        except Strayed as strayed:
            return ClientFailed(str(strayed), "nonfinite")

    def _logits(self, request: Logits) -> Tensor:
        forward: Forward = "pooled" if self.objective.forward == "pooled" else "logits"
        share = self.still(self.objective.texts(request.examples), request.x, request.layout, request.carry)
        (said,) = self.read_said(self.model.laid_out([share], self.pad), forward)
        return padded.together(said, forward).cpu()

    def _all_said(self, shares: Sequence[Share]) -> Iterator[tuple[list[Tensor], list[Tensor] | None]]:
        """What the model, and the base if it is compared with, says of each share's texts, in their order."""
        for chosen in together(shares, self.budget):
            stream = self.model.laid_out(chosen, self.pad)
            none: Sequence[list[Tensor] | None] = [None] * len(chosen)
            base = none if self.objective.reference is None else self._base_said(stream)
            yield from zip(self.read_said(stream), base, strict=True)

    def _base_said(self, stream: Stream) -> list[list[Tensor]]:
        """What the base says of a stream's texts; see `Reference.base_said`."""
        layout = self.adapted.layout
        nowhere = self.still((), self.adapted.w.new_zeros(layout.size), layout, ())
        return self.read_said(stream.met([nowhere] * len(stream.texts)))

    @torch.no_grad()
    def read_said(self, stream: Stream, forward: Forward | None = None) -> list[list[Tensor]]:
        """What the model says of each share's texts, nothing saved."""
        with self._said(stream, training=False, forward=forward) as said:
            return said

    def still(self, texts: Sequence[Text], x: Params, layout: Layout, carry: Carry) -> Share:
        """Texts that meet a model in which nothing is trained."""
        pieces, sparse = self.pieces(x, layout, carry)
        return Share(texts, pieces, None, sparse, self.together.heads(x.to(self.adapted.w), None, layout))

    # -- both

    def pieces(self, x: Params, layout: Layout, carry: Carry) -> tuple[list[Piece], bool]:
        """What a vector [P] means for the adapted layers, and whether its sparse update counts."""
        self.adapted.check(x, layout)
        pieces = self.together.pieces(x.to(self.adapted.w).clone(), None, layout)
        self.together.carry(pieces, carry)
        return pieces, live(pieces)

    @contextmanager
    def _said(self, stream: Stream, training: bool, forward: Forward | None = None) -> Iterator[list[list[Tensor]]]:
        """Within, what the model says of each share's texts, and its backward pass.

        Raises:
            RunStopped: memory ran out.
        """
        self.model.training(training)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):  # nothing depends on it
            try:
                with self.model.pass_(stream, forward or self.objective.forward) as said:
                    yield said()
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                    raise
                raise RunStopped(
                    f"memory ran out in a shared pass of {stream.ids.shape[1]} tokens: begin again with a lower "
                    f"engine.tokens_per_step (now {self.budget}) or engine.slots (now {len(self._seats)}); a single "
                    "client's batch is split by local.accumulate"
                ) from None


def _work(request: Descend) -> int:
    return sum(example.size for batch in request.batches for example in batch)


def _by_length(examples: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of `size`, the shortest first."""
    order = sorted(range(len(examples)), key=lambda row: examples[row].size)
    for i in range(0, len(order), size):
        yield order[i : i + size]
