"""Low-rank algebra against dense numpy: SVD, truncation, compression, new factors, and pairs in layouts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import lowrank, rng
from fedloom.params import Layout, Leaf

LAW = settings(deadline=None, derandomize=True, max_examples=60)
ORACLES = json.loads((Path(__file__).parent / "oracles_lora.json").read_text())
sizes = st.integers(1, 9)
seeds = st.integers(0, 10**6)


def random(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def product(out, inside, width, seed, dtype=torch.float64):
    return random(seed, out, width, dtype=dtype), random(seed + 1, width, inside, dtype=dtype)


def written(left, right):
    return left.double().numpy() @ right.double().numpy()


def decaying(out, inside, width, seed):
    """A wide stack whose singular values fall, as averaged adapters' do."""
    left, right = product(out, inside, width, seed)
    return left * torch.logspace(0, -8, width, dtype=torch.float64), right


# -- svd


@LAW
@given(sizes, sizes, sizes, seeds)
def test_singular_values_are_numpy_s(out, inside, width, seed):
    left, right = product(out, inside, width, seed)
    u, s, vt = lowrank.singular(left, right)
    q = min(out, inside, width)
    assert (u.shape, s.shape, vt.shape) == ((out, q), (q,), (q, inside))
    dense = written(left, right)
    np.testing.assert_allclose(s.numpy(), np.linalg.svd(dense, compute_uv=False)[:q], rtol=0, atol=1e-10)
    np.testing.assert_allclose((u * s @ vt).numpy(), dense, rtol=0, atol=1e-10)
    np.testing.assert_allclose((vt @ vt.T).numpy(), np.eye(q), rtol=0, atol=1e-10)
    np.testing.assert_allclose((u.T @ u).numpy(), np.eye(q), rtol=0, atol=1e-10)


@LAW
@given(sizes, sizes, sizes, seeds)
def test_signs_do_not_depend_on_how_a_product_is_written(out, inside, width, seed):
    left, right = product(out, inside, width, seed)
    u, _, vt = lowrank.singular(left, right)
    top = vt.gather(1, vt.abs().argmax(dim=1, keepdim=True))
    assert bool((top > 0).all())
    again, _, rows = lowrank.singular(-left, -right)
    torch.testing.assert_close(again, u, rtol=0, atol=1e-8)
    torch.testing.assert_close(rows, vt, rtol=0, atol=1e-8)


@LAW
@given(sizes, sizes, sizes, st.integers(1, 7), seeds)
def test_truncation_is_the_best_there_is_and_its_error_is_the_tail(out, inside, width, rank, seed):
    left, right = product(out, inside, width, seed)
    u, s, vt = lowrank.truncated(left, right, rank)
    assert (u.shape, s.shape, vt.shape) == ((out, rank), (rank,), (rank, inside))
    dense = written(left, right)
    values = np.linalg.svd(dense, compute_uv=False)
    error = np.linalg.norm((u * s @ vt).numpy() - dense)
    assert error == pytest.approx(math.sqrt(sum(v * v for v in values[rank:])), abs=1e-9)
    missing = max(0, rank - min(out, inside, width))
    if missing:
        assert not s[-missing:].any()
        assert not u[:, -missing:].any()
        assert not vt[-missing:].any()


def test_wide_stacks_are_truncated_without_an_exact_svd_and_as_well(monkeypatch):
    left, right = decaying(320, 300, 200, 3)
    u, s, vt = np.linalg.svd(written(left, right), full_matrices=False)
    monkeypatch.setattr(lowrank, "_exact", None)
    got = lowrank.truncated(left, right, 8)
    np.testing.assert_allclose(got[1].numpy(), s[:8], rtol=1e-6)
    np.testing.assert_allclose(
        (got[0] * got[1] @ got[2]).numpy(), (u[:, :8] * s[:8]) @ vt[:8], rtol=0, atol=1e-5 * s[0]
    )
    assert all(torch.equal(a, b) for a, b in zip(got, lowrank.truncated(left, right, 8), strict=True))


def test_narrow_stacks_of_large_matrices_take_the_exact_way(monkeypatch):
    left, right = product(300, 290, 40, 5)
    monkeypatch.setattr(lowrank, "_randomized", None)
    _, s, _ = lowrank.truncated(left, right, 6)
    np.testing.assert_allclose(s.numpy(), np.linalg.svd(written(left, right), compute_uv=False)[:6], rtol=1e-12)


# -- new factors


@LAW
@given(sizes, sizes, sizes, st.integers(1, 5), st.sampled_from([0.5, 1.0, 8.0]), seeds)
def test_new_factors_stand_for_the_best_product_and_a_is_orthonormal(out, inside, width, rank, scale, seed):
    left, right = product(out, inside, width, seed)
    a, b = lowrank.refactor(left, right, rank, scale)
    assert (a.shape, b.shape) == ((rank, inside), (out, rank))
    u, s, vt = np.linalg.svd(written(left, right), full_matrices=False)
    np.testing.assert_allclose(scale * written(b, a), (u[:, :rank] * s[:rank]) @ vt[:rank], rtol=0, atol=1e-9)
    rows = min(rank, inside)
    np.testing.assert_allclose((a @ a.T).numpy()[:rows, :rows], np.eye(rows), rtol=0, atol=1e-9)
    gram = (b.T @ b).numpy()
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), rtol=0, atol=1e-9 / scale**2)


