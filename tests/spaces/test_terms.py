"""Terms: built from vectors, combined, compared, and added to a carry, against dense numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.spaces import terms
from spaces import federations as fed

coefficients = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), min_size=4, max_size=4)


def flat(term):
    """A term written out as one vector."""
    plain, products = terms.split(term)
    return np.concatenate([plain.double().numpy(), *((a.double() @ b.double()).numpy().ravel() for a, b in products)])


def many(group):
    return [terms.of(y, layout) for y, layout in zip(group.ys, group.layouts, strict=True)]


@fed.LAW
@given(fed.groups())
def test_a_vector_as_a_term_is_its_plain_leaves_and_scaled_products(group):
    for y, layout, term in zip(group.ys, group.layouts, many(group), strict=True):
        assert torch.equal(term[0], layout.views(y)["bias"])
        fed.close_to(fed.written(term), fed.dense(y, layout), 16 * fed.tolerance(group))
        assert len(terms.products(term)) == 2
    assert terms.products(group.ys[0]) == ()
    assert terms.split(group.ys[0])[0] is group.ys[0]


@fed.LAW
@given(fed.groups(), coefficients)
def test_combinations_are_linear(group, factors):
    every = many(group)
    parts = list(zip(factors, every, strict=False))
    got = terms.combine(*parts)
    want = sum(factor * flat(term) for factor, term in parts)
    np.testing.assert_allclose(flat(got), want, rtol=0, atol=100 * fed.tolerance(group))
    assert all(a.dtype == b.dtype for a, b in zip(got, every[0], strict=True))


def test_one_term_with_coefficient_one_is_itself_and_zeros_drop_out():
    layout = fed.lora({"first": 2, "second": 1}, {"first": 1.0, "second": 2.0})
    one, other = (terms.of(fed.drawn(layout, i), layout) for i in (1, 2))
    assert terms.combine((1.0, one)) is one
    assert terms.combine((0.0, other), (1.0, one)) is one
    assert not flat(terms.combine((0.0, one), (0.0, other))).any()
    assert not flat(terms.zeros(one)).any()
    assert flat(terms.zeros(one)).shape == flat(one).shape
    assert terms.combine((1.0, one), (-1.0, one))[1].shape[1] == 0


@fed.LAW
@given(fed.groups())
def test_inner_products_are_those_of_the_written_out_terms(group):
    every = many(group)
    rows = np.stack([flat(term) for term in every])
    want = rows @ rows.T
    atol = fed.tolerance(group) * max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(terms.gram(every).numpy(), want, rtol=0, atol=atol)
    assert terms.inner(every[0], every[-1]) == pytest.approx(want[0, -1], abs=atol)
    assert terms.norm(every[0]) == pytest.approx(math.sqrt(want[0, 0]), rel=1e-5)


@fed.LAW
@given(fed.groups(), st.sampled_from([1.0, -1.0, 0.5]))
def test_a_carry_grows_by_products_and_stays_narrow(group, factor):
    every = many(group)
    carry = terms.carried((), *((factor, term) for term in every))
    want = sum(factor * flat(term)[2:] for term in every)
    np.testing.assert_allclose(flat((torch.zeros(0), *carry)), want, rtol=0, atol=100 * fed.tolerance(group))
    more = terms.carried(carry, (1.0, every[0]))
    want = want + flat(every[0])[2:]
    np.testing.assert_allclose(flat((torch.zeros(0), *more)), want, rtol=0, atol=100 * fed.tolerance(group))
    for left, (out, inside) in zip(more[::2], fed.SHAPES.values(), strict=True):
        assert left.shape[1] <= min(out, inside)


def test_nothing_added_leaves_the_carry_alone():
    carry = (torch.ones(2, 1), torch.ones(1, 2))
    assert all(a is b for a, b in zip(terms.carried(carry, (1.0, torch.ones(3))), carry, strict=True))
