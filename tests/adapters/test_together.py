"""What an adapted layer computes for a stream of several clients, against sums written out client by client."""

from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedloom import rng
from fedloom.adapters.dropout import Moment, draw
from fedloom.adapters.together import NotTogether, Piece, Place, Segment, fitted, switched

IN, OUT, NAME, NUMBER = 7, 5, "layers.3.up", 1
WHERE = torch.tensor([0, 3, 8, 20, 34])
"""Entries of a sparse update in the flattened [5, 7] matrix."""


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(kind):
    made = {"linear": nn.Linear(IN, OUT), "no bias": nn.Linear(IN, OUT, bias=False), "conv1d": Conv1D(OUT, IN)}[kind]
    for i, parameter in enumerate(made.parameters()):
        parameter.data = normal(*parameter.shape, seed=90 + i)
    return made.requires_grad_(False)


@dataclass
class One:
    """A client: its part of the stream, and what it trains."""

    start: int
    stop: int
    rank: int
    scale: float
    carried: int = 0
    sparse: bool = False
    seed: int | None = None
    trained: str = "ABS"

    def piece(self):
        """Factors and gradients, views of rows as the engine has them."""
        seed = 10 * self.start
        sizes = (self.rank * IN, OUT * self.rank, len(WHERE))
        row, grads = normal(sum(sizes), seed=seed), torch.zeros(sum(sizes), dtype=torch.float64)
        (a, b, s), (da, db, ds) = row.split(sizes), grads.split(sizes)
        carry = (normal(OUT, self.carried, seed=seed + 1), normal(self.carried, IN, seed=seed + 2))
        return Piece(
            a.view(self.rank, IN), b.view(OUT, self.rank), self.scale,
            da.view(self.rank, IN) if "A" in self.trained else None, db.view(OUT, self.rank),
            s if self.sparse else None, ds if self.sparse else None, carry if self.carried else None,
        )  # fmt: skip

    def segment(self):
        """The layer at hand is the second of two."""
        other = Piece(torch.zeros(1, 1), torch.zeros(1, 1), 1.0, None, None)
        return Segment(self.start, self.stop, [other, self.piece()], self.seed, self.sparse)


CLIENTS = {
    "one": [One(0, 6, 2, 0.5)],
    "ranks differ": [One(0, 3, 1, 2.0), One(3, 4, 4, 0.25), One(4, 11, 2, 1.0)],
    "carried": [One(0, 3, 2, 0.5, carried=3), One(3, 8, 2, 0.5), One(8, 9, 1, 0.5, carried=1)],
    "sparse": [One(0, 3, 2, 0.5, sparse=True), One(3, 8, 2, 0.5, sparse=True, carried=2), One(8, 9, 2, 1.0)],
    "frozen": [One(0, 4, 2, 0.5, trained="B"), One(4, 8, 2, 0.5)],
    "dropout": [One(0, 4, 2, 0.5, seed=5), One(4, 9, 3, 0.5, seed=6, carried=1), One(9, 11, 2, 1.0)],
}
DROPOUT = 0.4


def by_hand(x, base, clients, pieces):
    """Row by row: W x + b + scale B A (m * x) / (1 - p) + L R x + S x."""
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    rows = []
    for one, piece in zip(clients, pieces, strict=True):
        mask = numpy.ones((one.stop - one.start, IN))
        if one.seed is not None:
            mask = draw(rng.key(one.seed, NAME), one.stop - one.start, IN, DROPOUT) / (1 - DROPOUT)
        for t in range(one.start, one.stop):
            seen = x[t] * torch.from_numpy(mask[t - one.start])
            row = weight @ x[t] + piece["scale"] * (piece["b"] @ (piece["a"] @ seen))
            if base.bias is not None:
                row = row + base.bias
            if piece["carry"] is not None:
                row = row + piece["carry"][0] @ (piece["carry"][1] @ x[t])
            if piece["s"] is not None:
                dense = torch.zeros(OUT * IN, dtype=torch.float64).index_put((WHERE,), piece["s"]).view(OUT, IN)
                row = row + dense @ x[t]
            rows.append(row)
    return torch.stack(rows)


