"""Stacking: every round's exact mean is carried, adapters begin anew, and FLoRA's numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given

from fedloom import lowrank, rng
from fedloom.spaces import terms
from fedloom.spaces.factors import Factors
from fedloom.spaces.products import Products
from fedloom.spaces.slices import Slices
from fedloom.spaces.stacked import Stacked
from spaces import federations as fed


@fed.LAW
@given(fed.groups())
def test_carry_and_new_adapter_together_are_the_exact_mean(group):
    x, carry = fed.closed(Stacked(group.shared, 3), group)
    fed.close_to(fed.written(carry), fed.exact(group), 16 * fed.tolerance(group))
    assert not any(matrix.any() for matrix in fed.dense(x, group.shared).values())
    views = group.shared.views(x)
    np.testing.assert_allclose(views["bias"].double().numpy(), fed.plain_mean(group), rtol=0, atol=fed.tolerance(group))
    assert views["first.A"].any()
    assert {x.dtype, *(factor.dtype for factor in carry)} == {group.ys[0].dtype}


@fed.LAW
@given(fed.groups())
def test_the_carry_is_the_sum_of_all_rounds_and_stays_small(group):
    space, carry, total = Stacked(group.shared, 3), (), None
    for round in range(4):
        ys = [(round + 1) * y for y in group.ys]
        again = fed.Group(group.shared, group.layouts, ys, group.weights)
        before = fed.written(carry) if carry else None
        _, carry = fed.closed(space, again, carry=carry, round=round)
        exact = fed.exact(again)
        total = exact if before is None else {m: total[m] + exact[m] for m in exact}
        fed.close_to(fed.written(carry), total, 400 * fed.tolerance(group))
    for left, (out, inside) in zip(carry[::2], fed.SHAPES.values(), strict=True):
        assert left.shape[1] <= min(out, inside)


def test_adapters_are_drawn_from_the_key_of_the_coming_round():
    layout = fed.lora({"first": 2, "second": 2}, {"first": 1.0, "second": 1.0})
    group = fed.Group(layout, [layout], [fed.drawn(layout, 1, torch.float32)], [1.0])
    starts = [fed.closed(Stacked(layout, 3), group, round=i)[0] for i in range(2)]
    for i, x in enumerate(starts):
        want = layout.views(lowrank.start(layout, rng.key(3, "flora", i + 1)))
        assert torch.equal(layout.views(x)["second.A"], want["second.A"])
    assert not torch.equal(*starts)
    assert not torch.equal(starts[0], fed.closed(Stacked(layout, 4), group)[0])


def test_small_ranks_get_the_first_rows_and_nothing_of_b():
    shared, small = fed.single(3, 2.0, side=5), fed.single(2, 7.0, side=5)
    x = lowrank.start(shared, 1, torch.float64)
    got = small.views(Stacked(shared, 0).lower(x, small))
    assert torch.equal(got["w.A"], shared.views(x)["w.A"][:2])
    assert not got["w.B"].any()
    assert Stacked(shared, 0).lower(x, shared) is x


def test_the_point_is_nothing_but_plain_leaves_until_b_moves():
    layout = fed.lora({"first": 2, "second": 2}, {"first": 1.0, "second": 1.0})
    space, x = Stacked(layout, 0), lowrank.start(layout, 1, torch.float64)
    layout.views(x)["bias"].fill_(2.0)
    point = space.point(x, 0)
    assert point[0].tolist() == [2.0, 2.0]
    assert [tuple(factor.shape) for factor in point[1:]] == [(5, 0), (0, 4), (3, 0), (0, 6)]
    moved = fed.drawn(layout, 2)
    fed.close_to(fed.written(space.point(moved, 0)), fed.dense(moved, layout), 1e-12)


# -- numbers


def test_base_and_carry_of_the_oracle():
    inputs, outputs, group = fed.oracle("flora_stack")
    term = fed.mean(Stacked(group.shared, 0), group)
    _, carry = fed.closed(Stacked(group.shared, 0), group)
    got = fed.written(carry, ["w"])["w"]
    np.testing.assert_allclose(fed.written(term, ["w"])["w"], outputs["dW"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(got, outputs["dW"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.array(inputs["W0"]) + got, outputs["W_after"], rtol=0, atol=1e-10)


def test_weights_belong_to_one_side_only():
    _, outputs, group = fed.oracle("flora_wrong_p_twice")
    got = fed.written(fed.closed(Stacked(group.shared, 0), group)[1], ["w"])["w"]
    assert np.abs(got - np.array(outputs["dW_if_p_on_both_sides"])).max() > 0.1


@pytest.mark.parametrize("name", ["products", "slices", "stacked"])
def test_equal_ranks_and_scales_give_one_answer(name):
    inputs, outputs, group = fed.oracle("equal_ranks_flex_equals_raflora_equals_flora", scales=[8.0, 8.0])
    assert inputs["scale"] == 8.0
    space = {
        "products": Products(group.shared),
        "slices": Slices(group.shared, (1, 2)),
        "stacked": Stacked(group.shared, 0),
    }
    x, carry = fed.closed(space[name], group)
    got = fed.written(carry, ["w"])["w"] if carry else fed.dense(x, group.shared)["w"]
    np.testing.assert_allclose(got, outputs["dW"], rtol=0, atol=1e-10)


def test_gauge_of_the_oracle_leaves_product_spaces_alone_but_not_the_average_of_factors():
    inputs, outputs = fed.ORACLES["gauge_invariance"]["inputs"], fed.ORACLES["gauge_invariance"]["outputs"]
    layout = fed.single(2, 1.0)
    one = layout.gather({"w.A": fed.tensor(inputs["A"]), "w.B": fed.tensor(inputs["B"])}, torch.float64)
    turned = layout.gather(
        {"w.A": fed.tensor(outputs["A_gauged"]), "w.B": fed.tensor(outputs["B_gauged"])}, torch.float64
    )
    other, weights = fed.drawn(layout, 1), [1.0, 3.0]
    groups = [fed.Group(layout, [layout] * 2, [y, other], weights) for y in (one, turned)]
    np.testing.assert_allclose(fed.dense(turned, layout)["w"], outputs["product"], rtol=0, atol=1e-12)
    for space in (Products(layout), Stacked(layout, 0)):
        fed.close_to(*(fed.written(fed.mean(space, group), ["w"]) for group in groups), 1e-12)
    fed_it = [fed.dense(fed.closed(Factors(layout), group)[0], layout)["w"] for group in groups]
    assert np.abs(fed_it[0] - fed_it[1]).max() > 1e-3


def test_a_carry_without_adapted_modules_stays_empty():
    assert terms.carried((), (1.0, (torch.ones(3),))) == ()
