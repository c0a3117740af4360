"""Averaging products: exact means for mixed ranks, the best factors for everybody, and FlexLoRA's numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom import lowrank
from fedloom.spaces import terms
from fedloom.spaces.products import Products
from fedloom.spaces.stack import Pile, Stack
from spaces import federations as fed


@fed.LAW
@given(fed.groups())
def test_the_mean_of_products_is_exact_and_closing_keeps_its_best_part(group):
    space = Products(group.shared)
    term = fed.mean(space, group)
    atol = 16 * fed.tolerance(group)
    fed.close_to(fed.written(term), fed.exact(group), atol)
    x, carry = fed.closed(space, group)
    assert carry == ()
    assert x.dtype == group.ys[0].dtype
    want = {m: fed.best(matrix, fed.ROOM[m]) for m, matrix in fed.exact(group).items()}
    fed.close_to(fed.dense(x, group.shared), want, atol)
    for m, matrix in fed.exact(group).items():  # Eckart and Young
        values = np.linalg.svd(matrix, compute_uv=False)
        error = np.linalg.norm(fed.dense(x, group.shared)[m] - matrix)
        assert error == pytest.approx(math.sqrt(sum(v * v for v in values[fed.ROOM[m] :])), abs=10 * atol)
    bias = group.shared.views(x)["bias"].double().numpy()
    np.testing.assert_allclose(bias, fed.plain_mean(group), rtol=0, atol=fed.tolerance(group))


@fed.LAW
@given(fed.groups(), st.data())
def test_everybody_starts_from_the_best_of_its_own_rank_with_its_own_scale(group, data):
    space, layout = Products(group.shared), data.draw(st.sampled_from(group.layouts))
    got = space.lower(group.start, layout)
    ranks = {pair.module: pair.rank for pair in lowrank.pairs(layout)}
    want = {m: fed.best(matrix, ranks[m]) for m, matrix in fed.dense(group.start, group.shared).items()}
    fed.close_to(fed.dense(got, layout), want, 64 * fed.tolerance(group))
    assert torch.equal(layout.views(got)["bias"], group.shared.views(group.start)["bias"])
    assert got.dtype == group.start.dtype


def test_the_shared_layout_gets_the_shared_vector_itself():
    layout = fed.single(2, 3.0)
    x = fed.drawn(layout, 1)
    assert Products(layout).lower(x, layout) is x


def test_before_the_first_round_small_ranks_get_the_first_rows_of_a():
    shared, small = fed.single(3, 2.0, side=5), fed.single(2, 4.0, side=5)
    start = lowrank.start(shared, 3, torch.float64)
    got = small.views(Products(shared).lower(start, small))
    assert torch.equal(got["w.A"], shared.views(start)["w.A"][:2])
    assert not got["w.B"].any()


def test_a_mean_of_zero_leaves_a_as_it_was():
    shared = fed.single(3, 2.0, side=5)
    start = lowrank.start(shared, 3, torch.float64)
    x, _ = fed.closed(Products(shared), fed.Group(shared, [shared] * 2, [start, start], [1.0, 2.0]), start)
    assert torch.equal(x, start)


@fed.LAW
@given(fed.groups(), st.randoms(use_true_random=False))
def test_laws_of_a_mean(group, order):
    """Order does not matter, weights n and 7n agree, and a single client is itself."""
    space = Products(group.shared)
    term, atol = fed.written(fed.mean(space, group)), 16 * fed.tolerance(group)
    turn = list(range(len(group.ys)))
    order.shuffle(turn)
    shuffled = fed.Group(
        group.shared, [group.layouts[i] for i in turn], [group.ys[i] for i in turn], [group.weights[i] for i in turn]
    )
    fed.close_to(fed.written(fed.mean(space, shuffled)), term, atol)
    seven = fed.Group(group.shared, group.layouts, group.ys, [7 * w for w in group.weights])
    fed.close_to(fed.written(fed.mean(space, seven)), term, atol)
    alone = fed.Group(group.shared, group.layouts[:1], group.ys[:1], [3.0])
    x, _ = fed.closed(space, alone)
    fed.close_to(fed.dense(x, group.shared), fed.dense(group.ys[0], group.layouts[0]), atol)


@fed.LAW
@given(fed.groups(mixed=False, dtypes=[torch.float64]), st.integers(0, 1000))
def test_gauge_of_a_client_does_not_matter(group, seed):
    gauge = torch.eye(4, dtype=torch.float64) + 0.3 * torch.randn(
        4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).triu(1)
    turned = group.ys[0].clone()
    views = group.shared.views(turned)
    views["first.B"].copy_(views["first.B"] @ gauge)
    views["first.A"].copy_(torch.linalg.solve(gauge, views["first.A"]))
    other = fed.Group(group.shared, group.layouts, [turned, *group.ys[1:]], group.weights)
    space = Products(group.shared)
    fed.close_to(fed.written(fed.mean(space, other)), fed.written(fed.mean(space, group)), 1e-8)


# -- numbers


def test_mean_and_singular_values_of_the_oracle():
    _, outputs, group = fed.oracle("flexlora")
    x, _ = fed.closed(Products(group.shared), group)
    got = fed.dense(x, group.shared)["w"]
    np.testing.assert_allclose(got, outputs["dW"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(got, outputs["rank2_product"], rtol=0, atol=1e-10)
    values = [float(v) for v in group.shared.views(x)["w.B"].norm(dim=0) * group.shared.leaves[0].scale]
    assert values == pytest.approx(outputs["singular_values"], abs=1e-10)


def test_the_client_of_rank_1_of_the_oracle():
    _, outputs, group = fed.oracle("flexlora")
    space = Products(group.shared)
    x, _ = fed.closed(space, group)
    small = group.layouts[0]
    got = fed.dense(space.lower(x, small), small)["w"]
    np.testing.assert_allclose(got, outputs["rank1_product"], rtol=0, atol=1e-10)
    lost = np.linalg.norm(got - np.array(outputs["dW"])) / np.linalg.norm(outputs["dW"])
    assert lost == pytest.approx(outputs["rel_err_rank1"], abs=1e-10)


def test_one_scale_of_the_oracle():
    """The same clients with one scale, as raFLoRA is compared with."""
    _, outputs, group = fed.oracle("raflora", scales=[8.0, 8.0])
    got = fed.written(fed.mean(Products(group.shared), group), ["w"])["w"]
    np.testing.assert_allclose(got, outputs["flexlora_same_scale"], rtol=0, atol=1e-10)


def test_rslora_scale_of_the_oracle():
    inputs, outputs = fed.ORACLES["rslora_scale"]["inputs"], fed.ORACLES["rslora_scale"]["outputs"]
    r, alpha = inputs["r"], inputs["alpha"]
    assert fed.scaling(alpha, r) == outputs["lora"]
    assert fed.scaling(alpha, r, rslora=True) == outputs["rslora"]
    plain, rs = fed.single(r, outputs["lora"], side=4), fed.single(r, outputs["rslora"], side=4)
    y = fed.drawn(plain, 1)
    ratio = terms.norm(Products(rs).lift(y, rs, 0)) / terms.norm(Products(plain).lift(y, plain, 0))
    assert ratio == pytest.approx(2.0)


# -- the rule


@fed.LAW
@given(fed.groups(), st.integers(0, 4))
def test_sums_of_disjoint_clients_merge(group, cut):
    rule, space = Stack(), Products(group.shared)
    halves = [rule.start(), rule.start()]
    for i, (y, layout, w) in enumerate(zip(group.ys, group.layouts, group.weights, strict=True)):
        halves[i < cut] = rule.add(halves[i < cut], space.lift(y, layout, 0), w)
    merged = rule.finish(rule.merge(*halves))
    fed.close_to(fed.written(merged), fed.exact(group), 16 * fed.tolerance(group))
    np.testing.assert_allclose(merged[0].double().numpy(), fed.plain_mean(group), rtol=0, atol=fed.tolerance(group))


def test_uniform_means_ignore_weights():
    _, _, group = fed.oracle("flexlora")
    even = fed.Group(group.shared, group.layouts, group.ys, [1.0, 1.0])
    got = fed.written(fed.mean(Products(group.shared, Stack(uniform=True)), group), ["w"])
    fed.close_to(got, fed.exact(even), 1e-12)


@pytest.mark.parametrize("clients", [3, 40])
def test_a_pile_never_gets_wider_than_its_matrix(clients):
    pile, dense = Pile(6, 8, torch.float64), np.zeros((6, 8))
    for i in range(clients):
        left, right = fed.drawn(fed.single(2, 1.0, 6), i)[:12].view(6, 2), torch.arange(16.0).view(2, 8).double().sin()
        pile.add(left, right, float(i))
        dense += i * (left @ right).numpy()
        assert pile.width <= 6
    left, right = pile.over(2.0)
    assert left.shape[1] <= 6
    np.testing.assert_allclose((left @ right).numpy(), dense / 2, rtol=0, atol=1e-10)


def test_one_client_s_products_come_back_bit_for_bit():
    layout = fed.lora({"first": 2, "second": 2}, {"first": 4.0, "second": 4.0})
    sent = Products(layout).lift(fed.drawn(layout, 1), layout, 0)
    got = fed.collected(Stack(), [sent], [30.0])
    assert all(torch.equal(a, b) for a, b in zip(got[1:], sent[1:], strict=True))


def test_replies_are_never_changed():
    layout = fed.single(2, 4.0)
    sent = [Products(layout).lift(fed.drawn(layout, i), layout, 0) for i in range(3)]
    copies = [[part.clone() for part in term] for term in sent]
    fed.collected(Stack(), sent, [1.0, 2.0, 3.0])
    assert all(
        torch.equal(a, b) for term, copy in zip(sent, copies, strict=True) for a, b in zip(term, copy, strict=True)
    )


def test_what_cannot_be_added_is_refused_in_words():
    small, large = fed.single(1, 1.0), fed.single(1, 1.0, side=3)
    rule = Stack()
    sent = [Products(layout).lift(fed.drawn(layout, 1), layout, 0) for layout in (small, large)]
    with pytest.raises(ValueError, match="same modules of the same base"):
        fed.collected(rule, sent, [1.0, 1.0])
    with pytest.raises(ValueError, match="all clients must adapt the same modules"):
        fed.collected(rule, [sent[0], (*sent[0], *sent[0][1:])], [1.0, 1.0])
    with pytest.raises(TypeError, match="Weighted"):
        rule.add(rule.start(), sent[0], None)
    with pytest.raises(ValueError, match="sum to 0"):
        fed.collected(rule, [sent[0]], [0.0])


def test_a_rank_above_the_shared_one_is_refused():
    with pytest.raises(ValueError, match="largest rank"):
        Products(fed.single(1, 1.0)).lower(torch.zeros(4), fed.single(2, 1.0))
