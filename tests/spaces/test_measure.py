"""Drift and error of a round: exact for narrow matrices, sketched for wide ones, whatever the rule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.aggregate.rules import Mean
from fedloom.params import Layout, Leaf
from fedloom.spaces import terms
from fedloom.spaces.factors import Factors
from fedloom.spaces.measure import Measured, Sketch
from fedloom.spaces.products import Products
from fedloom.spaces.residual import Residual
from fedloom.spaces.stacked import Stacked
from fedloom.spaces.turns import Turns
from spaces import federations as fed


def measured(space, group, sketch, phase=0, cut=None):
    """The term of a measured round; `cut` splits the clients over two accumulators."""
    rule = Measured(space.rule, lambda term: space.form(term, phase), sketch)
    accs = [rule.start(), rule.start()]
    for i, (y, layout, w) in enumerate(zip(group.ys, group.layouts, group.weights, strict=True)):
        side = cut is not None and i >= cut
        accs[side] = rule.add(accs[side], space.lift(y, layout, phase), w)
    return rule.finish(accs[0] if cut is None else rule.merge(*accs))


def rows(group):
    """What every client has, written out: plain leaves, then products."""
    return np.stack(
        [
            np.concatenate([lay.views(y)["bias"].double().numpy(), *(m.ravel() for m in fed.dense(y, lay).values())])
            for y, lay in zip(group.ys, group.layouts, strict=True)
        ]
    )


def flat(term):
    plain, _ = terms.split(term)
    return np.concatenate([plain.double().numpy(), *(m.ravel() for m in fed.written(term).values())])


@fed.LAW
@given(fed.groups(), st.one_of(st.none(), st.integers(0, 4)))
def test_figures_of_narrow_matrices_are_exact(group, cut):
    space, sketch = Products(group.shared), Sketch()
    term = measured(space, group, sketch, cut=cut)
    every, p = rows(group), np.array(group.weights) / sum(group.weights)
    mean, start = p @ every, space.point(group.start, 0)
    drift = math.sqrt(p @ ((every - mean) ** 2).sum(axis=1)) / np.linalg.norm(mean - flat(start))
    rel = 1e-9 if group.ys[0].dtype == torch.float64 else 1e-4
    assert sketch.drift(start) == pytest.approx(drift, rel=rel, abs=rel)
    assert sketch.error(term) == pytest.approx(0.0, abs=rel)
    other = space.form(space.point(space.close(group.start, (), term, 0)[0], 0), 0)
    error = np.linalg.norm(flat(other)[2:] - mean[2:]) / np.linalg.norm(mean[2:])
    assert sketch.error(other) == pytest.approx(error, rel=rel, abs=10 * rel)


@fed.LAW
@given(fed.groups(mixed=False))
def test_the_value_is_the_rule_s_own(group):
    for space in (Factors(group.shared), Products(group.shared), Residual(group.shared), Stacked(group.shared, 0)):
        got, want = measured(space, group, Sketch()), fed.mean(space, group)
        got, want = (value if isinstance(value, tuple) else (value,) for value in (got, want))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_error_of_averaged_factors_is_the_oracle_s():
    _, outputs, group = fed.oracle("fedit", scales=[2.0, 2.0])
    space, sketch = Factors(group.shared), Sketch()
    mean = measured(space, group, sketch)
    assert sketch.error(space.form(mean, 0)) == pytest.approx(outputs["rel_error"], abs=1e-10)


@pytest.mark.parametrize("space", [Residual, lambda layout: Stacked(layout, 0), Products])
def test_exact_spaces_have_no_error(space):
    _, _, group = fed.oracle("fedit", scales=[2.0, 2.0])
    space, sketch = space(group.shared), Sketch()
    term = measured(space, group, sketch)
    assert sketch.error(space.form(term, 0)) == pytest.approx(0.0, abs=1e-12)
    assert sketch.drift(space.form(space.point(group.start, 0), 0)) > 0


def test_a_uniform_rule_is_measured_uniformly():
    _, _, group = fed.oracle("fedit", scales=[2.0, 2.0])
    group = fed.Group(group.shared, group.layouts, group.ys, [1.0, 9.0])
    space, sketch = Residual(group.shared), Sketch()
    term = measured(space, group, sketch)
    assert Measured(space.rule, lambda t: t, sketch).uniform
    assert sketch.error(space.form(term, 0)) == pytest.approx(0.0, abs=1e-12)


def test_turns_are_measured_on_what_is_sent():
    layout = fed.lora({"first": 2, "second": 3}, {"first": 1.0, "second": 2.0})
    group = fed.Group(layout, [layout] * 2, [fed.drawn(layout, i) for i in (1, 2)], [1.0, 3.0])
    space, sketch = Turns(layout), Sketch()
    term = measured(space, group, sketch, phase=1)
    sent = np.stack([space.lift(y, layout, 1).numpy() for y in group.ys])
    mean, start = np.array([0.25, 0.75]) @ sent, space.point(fed.drawn(layout, 3), 1)
    drift = math.sqrt(0.1875 * ((sent[0] - sent[1]) ** 2).sum()) / np.linalg.norm(mean - start.numpy())
    assert sketch.drift(space.form(start, 1)) == pytest.approx(drift)
    assert sketch.error(space.form(term, 1)) == 0.0


@settings(deadline=None, derandomize=True, max_examples=10)
@given(st.integers(0, 10**6))
def test_sketches_of_wide_matrices_are_close(seed):
    layout = fed.lora({"w": 4}, {"w": 2.0}, {"w": (60, 300)}, plain=False)
    ys = [fed.drawn(layout, seed + i) for i in range(4)]
    group = fed.Group(layout, [layout] * 4, ys, [1.0, 2.0, 3.0, 4.0])
    space, sketch, full = Factors(layout), Sketch(), Sketch(columns=300)
    mean = measured(space, group, sketch)
    measured(space, group, full)
    start = space.form(fed.drawn(layout, seed + 9), 0)
    assert sketch.spread.mean[1].shape == (60 * 32,)
    assert sketch.drift(start) == pytest.approx(full.drift(start), rel=0.3)
    assert sketch.error(space.form(mean, 0)) == pytest.approx(full.error(space.form(mean, 0)), rel=0.3)


@settings(deadline=None, derandomize=True, max_examples=5)
@given(st.integers(0, 10**6))
def test_sketches_of_large_matrices_are_close_and_small(seed):
    layout = fed.lora({"w": 8}, {"w": 2.0}, {"w": (500, 400)}, plain=False)
    ys = [fed.drawn(layout, seed + i) for i in range(5)]
    group = fed.Group(layout, [layout] * 5, ys, [1.0, 2.0, 3.0, 4.0, 5.0])
    space, sketch, full = Factors(layout), Sketch(), Sketch(columns=500)
    mean = measured(space, group, sketch)
    measured(space, group, full)
    start = space.form(fed.drawn(layout, seed + 9), 0)
    assert sketch.spread.mean[1].shape == (64 * 32,)
    assert full.spread.mean[1].shape == (500 * 400,)
    assert sketch.drift(start) == pytest.approx(full.drift(start), rel=0.25)
    assert sketch.error(space.form(mean, 0)) == pytest.approx(full.error(space.form(mean, 0)), rel=0.25)
    again = Sketch()
    measured(space, group, again)
    assert again.drift(start) == sketch.drift(start)


def test_sketched_products_and_exact_plain_leaves_are_on_one_scale():
    """Half of the spread is in a plain leaf, half in a wide product."""
    layout = Layout.of(
        [
            Leaf("bias", (1,)),
            Leaf("w.A", (1, 300), factor="A", module="w"),
            Leaf("w.B", (400, 1), factor="B", module="w"),
        ]
    )

    def client(sign):
        parts = {"bias": fed.tensor([1.0 + sign]), "w.A": torch.full((1, 300), 300**-0.5), "w.B": torch.zeros(400, 1)}
        parts["w.B"][0] = sign
        return layout.gather(parts, torch.float64)

    space, sketch = Factors(layout), Sketch(columns=128)
    ys = [client(1.0), client(-1.0)]
    measured(space, fed.Group(layout, [layout] * 2, ys, [1.0, 1.0]), sketch)
    assert sketch.drift(space.form(torch.zeros(layout.size, dtype=torch.float64), 0)) == pytest.approx(2**0.5, rel=0.15)


def test_little_drift_far_from_zero_is_not_lost_in_rounding():
    layout = Layout.of([Leaf("w", (1000,))])
    space, sketch = Factors(layout), Sketch()
    base = 1e6 * fed.drawn(layout, 1)
    away = fed.drawn(layout, 2)
    ys = [base + 1e-3 * away, base - 1e-3 * away]
    measured(space, fed.Group(layout, [layout] * 2, ys, [1.0, 1.0]), sketch)
    assert sketch.drift((base - away,)) == pytest.approx(1e-3, rel=1e-5)


def test_where_nobody_moved_there_is_no_drift():
    layout = fed.single(2, 1.0)
    space, y = Factors(layout), fed.drawn(layout, 1)
    sketch = Sketch()
    measured(space, fed.Group(layout, [layout], [y], [5.0]), sketch)
    assert sketch.drift(space.form(y, 0)) == 0.0
    sketch = Sketch()
    measured(space, fed.Group(layout, [layout] * 2, [y, -3 * y], [3.0, 1.0]), sketch)
    assert sketch.drift((torch.zeros(0), torch.zeros(2, 0), torch.zeros(0, 2))) > 0


def test_clients_that_move_apart_around_a_mean_that_stands_still():
    layout = Layout.of([Leaf("w", (3,))])
    y, sketch = fed.drawn(layout, 1), Sketch()
    measured(Factors(layout), fed.Group(layout, [layout] * 2, [y, -y], [1.0, 1.0]), sketch)
    assert sketch.drift((torch.zeros(3),)) == math.inf


def test_nothing_was_measured():
    sketch = Sketch()
    assert math.isnan(sketch.drift(torch.zeros(2)))
    assert math.isnan(sketch.error(torch.zeros(2)))


def test_a_stage_with_sums_of_its_own_gets_the_value_and_measures_nothing():
    sketch = Sketch()
    rule = Measured(Mean(), lambda term: term, sketch)
    inner = Mean()
    acc = inner.add(inner.start(), torch.tensor([3.0]), 2.0)
    assert rule.finish(acc).item() == 3.0
    assert math.isnan(sketch.drift(torch.zeros(1)))


def test_it_promises_what_its_rule_promises():
    layout = fed.single(1, 1.0)
    for rule in (Mean(), Mean(uniform=True), Products(layout).rule, Residual(layout).rule):
        wrapped = Measured(rule, lambda term: term, Sketch())
        assert (wrapped.linear, wrapped.reveals, wrapped.holds) == (rule.linear, rule.reveals, rule.holds)
        assert wrapped.uniform == rule.uniform