def test_rows_beyond_the_product_can_still_be_trained():
    a, b = lowrank.refactor(*product(6, 7, 2, 1), rank=4, scale=2.0)
    assert not b[:, 2:].abs().gt(1e-12).any()
    torch.testing.assert_close(a[2:].norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_float32_in_float32_out_and_rounded_only_once():
    left, right = product(6, 5, 3, 2, dtype=torch.float32)
    exact = lowrank.refactor(left.double(), right.double(), 3, 2.0)
    rounded = lowrank.refactor(left, right, 3, 2.0)
    assert all(x.dtype == torch.float32 for x in (*rounded, *lowrank.singular(left, right)))
    assert all(torch.equal(x.float(), y) for x, y in zip(exact, rounded, strict=True))


# -- compression


@LAW
@given(sizes, sizes, sizes, st.integers(1, 3), seeds, st.sampled_from([torch.float32, torch.float64]))
def test_compression_keeps_the_product_in_as_few_components_as_it_has(out, inside, width, times, seed, dtype):
    left, right = product(out, inside, width, seed, dtype)
    wide, tall = torch.cat([left] * times, dim=1), torch.cat([right] * times)
    got = lowrank.compress(wide, tall)
    assert all(x.dtype == dtype for x in got)
    assert got[0].shape[1] == min(out, inside, width)
    size = float(np.abs(written(wide, tall)).max())
    atol = (1e-12 if dtype == torch.float64 else 3e-5) * max(1.0, size)
    np.testing.assert_allclose(written(*got), written(wide, tall), rtol=0, atol=atol)


def test_compression_leaves_alone_what_it_cannot_shrink():
    left, right = product(8, 9, 3, 4)
    got = lowrank.compress(left, right)
    assert got[0] is left
    assert got[1] is right


def test_pieces_that_cancel_leave_nothing():
    left, right = product(20, 30, 4, 6)
    got = lowrank.compress(torch.cat([0.3 * left, 0.7 * left, -left], dim=1), torch.cat([right] * 3))
    assert got[0].shape == (20, 0)
    assert got[1].shape == (0, 30)
    assert lowrank.compress(*got)[0].shape == (20, 0)


def test_what_is_small_beside_large_pieces_survives():
    left, right = product(20, 30, 2, 7)
    extra = product(20, 30, 1, 8)
    wide = torch.cat([left, -left, 1e-9 * extra[0]], dim=1)
    got = lowrank.compress(wide, torch.cat([right, right, extra[1]]))
    assert got[0].shape[1] == 1
    np.testing.assert_allclose(written(*got), 1e-9 * written(*extra), rtol=0, atol=1e-13)


def test_stacks_wider_than_a_large_matrix_are_multiplied_out_without_an_svd(monkeypatch):
    monkeypatch.setattr(lowrank, "SEARCHED", 4)
    monkeypatch.setattr(lowrank, "_exact", None)
    for out, inside in ((6, 9), (9, 6)):
        left, right = product(out, inside, 11, 9)
        got = lowrank.compress(left, right)
        assert got[0].shape[1] == 6
        np.testing.assert_allclose(written(*got), written(left, right), rtol=0, atol=1e-12)
    left, right = product(6, 9, 5, 9)
    assert lowrank.compress(left, right)[0] is left


# -- pairs in layouts


def mixed(rank=2, scale=3.0):
    return Layout.of(
        [
            Leaf("head", (2, 2)),
            Leaf("m.B", (5, rank), factor="B", module="m", scale=scale, transposed=True),
            Leaf("lone.B", (4, 3), factor="B", module="lone", scale=7.0),
            Leaf("m.A", (rank, 4), factor="A", module="m", scale=scale, transposed=True),
            Leaf("bias", (3,)),
        ]
    )


def test_pairs_are_modules_with_both_factors_and_everything_else_is_plain():
    (pair,) = lowrank.pairs(mixed())
    assert (pair.module, pair.rank, pair.scale, pair.inputs, pair.outputs) == ("m", 2, 3.0, 4, 5)
    assert [leaf.name for leaf in lowrank.plain(mixed())] == ["head", "lone.B", "bias"]


def test_a_vector_comes_apart_and_together_again():
    layout = mixed()
    x = random(1, layout.size)
    views = layout.views(x)
    left, right = lowrank.products(x, layout)
    assert torch.equal(left, 3.0 * views["m.B"])
    assert torch.equal(right, views["m.A"])
    plain = lowrank.plain_vector(x, layout)
    assert torch.equal(plain, torch.cat([views[n].reshape(-1) for n in ("head", "lone.B", "bias")]))
    again = lowrank.vector(layout, plain, {"m": (views["m.A"], views["m.B"])})
    assert torch.equal(again, x)
    assert again.data_ptr() != x.data_ptr()


def test_taking_a_vector_apart_shares_no_memory_with_it():
    layout = mixed()
    x = random(1, layout.size)
    before = x.clone()
    for part in (lowrank.plain_vector(x, layout), *lowrank.products(x, layout)):
        part.zero_()
    assert torch.equal(x, before)


def test_leading_components_keep_their_size_under_another_scale():
    shared, small = mixed(rank=3, scale=2.0), mixed(rank=1, scale=8.0)
    x = random(2, shared.size)
    views, got = shared.views(x), small.views(lowrank.leading(x, shared, small))
    torch.testing.assert_close(8.0 * got["m.B"] @ got["m.A"], 2.0 * views["m.B"][:, :1] @ views["m.A"][:1])
    assert torch.equal(got["head"], views["head"])
    assert torch.equal(got["lone.B"], views["lone.B"])


def renamed(layout, old, new):
    text = json.dumps(layout.to_json()).replace(old, new)
    return Layout.from_json(json.loads(text))


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (mixed(rank=3), "largest rank"),
        (renamed(mixed(), '"m"', '"n"'), "other modules"),
        (renamed(mixed(), '"bias"', '"offset"'), "other plain tensors"),
    ],
)
def test_layouts_that_do_not_belong_together_are_refused(layout, words):
    with pytest.raises(ValueError, match=words):
        lowrank.matched(mixed(rank=2), layout)


