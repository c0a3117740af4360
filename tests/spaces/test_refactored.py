"""New factors after every round: the product is kept, A is orthonormal, and FedSVD's numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given

from fedloom import lowrank
from fedloom.spaces.refactored import Refactored
from spaces import federations as fed


def beside(group):
    """The same clients with the A the round began with."""
    start = group.shared.views(group.start)
    ys = [
        group.shared.gather({n: start[n] if n.endswith(".A") else v for n, v in group.shared.views(y).items()}, y.dtype)
        for y in group.ys
    ]
    return fed.Group(group.shared, group.layouts, ys, group.weights)


@fed.LAW
@given(fed.groups(mixed=False))
def test_the_product_is_kept_and_a_is_orthonormal(group):
    group = beside(group)
    x, carry = fed.closed(Refactored(group.shared), group)
    atol = 16 * fed.tolerance(group)
    assert carry == ()
    assert x.dtype == group.ys[0].dtype
    fed.close_to(fed.dense(x, group.shared), fed.exact(group), 4 * atol)
    views = {n: v.double().numpy() for n, v in group.shared.views(x).items()}
    np.testing.assert_allclose(views["bias"], fed.plain_mean(group), rtol=0, atol=atol)
    for pair in lowrank.pairs(group.shared):
        a, b = views[pair.a.name], views[pair.b.name]
        np.testing.assert_allclose(a @ a.T, np.eye(pair.rank), rtol=0, atol=atol)
        values = np.linalg.svd(fed.exact(group)[pair.module] / pair.scale, compute_uv=False)[: pair.rank]
        np.testing.assert_allclose(b.T @ b, np.diag(values**2), rtol=0, atol=16 * atol)
        assert all(row[np.abs(row).argmax()] > 0 for row in a)


def test_only_b_and_plain_leaves_travel():
    layout = fed.lora({"first": 2, "second": 3}, {"first": 1.0, "second": 2.0})
    space, y = Refactored(layout), fed.drawn(layout, 1)
    assert list(space.active(0, layout)) == ["first.B", "bias", "second.B"]
    assert space.lift(y, layout, 0).numel() == 10 + 2 + 9
    assert torch.equal(space.point(y, 0), space.lift(y, layout, 0))
    assert torch.equal(space.form(space.lift(y, layout, 0), 0), space.lift(y, layout, 0))
    assert space.phases == 1


def test_while_the_product_is_zero_a_stays_as_it_started():
    layout = fed.lora({"first": 2, "second": 3}, {"first": 1.0, "second": 2.0})
    space, start = Refactored(layout), lowrank.start(layout, 1, torch.float64)
    x, _ = space.close(start, (), space.point(start, 0), 0)
    assert torch.equal(x, start)


def test_the_vector_of_the_round_before_is_not_touched():
    layout = fed.single(2, 1.0)
    start = fed.drawn(layout, 1)
    before = start.clone()
    fed.closed(Refactored(layout), fed.Group(layout, [layout], [fed.drawn(layout, 2)], [1.0]), start)
    assert torch.equal(start, before)


def test_rounds_of_the_oracle():
    """FedSVD: 2 rounds of two clients with one row each and plain gradient steps on B."""
    inputs, outputs = fed.ORACLES["fedsvd"]["inputs"], fed.ORACLES["fedsvd"]["outputs"]
    layout = fed.single(2, inputs["s"])
    space = Refactored(layout)
    x = layout.gather({"w.A": fed.tensor(inputs["A0"]), "w.B": fed.tensor(inputs["B0"])}, torch.float64)
    for round, want in enumerate(outputs["rounds"]):
        sent = [
            space.lift(fed.trained(space.lower(x, layout), layout, space.active(0, layout), inputs, i), layout, 0)
            for i in range(len(inputs["p"]))
        ]
        mean = fed.collected(space.rule, sent, inputs["p"]).view(2, 2)
        x, _ = space.close(x, (), mean.reshape(-1), round)
        b = layout.views(x)["w.B"]
        if round == 0:  # later the signs of A, and with them those of B, are a matter of convention
            np.testing.assert_allclose(mean.numpy(), want["B_mean"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(fed.dense(x, layout)["w"], want["dW"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(b.norm(dim=0).numpy(), want["singular_values"], rtol=0, atol=1e-9)
        np.testing.assert_allclose((b.T @ b).diagonal().numpy(), want["BtB_diag"], rtol=0, atol=1e-9)


def test_clients_of_another_rank_are_refused_in_words():
    with pytest.raises(ValueError, match="one rank for all"):
        Refactored(fed.single(2, 1.0)).lower(torch.zeros(8), fed.single(1, 1.0))
