"""Zero-padded factors: what is sent and received at each rank, and HetLoRA's aggregation."""

import numpy as np
import pytest
import torch
from hypothesis import given

from fedloom.spaces.factors import Factors
from fedloom.spaces.padded import Padded
from spaces import federations as fed


@fed.LAW
@given(fed.groups(one_scale=True))
def test_missing_components_count_as_zero(group):
    space = Padded(group.shared)
    for y, layout in zip(group.ys, group.layouts, strict=True):
        lifted = space.lift(y, layout, 0)
        assert lifted.dtype == y.dtype
        fed.close_to(fed.dense(lifted, group.shared), fed.dense(y, layout), 16 * fed.tolerance(group))
        assert torch.equal(space.lower(lifted, layout), y)
        fed.close_to(fed.written(space.form(lifted, 0)), fed.dense(y, layout), 16 * fed.tolerance(group))
    x, carry = fed.closed(space, group)
    assert carry == ()
    views, total = group.shared.views(x), sum(group.weights)
    for m in fed.SHAPES:
        want = np.zeros(views[f"{m}.A"].shape)
        for y, layout, w in zip(group.ys, group.layouts, group.weights, strict=True):
            a = layout.views(y)[f"{m}.A"].double().numpy()
            want[: len(a)] += w / total * a
        np.testing.assert_allclose(views[f"{m}.A"].double().numpy(), want, rtol=0, atol=fed.tolerance(group))
    np.testing.assert_allclose(views["bias"].double().numpy(), fed.plain_mean(group), rtol=0, atol=fed.tolerance(group))


@fed.LAW
@given(fed.groups(mixed=False))
def test_equal_ranks_are_plain_averaging(group):
    got, want = (fed.closed(space(group.shared), group)[0] for space in (Padded, Factors))
    assert torch.equal(got, want)


def test_a_small_client_gets_the_first_components():
    shared, small = fed.single(3, 2.0, side=4), fed.single(2, 2.0, side=4)
    x = fed.drawn(shared, 1)
    views, got = shared.views(x), small.views(Padded(shared).lower(x, small))
    assert torch.equal(got["w.A"], views["w.A"][:2])
    assert torch.equal(got["w.B"], views["w.B"][:, :2])
    assert Padded(shared).lower(x, shared) is x


# -- numbers


def aggregated():
    _, outputs, group = fed.oracle("hetlora_aggregate", scales=[1.0, 1.0])
    weighed = fed.Group(group.shared, group.layouts, group.ys, outputs["weights"])
    return outputs, weighed, fed.closed(Padded(group.shared), weighed)[0]


@pytest.mark.parametrize("factor", ["A", "B"])
def test_factors_of_the_oracle(factor):
    outputs, group, x = aggregated()
    np.testing.assert_allclose(group.shared.views(x)[f"w.{factor}"].numpy(), outputs[factor], rtol=0, atol=1e-10)
    small = group.layouts[0]
    received = small.views(Padded(group.shared).lower(x, small))[f"w.{factor}"]
    np.testing.assert_allclose(received.numpy(), outputs["download_rank1"][factor], rtol=0, atol=1e-10)


def test_weights_of_the_oracle_are_norms_of_products():
    outputs, group, _ = aggregated()
    norms = [float(np.linalg.norm(fed.dense(y, lay)["w"])) for y, lay in zip(group.ys, group.layouts, strict=True)]
    assert norms == pytest.approx(outputs["frobenius"], abs=1e-10)
    assert [n / sum(norms) for n in norms] == pytest.approx(outputs["weights"], abs=1e-10)


def test_rows_are_averaged_over_everybody_not_over_those_who_have_them():
    outputs, group, x = aggregated()
    other = fed.ORACLES["hetlora_row_renormalised"]["outputs"]
    got = group.shared.views(x)["w.A"].numpy()
    np.testing.assert_allclose(got[0], other["A"][0], rtol=0, atol=1e-10)
    assert np.abs(got[1] - np.array(other["A"][1])).max() > 0.5
    assert got[1].tolist() == pytest.approx(outputs["A"][1], abs=1e-10)


def test_another_scale_is_refused_in_words():
    shared, other = fed.single(2, 8.0), fed.single(1, 16.0)
    for act in (
        lambda: Padded(shared).lower(torch.zeros(8), other),
        lambda: Padded(shared).lift(torch.zeros(4), other, 0),
    ):
        with pytest.raises(ValueError, match="give all ranks one scale"):
            act()