def test_factors_of_different_ranks_are_no_pair():
    layout = Layout.of([Leaf("m.A", (2, 4), factor="A", module="m"), Leaf("m.B", (5, 3), factor="B", module="m")])
    with pytest.raises(ValueError, match="need one rank"):
        lowrank.pairs(layout)


def test_start_is_keyed_by_name_and_uniform_within_its_bounds():
    layout, other = mixed(), renamed(mixed(), '"m.A"', '"n.A"')
    x = lowrank.start(layout, 7)
    views = layout.views(x)
    values = rng.uniform(rng.key(7, "lora start", "m.A"), 2, 4) * 2 - 1
    assert torch.equal(views["m.A"], (values / 2).float())
    assert x.dtype == torch.float32
    assert float(x.abs().sum()) == pytest.approx(float(views["m.A"].abs().sum()))
    assert torch.equal(x, lowrank.start(layout, 7))
    assert not torch.equal(x, lowrank.start(layout, 8))
    assert not torch.equal(views["m.A"], other.views(lowrank.start(other, 7))["n.A"])
    assert torch.equal(lowrank.start(layout, 7, torch.float64).float(), x)


def test_gauge_of_the_oracle():
    """(B G)(G^-1 A) is the same product, so it has the same singular values and the same new factors."""
    inputs, outputs = (ORACLES["gauge_invariance"][k] for k in ("inputs", "outputs"))
    a, b, g = (torch.tensor(inputs[k], dtype=torch.float64) for k in ("A", "B", "G"))
    turned = b @ g, torch.linalg.solve(g, a)
    np.testing.assert_allclose(turned[0].numpy(), outputs["B_gauged"], atol=1e-12)
    np.testing.assert_allclose(turned[1].numpy(), outputs["A_gauged"], atol=1e-12)
    for one, other in zip(lowrank.refactor(b, a, 2, 1.0), lowrank.refactor(*turned, 2, 1.0), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    again = lowrank.refactor(*turned, 2, 1.0)
    np.testing.assert_allclose(written(again[1], again[0]), outputs["product"], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_refactor_writes_is_in_order_and_little_else(dtype):
    """In order, the first components are the best of their number: no further SVD is needed."""
    left, right = rng.normal(1, 7, 3).to(dtype), rng.normal(2, 3, 5).to(dtype)
    a, b = lowrank.refactor(left, right, 3, 0.5)
    assert lowrank.in_order(a, b)
    assert lowrank.in_order(a[:2], b[:, :2])
    best = lowrank.refactor(left, right, 2, 0.5)
    assert torch.allclose(b[:, :2] @ a[:2], best[1] @ best[0], atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert not lowrank.in_order(a.flip(0), b.flip(1))
    assert not lowrank.in_order(2 * a, b / 2)
    turn = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=dtype)
    assert not lowrank.in_order(torch.linalg.inv(turn) @ a, b @ turn)


def test_factors_lie_in_memory_as_a_file_would_give_them_back():
    """Else a run that goes on from a checkpoint multiplies the same numbers in another order."""
    left, right = rng.normal(1, 40, 9), rng.normal(2, 9, 30)
    made = [
        *lowrank.refactor(left, right, 4, 0.5),
        *lowrank.compress(torch.cat([left, left], dim=1), torch.cat([right, right])),
        *lowrank.singular(left, right),
    ]
    assert [tensor.is_contiguous() for tensor in made] == [True] * len(made)