def place(base, dropout=DROPOUT):
    return Place(NAME, NUMBER, base, dropout, WHERE, torch.zeros((), dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
@pytest.mark.parametrize("who", CLIENTS)
def test_products_and_gradients_are_the_sums_written_out(who, kind):
    clients, base = CLIENTS[who], layer(kind)
    segments = [one.segment() for one in clients]
    mine = [segment.pieces[NUMBER] for segment in segments]
    x = normal(1, clients[-1].stop, IN, seed=1).requires_grad_()
    y = place(base)(x, segments)
    leaves = [
        {
            "a": p.a.clone().requires_grad_(), "b": p.b.clone().requires_grad_(), "scale": p.scale, "carry": p.carry,
            "s": None if p.values is None else p.values.clone().requires_grad_(),
        }
        for p in mine
    ]  # fmt: skip
    same_x = x.detach().clone().requires_grad_()
    wanted = by_hand(same_x[0], base, clients, leaves)
    assert y.shape == (1, clients[-1].stop, OUT)
    assert torch.allclose(y[0], wanted, rtol=1e-12, atol=1e-12)
    up = normal(*y.shape, seed=2)
    y.backward(up)
    wanted.backward(up[0])
    assert torch.allclose(x.grad, same_x.grad, rtol=1e-12, atol=1e-12)
    for one, found, right in zip(clients, mine, leaves, strict=True):
        assert (found.grad_a is None) is (one.trained == "B")
        if found.grad_a is not None:
            assert torch.allclose(found.grad_a, right["a"].grad, rtol=1e-12, atol=1e-12)
        assert torch.allclose(found.grad_b, right["b"].grad, rtol=1e-12, atol=1e-12)
        if one.sparse:
            assert torch.allclose(found.grad_values, right["s"].grad, rtol=1e-12, atol=1e-12)


def test_gradients_are_added():
    """Parts of a batch come one after the other."""
    clients = CLIENTS["ranks differ"]
    segments = [one.segment() for one in clients]
    at, x = place(layer("linear")), normal(1, clients[-1].stop, IN, seed=1)
    at(x, segments).sum().backward()
    first = [segment.pieces[NUMBER].grad_b.clone() for segment in segments]
    at(x, segments).sum().backward()
    for segment, once in zip(segments, first, strict=True):
        assert torch.allclose(segment.pieces[NUMBER].grad_b, 2 * once, rtol=1e-12)


def test_a_sparse_update_that_does_not_count_adds_nothing():
    one = One(0, 4, 2, 0.5, sparse=True)
    segment = one.segment()
    segment.sparse = False
    y = place(layer("linear"), 0.0)(normal(1, 4, IN, seed=1), [segment])
    piece = segment.pieces[NUMBER]
    leaf = {"a": piece.a, "b": piece.b, "scale": 0.5, "carry": None, "s": None}
    assert torch.allclose(y[0], by_hand(normal(1, 4, IN, seed=1)[0], layer("linear"), [one], [leaf]), rtol=1e-12)


def test_a_layer_of_another_make_keeps_its_own_forward():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    base = Doubled(IN, OUT, dtype=torch.float64).requires_grad_(False)
    clients = CLIENTS["ranks differ"]
    segments = [one.segment() for one in clients]
    x = normal(1, clients[-1].stop, IN, seed=1).requires_grad_()
    y = place(base)(x, segments)
    plain = nn.Linear(IN, OUT, dtype=torch.float64)
    plain.load_state_dict(base.state_dict())
    none = [
        {"a": p.a, "b": p.b, "scale": p.scale, "carry": None, "s": None} for p in (s.pieces[NUMBER] for s in segments)
    ]
    same_x = x.detach().clone().requires_grad_()
    wanted = by_hand(same_x[0], plain, clients, none) + plain(same_x[0])
    assert torch.allclose(y[0], wanted, rtol=1e-12, atol=1e-12)
    y.sum().backward()
    wanted.sum().backward()
    assert torch.allclose(x.grad, same_x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("who", CLIENTS)
def test_neighbours_change_no_bit_of_an_adapter(who):
    """Its own part, computed with the same rows, alone and in company, in float32; some neighbours are no numbers."""
    clients = CLIENTS[who]
    base = layer("linear").float()
    x = normal(1, clients[-1].stop, IN, seed=1).float()

    def served(chosen):
        segments, parts, at = [], [], 0
        for one in chosen:
            size = one.stop - one.start
            segment = one.segment()
            for p in segment.pieces:
                for field in ("a", "b", "grad_a", "grad_b", "values", "grad_values"):
                    value = getattr(p, field)
                    setattr(p, field, None if value is None else value.float())
                p.carry = None if p.carry is None else tuple(t.float() for t in p.carry)
            segment.start, segment.stop = at, at + size
            at += size
            segments.append(segment)
            parts.append(x[:, one.start : one.stop])
        stream = torch.cat(parts, 1).requires_grad_()
        y = Place(NAME, NUMBER, base, DROPOUT, WHERE, torch.zeros((), requires_grad=True))(stream, segments)
        y.sum().backward()
        return {
            one.start: (p.pieces[NUMBER].grad_a, p.pieces[NUMBER].grad_b)
            for one, p in zip(chosen, segments, strict=True)
        }

    company = served(clients)
    for one in clients:
        ours, alone = company[one.start], served([one])[one.start]
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(ours, alone, strict=True))


def test_fewer_rows_than_tokens_are_refused():
    """A layer of routed experts sees some of them, in another order."""
    segments = [one.segment() for one in CLIENTS["ranks differ"]]
    with pytest.raises(NotTogether, match=NAME):
        place(layer("linear"))(normal(1, 4, IN, seed=1), segments)


def test_a_switched_layer_is_its_own_while_nobody_shares():
    base, moment = layer("linear"), Moment()
    segments = [one.segment() for one in CLIENTS["one"]]
    at = place(base, 0.0)
    x = normal(1, 6, IN, seed=1)
    own, base_forward = base(x), switched(base, moment, at)
    assert torch.equal(base_forward(x), own)
    moment.segments = segments
    assert torch.equal(base_forward(x), at(x, segments))
    assert not torch.equal(base_forward(x), own)
    moment.segments = None
    assert torch.equal(base_forward(x), own)


def test_carried_factors_must_fit():
    like, shapes = torch.zeros(1), [(5, 7), (3, 5)]
    left, right = torch.ones(5, 2), torch.ones(2, 7)
    none = (torch.ones(3, 0), torch.ones(0, 5))
    assert fitted((), shapes, like) == [None, None]
    first, second = fitted((left.double(), right.double(), *none), shapes, like)
    assert second is None
    assert torch.equal(first[0], left)
    assert torch.equal(first[1], right)
    for wrong in ((left, right), (left, right.t(), *none), (right, left, *none), (left[0], right, *none)):
        with pytest.raises(ValueError, match="does not fit"):
            fitted(wrong, shapes, like)


@pytest.mark.parametrize("inputs, outputs", [(5, 35), (24, 40), (33, 24)])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_where_a_client_stands_changes_no_bit_of_its_gradients(inputs, outputs, rank):
    """Rows of odd width begin anywhere in a cache line, and kernels sum otherwise there (seen with a bare slice)."""
    a, b = normal(rank, inputs, seed=3).float(), normal(outputs, rank, seed=4).float()
    base = nn.Linear(inputs, outputs).requires_grad_(False)
    for tokens in (1, 5, 13, 33):
        x, up = normal(1, tokens, inputs, seed=5).float(), normal(1, tokens, outputs, seed=6).float()
        found = []
        for before in (0, 1, 2, 3, 7):
            da, db = torch.zeros_like(a), torch.zeros_like(b)
            segment = Segment(before, before + tokens, [Piece(a, b, 0.5, da, db)])
            stream = nn.functional.pad(x, (0, 0, before, 0), value=2.0).requires_grad_()
            y = Place(NAME, 0, base, 0.0, None, torch.zeros((), requires_grad=True))(stream, [segment])
            y.backward(nn.functional.pad(up, (0, 0, before, 0), value=3.0))
            found.append((da, db))
        for ours in found[1:]:
            assert all(torch.equal(one, other) for one, other in zip(ours, found[0], strict=True))
