"""Rank slices: each averaged over those who hold it, empty ones kept or lost, and raFLoRA's numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom import lowrank
from fedloom.aggregate.combine import combine
from fedloom.spaces.products import Products
from fedloom.spaces.slices import SliceMean, Slices
from spaces import federations as fed

LEVELS = (1, 2, 3, 4)


def sliced(group, weights=None):
    """Component j of each module averaged over the clients of rank j or more, written out."""
    weights, found = weights or group.weights, {}
    for m, (out, inside) in fed.SHAPES.items():
        found[m] = np.zeros((out, inside))
        for j in range(fed.ROOM[m]):
            there = [
                (w, lay.views(y), lay)
                for w, y, lay in zip(weights, group.ys, group.layouts, strict=True)
                if lay.views(y)[f"{m}.A"].shape[0] > j
            ]
            for w, views, lay in there:
                scale = next(leaf.scale for leaf in lay.leaves if leaf.module == m)
                b, a = views[f"{m}.B"].double().numpy(), views[f"{m}.A"].double().numpy()
                found[m] += w / sum(v for v, _, _ in there) * scale * np.outer(b[:, j], a[j])
    return found


@fed.LAW
@given(fed.groups())
def test_every_component_is_averaged_over_those_who_hold_it(group):
    fed.close_to(fed.written(fed.mean(Slices(group.shared, LEVELS), group)), sliced(group), 16 * fed.tolerance(group))
    even = fed.mean(Slices(group.shared, LEVELS, uniform=True), group)
    fed.close_to(fed.written(even), sliced(group, [1.0] * len(group.ys)), 16 * fed.tolerance(group))


@fed.LAW
@given(fed.groups())
def test_plain_leaves_are_averaged_over_everybody(group):
    x, carry = fed.closed(Slices(group.shared, LEVELS), group)
    bias = group.shared.views(x)["bias"].double().numpy()
    np.testing.assert_allclose(bias, fed.plain_mean(group), rtol=0, atol=fed.tolerance(group))
    assert carry == ()
    assert x.dtype == group.ys[0].dtype


@fed.LAW
@given(fed.groups(mixed=False))
def test_equal_ranks_are_flexlora(group):
    got, _ = fed.closed(Slices(group.shared, LEVELS), group)
    want, _ = fed.closed(Products(group.shared), group)
    fed.close_to(fed.dense(got, group.shared), fed.dense(want, group.shared), 64 * fed.tolerance(group))


@fed.LAW
@given(fed.groups(), st.integers(0, 4))
def test_sums_of_disjoint_clients_merge(group, cut):
    space = Slices(group.shared, LEVELS)
    rule = space.rule
    halves = [rule.start(), rule.start()]
    for i, (y, layout, w) in enumerate(zip(group.ys, group.layouts, group.weights, strict=True)):
        halves[i < cut] = rule.add(halves[i < cut], space.lift(y, layout, 0), w)
    merged = rule.finish(rule.merge(*halves))
    fed.close_to(fed.written(merged), sliced(group), 16 * fed.tolerance(group))
    assert merged.held == fed.mean(space, group).held


@fed.LAW
@given(fed.groups(one_scale=True))
def test_components_nobody_held_keep_their_last_value(group):
    space, start = Slices(group.shared, LEVELS), group.start
    kept, _ = fed.closed(space, group)
    lost, _ = fed.closed(Slices(group.shared, LEVELS, empty="zero"), group)
    held = {m: max(p.rank for lay in group.layouts for p in lowrank.pairs(lay) if p.module == m) for m in fed.SHAPES}
    views, want = group.shared.views(start), sliced(group)
    fed.close_to(fed.dense(lost, group.shared), want, 64 * fed.tolerance(group))
    tail = {m: 2.0 * (views[f"{m}.B"][:, h:] @ views[f"{m}.A"][h:]).double().numpy() for m, h in held.items()}
    with_tail = {m: fed.best(want[m] + tail[m], fed.ROOM[m]) for m in want}
    fed.close_to(fed.dense(kept, group.shared), with_tail, 256 * fed.tolerance(group))


def test_everybody_starts_from_the_same_first_components():
    """After a round components are in the order of their singular values, so these are the best of each rank."""
    shared = fed.single(3, 2.0, side=5)
    group = fed.Group(shared, [shared] * 3, [fed.drawn(shared, i) for i in range(3)], [1.0, 2.0, 3.0])
    space = Slices(shared, (1, 2, 3))
    x, _ = fed.closed(space, group)
    for rank, scale in ((1, 2.0), (2, 2.0), (2, 3.0)):
        layout = fed.single(rank, scale, side=5)
        got = fed.dense(space.lower(x, layout), layout)["w"]
        np.testing.assert_allclose(got, fed.best(fed.dense(x, shared)["w"], rank), rtol=0, atol=1e-10)
    assert space.lower(x, shared) is x


# -- numbers


def test_one_scale_of_the_oracle():
    _, outputs, group = fed.oracle("raflora", scales=fed.ORACLES["raflora"]["inputs"]["scale_used"])
    x, _ = fed.closed(Slices(group.shared, (1, 2)), group)
    np.testing.assert_allclose(fed.dense(x, group.shared)["w"], outputs["dW"], rtol=0, atol=1e-10)
    values = [float(v) for v in group.shared.views(x)["w.B"].norm(dim=0) * 8.0]
    assert values == pytest.approx(outputs["singular_values"], abs=1e-10)
    flex, _ = fed.closed(Products(group.shared), group)
    np.testing.assert_allclose(fed.dense(flex, group.shared)["w"], outputs["flexlora_same_scale"], rtol=0, atol=1e-10)


def test_scales_of_their_own_of_the_oracle():
    _, outputs, group = fed.oracle("raflora_alpha_over_r")
    x, _ = fed.closed(Slices(group.shared, (1, 2)), group)
    np.testing.assert_allclose(fed.dense(x, group.shared)["w"], outputs["dW"], rtol=0, atol=1e-10)


def test_a_round_without_the_large_rank_of_the_oracle():
    inputs, outputs, group = fed.oracle("raflora_partial_rank1_only", scales=[8.0])
    shared = fed.single(2, inputs["scale"])
    levels = tuple(inputs["global_rank_levels"])
    start = fed.drawn(shared, 5)
    lost, _ = fed.closed(Slices(shared, levels, empty="zero"), group, start)
    np.testing.assert_allclose(fed.dense(lost, shared)["w"], outputs["dW"], rtol=0, atol=1e-10)
    term = fed.mean(Slices(shared, levels), group)
    assert [[h, levels[-1]] for h in term.held] == outputs["slices_without_contributor"]
    kept, _ = fed.closed(Slices(shared, levels), group, start)
    views = shared.views(start)
    tail = inputs["scale"] * torch.outer(views["w.B"][:, 1], views["w.A"][1]).numpy()
    np.testing.assert_allclose(fed.dense(kept, shared)["w"], np.array(outputs["dW"]) + tail, rtol=0, atol=1e-10)


# -- what cannot work


def test_a_mixed_mean_no_longer_tells_which_slices_were_empty():
    layout = fed.single(2, 1.0)
    space, x = Slices(layout, (1, 2)), fed.drawn(layout, 1)
    group = fed.Group(layout, [layout], [fed.drawn(layout, 2)], [1.0])
    half = combine((0.5, space.point(x, 0)), (0.5, fed.mean(space, group)))
    with pytest.raises(ValueError, match='empty="zero"'):
        space.close(x, (), half, 0)
    got, _ = Slices(layout, (1, 2), empty="zero").close(x, (), half, 0)
    want = (fed.dense(x, layout)["w"] + fed.dense(group.ys[0], layout)["w"]) / 2
    np.testing.assert_allclose(fed.dense(got, layout)["w"], want, rtol=0, atol=1e-10)
    same, _ = space.close(x, (), combine((1.0, fed.mean(space, group)), (0.0, space.point(x, 0))), 0)
    np.testing.assert_allclose(fed.dense(same, layout)["w"], fed.dense(group.ys[0], layout)["w"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [(), (2, 1), (1, 1), (0, 2)])
def test_levels_must_rise(levels):
    with pytest.raises(ValueError, match="rank levels"):
        SliceMean(levels)


def test_replies_must_fit():
    layout = fed.single(2, 1.0)
    sent = Slices(layout, (1, 2)).lift(fed.drawn(layout, 1), layout, 0)
    with pytest.raises(ValueError, match="every rank of the federation"):
        fed.collected(SliceMean((1, 3)), [sent], [1.0])
    with pytest.raises(TypeError, match="Weighted"):
        SliceMean((2,)).add(SliceMean((2,)).start(), sent, None)
