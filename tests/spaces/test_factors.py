"""Averaging LoRA factors apart: the space changes nothing, and its error is what theory says."""

import numpy as np
import pytest
import torch
from hypothesis import given

from fedloom.aggregate.rules import Mean
from fedloom.params import Layout, Leaf
from fedloom.spaces.factors import Factors
from spaces import federations as fed


def test_one_phase_in_which_everything_moves_and_nothing_is_changed():
    layout = fed.single(2, 3.0)
    space, y = Factors(layout), fed.drawn(layout, 1)
    assert (space.phases, [space.phase(i) for i in range(3)], space.active(0, layout)) == (1, [0, 0, 0], None)
    assert torch.equal(space.lift(y, layout, 0), y)
    assert torch.equal(space.lower(y, layout), y)
    assert torch.equal(space.point(y, 0), y)
    carry = (torch.ones(2, 1), torch.ones(1, 2))
    x, kept = space.close(torch.zeros(8), carry, y, 3)
    assert torch.equal(x, y)
    assert kept is carry


def test_means_are_weighted_unless_said_otherwise():
    layout = fed.single(1, 1.0)
    assert Factors(layout).rule == Mean()
    assert Factors(layout, Mean(uniform=True)).rule.uniform


@fed.LAW
@given(fed.groups(mixed=False))
def test_the_error_is_the_spread_of_both_factors(group):
    """Σ p_i s B_i A_i - s mean(B) mean(A) = s Σ p_i (B_i - mean B)(A_i - mean A)."""
    x, _ = fed.closed(Factors(group.shared), group)
    means = {n: v.double().numpy() for n, v in group.shared.views(x).items()}
    np.testing.assert_allclose(means["bias"], fed.plain_mean(group), rtol=0, atol=fed.tolerance(group))
    total, exact, got = sum(group.weights), fed.exact(group), fed.dense(x, group.shared)
    scales = {leaf.module: leaf.scale for leaf in group.shared.leaves if leaf.module}
    for m in exact:
        spread = np.zeros_like(exact[m])
        for w, y in zip(group.weights, group.ys, strict=True):
            views = {n: v.double().numpy() for n, v in group.shared.views(y).items()}
            spread += w / total * (views[f"{m}.B"] - means[f"{m}.B"]) @ (views[f"{m}.A"] - means[f"{m}.A"])
        atol = fed.tolerance(group) * max(1.0, scales[m])
        np.testing.assert_allclose(exact[m] - got[m], scales[m] * spread, rtol=0, atol=atol)


@pytest.mark.parametrize("key", ["A", "B"])
def test_factors_of_the_oracle(key):
    _, outputs, group = fed.oracle("fedit", scales=[2.0, 2.0])
    x, _ = fed.closed(Factors(group.shared), group)
    assert torch.allclose(group.shared.views(x)[f"w.{key}"], fed.tensor(outputs[key]), rtol=0, atol=1e-12)


def test_products_and_error_of_the_oracle():
    _, outputs, group = fed.oracle("fedit", scales=[2.0, 2.0])
    x, _ = fed.closed(Factors(group.shared), group)
    got, exact = fed.dense(x, group.shared)["w"], fed.exact(group)["w"]
    np.testing.assert_allclose(got, outputs["dW"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(exact, outputs["dW_ideal"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(exact - got, outputs["error"], rtol=0, atol=1e-10)
    error = np.linalg.norm(exact - got) / np.linalg.norm(exact)
    assert error == pytest.approx(outputs["rel_error"], abs=1e-10)


@fed.LAW
@given(fed.groups(mixed=False))
def test_form_is_free_of_gauge_and_keeps_plain_leaves(group):
    space, y = Factors(group.shared), group.ys[0]
    form = space.form(y, 0)
    assert torch.equal(form[0], group.shared.views(y)["bias"])
    fed.close_to(fed.written(form), fed.dense(y, group.shared), fed.tolerance(group) * 16)
    turned = y.clone()
    views = group.shared.views(turned)
    views["first.B"].mul_(4.0)
    views["first.A"].mul_(0.25)
    fed.close_to(fed.written(space.form(turned, 0)), fed.written(form), fed.tolerance(group) * 16)


def test_a_lone_factor_is_averaged_as_a_plain_leaf():
    """FFA-LoRA: A is frozen in the adapter and no leaf; B alone is trained, and its mean is exact."""
    inputs, outputs = fed.ORACLES["ffa_lora"]["inputs"], fed.ORACLES["ffa_lora"]["outputs"]
    layout = Layout.of([Leaf("w.B", (2, 2), factor="B", module="w", scale=inputs["s"])])
    space, a = Factors(layout), fed.tensor(inputs["A0"])
    x = torch.zeros(4, dtype=torch.float64)
    for want in outputs["rounds"]:
        ys = []
        for x_i, y_i in zip(inputs["x"], inputs["y"], strict=True):
            b = space.lower(x, layout).clone().view(2, 2)
            for _ in range(inputs["local_steps"]):
                off = inputs["s"] * b @ a @ fed.tensor(x_i) - fed.tensor(y_i)
                b = b - inputs["lr"] * inputs["s"] * torch.outer(off, a @ fed.tensor(x_i))
            ys.append(space.lift(b.reshape(-1), layout, 0))
        x, carry = space.close(x, (), fed.collected(space.rule, ys, inputs["p"]), 0)
        np.testing.assert_allclose(x.view(2, 2).numpy(), want["B"], rtol=0, atol=1e-9)
        assert carry == ()
    assert [part.shape for part in space.form(x, 0)] == [(4,)]


def test_equal_clients_lose_nothing():
    layout = fed.single(2, 1.5)
    y = fed.drawn(layout, 0)
    x, _ = fed.closed(Factors(layout), fed.Group(layout, [layout] * 3, [y] * 3, [1.0, 5.0, 2.0]))
    torch.testing.assert_close(x, y)


def test_clients_of_another_rank_are_refused_in_words():
    with pytest.raises(ValueError, match="one rank for all"):
        Factors(fed.single(2, 1.0)).lower(torch.zeros(8), fed.single(1, 1.0))
