"""Masks are a function of (seed, layer, real tokens) and of nothing else."""

import pytest
import torch

import tiny
from fedloom.adapters.dropout import KeyedDropout, Moment, draw

ONES = torch.ones(2, 5, 8)


def layer(p=0.4, name="q", seed: int | None = 5, real=None):
    return KeyedDropout(p, name, Moment(seed, real)).train()


def test_the_same_key_draws_the_same_mask_and_any_other_key_another():
    same = layer()(ONES)
    assert torch.equal(layer()(ONES), same)
    others = [layer(seed=6)(ONES), layer(name="k")(ONES), layer(seed=5 + 2**32)(ONES)]
    assert not any(torch.equal(other, same) for other in others)
    assert not torch.equal(others[0], others[1])


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    out = layer(p=0.5)(ONES * 3)
    assert set(out.unique().tolist()) == {0.0, 6.0}


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_a_share_of_p_is_dropped(p):
    """Over n independent inputs the share has a standard deviation of sqrt(p (1 - p) / n); five of them are allowed."""
    kept, n = draw(1, 500, 400, p), 200_000
    assert abs((1 - kept.mean()) - p) < 5 * (p * (1 - p) / n) ** 0.5
    rows = 1 - kept.mean(axis=1)  # in every row and every column, not only overall
    columns = 1 - kept.mean(axis=0)
    assert abs(rows - p).max() < 5 * (p * (1 - p) / 400) ** 0.5
    assert abs(columns - p).max() < 5 * (p * (1 - p) / 500) ** 0.5


def test_the_mean_over_keys_is_the_input():
    x = torch.linspace(-2, 3, 80).view(2, 5, 8)
    mean = torch.stack([layer(p=0.25, seed=seed)(x) for seed in range(4000)]).mean(0)
    assert (mean - x).abs().max() < 5 * 3 * (0.25 / 0.75 / 4000) ** 0.5  # sd of one: |x| sqrt(p / (1 - p))


def test_masks_are_drawn_over_real_tokens_only():
    """Rows of 3 and 5 tokens: the mask of the eight tokens is one draw, wherever filling stands and however much."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    alone = layer(real=torch.ones(1, 8, dtype=torch.bool))(x[None])[0]
    for width in (5, 6, 9):
        real = torch.zeros(2, width, dtype=torch.bool)
        real[0, :3] = real[1, :5] = True
        wide = torch.full((2, width, 6), 7.0)
        wide[real] = x
        out = layer(real=real)(wide)
        assert torch.equal(out[real], alone)


def test_it_is_off_outside_training_and_without_a_rate():
    assert layer().eval()(ONES) is ONES
    assert layer(seed=None).eval()(ONES) is ONES
    assert torch.equal(layer(p=0.0)(ONES), ONES)


def test_training_without_a_key_is_a_bug():
    with pytest.raises(RuntimeError, match="without a key"):
        layer(seed=None)(ONES)


def test_gradients_pass_where_inputs_do():
    x = ONES.clone().requires_grad_()
    out = layer(p=0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())  # inputs are ones: the output is the mask over 1 - p


def test_no_global_generator_is_touched():
    before = tiny.randomness()
    layer()(ONES)
    assert tiny.randomness() == before


def test_the_number_format_stays():
    assert layer()(ONES.bfloat16()).dtype == torch.bfloat16


def test_tokens_that_come_as_one_long_row_get_their_own_mask():
    """OPT flattens [batch, tokens] before its feed-forward layers; filling must still not move the mask."""
    real = torch.tensor([[True, True, True, False], [True, True, True, True]])
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    flat = layer(real=real)(x.view(8, 6))
    assert torch.equal(flat.view(2, 4, 6)[real], layer(real=real)(x)[real])
