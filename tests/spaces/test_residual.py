"""What averaging factors misses is carried: carry and adapter together are the exact mean (FedEx-LoRA)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.spaces import terms
from fedloom.spaces.factors import Factors
from fedloom.spaces.residual import MeanAndProducts, Residual
from spaces import federations as fed


def even(group):
    return fed.Group(group.shared, group.layouts, group.ys, [1.0] * len(group.ys))


def effective(x, carry, layout, modules=fed.SHAPES):
    own, more = fed.dense(x, layout), fed.written(carry, modules)
    return {m: own[m] + more[m] for m in own}


@fed.LAW
@given(fed.groups(mixed=False), st.booleans())
def test_carry_and_adapter_together_are_the_exact_mean(group, uniform):
    weighed = even(group) if uniform else group
    x, carry = fed.closed(Residual(group.shared, uniform), group)
    mean, _ = fed.closed(Factors(group.shared), weighed)
    torch.testing.assert_close(x, mean)
    fed.close_to(effective(x, carry, group.shared), fed.exact(weighed), 16 * fed.tolerance(group))
    assert {x.dtype, *(factor.dtype for factor in carry)} == {group.ys[0].dtype}


@fed.LAW
@given(fed.groups(mixed=False))
def test_residuals_add_up_over_rounds(group):
    space = Residual(group.shared)
    x, carry = fed.closed(space, group)
    missed = {m: fed.exact(even(group))[m] - fed.dense(x, group.shared)[m] for m in fed.SHAPES}
    _, twice = fed.closed(space, group, x, carry, round=1)
    fed.close_to(fed.written(twice), {m: 2 * missed[m] for m in missed}, 64 * fed.tolerance(group))


@fed.LAW
@given(fed.groups(mixed=False, dtypes=[torch.float64]), st.integers(1, 4))
def test_equal_clients_leave_no_residual(group, count):
    same = fed.Group(group.shared, [group.shared] * count, group.ys[:1] * count, [1.0] * count)
    _, carry = fed.closed(Residual(group.shared), same)
    assert max(np.abs(matrix).max() for matrix in fed.written(carry).values()) < 1e-12


@fed.LAW
@given(fed.groups(mixed=False, dtypes=[torch.float64]))
def test_a_shared_a_leaves_no_residual(group):
    ys = []
    for y in group.ys:
        views = group.shared.views(y)
        ys.append(
            group.shared.gather(
                {n: group.shared.views(group.start)[n] if n.endswith(".A") else v for n, v in views.items()}, y.dtype
            )
        )
    shared = fed.Group(group.shared, group.layouts, ys, group.weights)
    _, carry = fed.closed(Residual(group.shared), shared)
    assert max(np.abs(matrix).max() for matrix in fed.written(carry).values()) < 1e-11


def test_point_and_form_are_of_one_kind():
    layout = fed.lora({"first": 2, "second": 3}, {"first": 1.0, "second": 2.0})
    space, x = Residual(layout), fed.drawn(layout, 1)
    point = space.point(x, 0)
    assert torch.equal(point[0], x)
    for form in (space.form(x, 0), space.form(point, 0)):
        assert torch.equal(form[0], layout.views(x)["bias"])
        fed.close_to(fed.written(form), fed.dense(x, layout), 1e-12)
    unchanged, carry = space.close(x, (), point, 0)
    assert torch.equal(unchanged, x)
    assert [factor.numel() for factor in carry] == [0, 0, 0, 0]


def test_a_server_step_goes_half_the_way_in_numbers_and_in_products():
    layout = fed.lora({"first": 2, "second": 3}, {"first": 1.0, "second": 2.0})
    group = fed.Group(layout, [layout] * 2, [fed.drawn(layout, i) for i in (1, 2)], [1.0, 1.0])
    space, start = Residual(layout), fed.drawn(layout, 3)
    half = terms.combine((0.5, space.point(start, 0)), (0.5, fed.mean(space, group)))
    x, carry = space.close(start, (), half, 0)
    torch.testing.assert_close(x, (start + sum(group.ys) / 2) / 2)
    old, exact = fed.dense(start, layout), fed.exact(group)
    fed.close_to(effective(x, carry, layout), {m: (old[m] + exact[m]) / 2 for m in old}, 1e-10)


@fed.LAW
@given(fed.groups(mixed=False), st.integers(0, 4))
def test_sums_of_disjoint_clients_merge(group, cut):
    rule = MeanAndProducts(group.shared, uniform=False)
    halves = [rule.start(), rule.start()]
    for i, (y, w) in enumerate(zip(group.ys, group.weights, strict=True)):
        halves[i < cut] = rule.add(halves[i < cut], y, w)
    merged = rule.finish(rule.merge(*halves))
    whole = fed.mean(Residual(group.shared, uniform=False), group)
    torch.testing.assert_close(merged[0], whole[0], rtol=0, atol=fed.tolerance(group))
    fed.close_to(fed.written(merged[1:]), fed.exact(group), 16 * fed.tolerance(group))


# -- numbers


def test_weighted_means_of_the_oracle():
    inputs, outputs, group = fed.oracle("fedex_lora", scales=[2.0, 2.0])
    x, carry = fed.closed(Residual(group.shared, uniform=False), group)
    check(x, carry, group, outputs)
    base = np.array(inputs["W0"]) + fed.written(carry, ["w"])["w"]
    np.testing.assert_allclose(base, outputs["W0_after"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(base + fed.dense(x, group.shared)["w"], outputs["effective"], rtol=0, atol=1e-10)


def test_uniform_means_of_the_oracle():
    _, outputs, group = fed.oracle("fedex_lora_uniform", scales=[2.0, 2.0])
    check(*fed.closed(Residual(group.shared), group), group, outputs)


def check(x, carry, group, outputs):
    views = group.shared.views(x)
    for factor in ("A", "B"):
        np.testing.assert_allclose(views[f"w.{factor}"].numpy(), outputs[factor], rtol=0, atol=1e-10)
    np.testing.assert_allclose(fed.written(carry, ["w"])["w"], outputs["residual_scaled"], rtol=0, atol=1e-10)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="one rank for all"):
        Residual(fed.single(2, 1.0)).lower(torch.zeros(8), fed.single(1, 1.0))
    rule = MeanAndProducts(fed.single(1, 1.0), uniform=False)
    with pytest.raises(TypeError, match="weight"):
        rule.add(rule.start(), torch.zeros(4), None)
