"""SLoRA: a sparse stage over one shared mask, then factors from the SVD of what it learned."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fedloom import lowrank, masks
from fedloom.params import Layout, Leaf
from fedloom.spaces.sparse import Sparse
from spaces.federations import ORACLES

ORACLE = ORACLES["slora_stage1_to_2"]


def layout(out=2, inputs=3, rank=1, scale=2.0, density=2 / 3, transposed=False, more=()):
    kept = len(masks.entries(0, "w", out, inputs, density))
    common = {"module": "w", "scale": scale, "transposed": transposed}
    return Layout.of(
        [
            Leaf("w.A", (rank, inputs), factor="A", **common),
            Leaf("w.B", (out, rank), factor="B", **common),
            Leaf("w.S", (kept,), module="w"),
            *more,
        ]
    )


def averaged(space, replies, weights, phase=0):
    """What clients send, folded."""
    acc = space.rule.start()
    for y, weight in zip(replies, weights, strict=True):
        acc = space.rule.add(acc, space.lift(y, space.layout, phase), weight)
    return space.rule.finish(acc)


def test_the_switch_in_numbers(monkeypatch):
    """The sheet's mask and updates: the mean of the masked entries, its singular values, and what rank 1 keeps."""
    given_, wanted = ORACLE["inputs"], ORACLE["outputs"]
    mask = numpy.array(given_["mask"]).reshape(-1)
    places = torch.tensor(mask.nonzero()[0])
    monkeypatch.setattr(masks, "entries", lambda *_: places)
    space = Sparse(layout(), seed=0, density=wanted["density"], rounds=1)
    start = torch.zeros(space.layout.size, dtype=torch.float64)
    replies = []
    for update in given_["client_updates"]:
        entries = torch.tensor(update, dtype=torch.float64).reshape(-1)[places]
        replies.append(space.layout.put(start, ["w.S"], entries))
    mean = averaged(space, replies, given_["p"])
    assert torch.allclose(masks.dense(mean, places, 2, 3), torch.tensor(wanted["delta"]).double(), atol=1e-12)
    x, carry = space.close(start, (), mean, 0)
    b, a = lowrank.products(x, space.layout)
    assert (b @ a).tolist() == [pytest.approx(row, abs=1e-8) for row in wanted["sBA"]]
    assert float((b @ a).norm()) == pytest.approx(wanted["singular_values"][0], abs=1e-8)
    assert carry == ()
    assert not space.layout.views(x)["w.S"].any()
    carried = Sparse(space.layout, 0, wanted["density"], 1, residual="carry").close(start, (), mean, 0)[1]
    assert (carried[0] @ carried[1]).tolist() == [pytest.approx(row, abs=1e-8) for row in wanted["residual"]]


@given(
    some.integers(1, 6),
    some.integers(1, 6),
    some.floats(0.01, 1.0),
    some.sampled_from([torch.float32, torch.float64]),
    some.booleans(),
)
def test_factors_are_the_best_of_their_rank_and_with_the_residual_nothing_is_lost(out, inputs, density, dtype, turned):
    rank = min(out, inputs, 2)
    shape = layout(out, inputs, rank, 0.5, density, turned, more=[Leaf("head", (2,))])
    space = Sparse(shape, 0, density, 1, residual="carry")
    places = masks.entries(0, "w", out, inputs, density)
    x = torch.linspace(-1, 2, shape.size, dtype=dtype)
    x = shape.put(x, ["w.A", "w.B"], lowrank.start(shape, 1, dtype)[: shape.leaves[2].offset])
    new, carry = space.close(x, (), averaged(space, [x, x], [1, 3]), 0)
    update = masks.dense(shape.views(x)["w.S"], places, out, inputs)
    b, a = lowrank.products(new, shape)
    near = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(b @ a + carry[0] @ carry[1], update, atol=near)
    s = numpy.linalg.svd(update.double().numpy(), compute_uv=False)
    assert float((b @ a - update).norm()) == pytest.approx(float((s[rank:] ** 2).sum() ** 0.5), abs=10 * near)
    assert torch.equal(shape.views(new)["head"], shape.views(x)["head"])
    assert new.dtype == dtype


def test_a_stage_trains_and_sends_its_own_tensors_only():
    shape = layout(more=[Leaf("head", (2,))])
    space = Sparse(shape, 0, 2 / 3, rounds=2)
    assert [space.phase(round) for round in range(4)] == [0, 0, 1, 1]
    assert space.active(0, shape) == ["w.S", "head"]
    assert space.active(1, shape) == ["w.A", "w.B", "head"]
    x = torch.arange(float(shape.size))
    assert space.lift(x, shape, 0).tolist() == [5, 6, 7, 8, 9, 10]
    assert space.lift(x, shape, 1).tolist() == [0, 1, 2, 3, 4, 9, 10]
    new, _ = space.close(x, (), torch.full((6,), -1.0), 0)  # round 0 is not the last of the stage
    assert new.tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1, -1]
    assert space.point(new, 1).tolist() == [0, 1, 2, 3, 4, -1, -1]


def test_the_density_is_exact_and_the_entries_depend_on_seed_and_module_only():
    for density, kept in ((0.01, 12), (0.5, 600), (1.0, 1200), (1e-9, 1)):
        places = masks.entries(7, "a", 30, 40, density)
        assert len(places) == len(set(places.tolist())) == kept
        assert places.tolist() == sorted(places.tolist())
        assert 0 <= int(places[0]) <= int(places[-1]) < 1200
    assert torch.equal(masks.entries(7, "a", 30, 40, 0.1), masks.entries(7, "a", 30, 40, 0.1))
    assert not torch.equal(masks.entries(7, "a", 30, 40, 0.1), masks.entries(7, "b", 30, 40, 0.1))
    assert not torch.equal(masks.entries(7, "a", 30, 40, 0.1), masks.entries(8, "a", 30, 40, 0.1))


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan")])
def test_a_density_that_makes_no_mask(density):
    with pytest.raises(ValueError, match="density"):
        masks.entries(0, "w", 2, 2, density)
