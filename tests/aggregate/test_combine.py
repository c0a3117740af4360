"""Linear combinations of terms: what they stand for, what they leave alone, and what they refuse."""

import pytest
import torch

from fedloom.aggregate.combine import combine, zeros


def product(seed, rank, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    shapes = [(3,), (8, rank), (rank, 6)]
    return tuple(torch.randn(shape, generator=g, dtype=dtype) for shape in shapes)


def written_out(term):
    return torch.cat([term[0], (term[1] @ term[2]).reshape(-1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_combined_as_matrices(dtype):
    parts = [(0.5, product(1, 2, dtype)), (-2.0, product(2, 1, dtype)), (1.0, product(3, 3, dtype))]
    made = combine(*parts)
    want = sum(factor * written_out(term).double() for factor, term in parts)
    assert torch.allclose(written_out(made).double(), want, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    assert {part.dtype for part in made} == {dtype}


def test_what_adds_nothing_takes_no_room():
    """t + t needs the columns of one, t - t none."""
    t = product(1, 3)
    assert combine((1.0, t), (1.0, t))[1].shape == (8, 3)
    gone = combine((1.0, t), (-1.0, t))
    assert written_out(gone).abs().max() < 1e-14


def test_sums_are_taken_in_double_precision():
    big, one = torch.tensor([2.0**25]), torch.ones(1)
    assert combine((1.0, big), (1.0, one), (-1.0, big)).item() == 1.0


@pytest.mark.parametrize("term", [torch.randn(5), product(1, 2)], ids=["vector", "products"])
def test_one_term_comes_back_itself(term):
    other = torch.full((5,), float("nan")) if isinstance(term, torch.Tensor) else product(2, 1)
    assert combine((1.0, term)) is term
    assert combine((0.0, other), (1.0, term)) is term


def test_zeros():
    assert torch.equal(zeros(torch.ones(3)), torch.zeros(3))
    nothing, t = zeros(product(1, 2)), product(2, 2)
    assert [tuple(part.shape) for part in nothing] == [(3,), (8, 0), (0, 6)]
    assert torch.equal(written_out(combine((1.0, nothing), (1.0, t))), written_out(t))
    assert torch.equal(written_out(combine((0.0, t))), torch.zeros(51, dtype=torch.float64))
    assert torch.equal(written_out(combine((2.0, nothing), (0.5, nothing))), torch.zeros(51, dtype=torch.float64))


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (torch.ones(3), "same space"),
        (product(1, 2)[:1], "different layouts"),
        ((torch.ones(3), torch.ones(8, 2), torch.ones(2, 5)), r"\(8, 5\)"),
        ((torch.ones(4), torch.ones(8, 2), torch.ones(2, 6)), r"\(4,\)"),
    ],
)
def test_what_is_not_alike_is_refused(other, word):
    with pytest.raises(ValueError, match=word):
        combine((1.0, product(1, 2)), (0.0, other))


def test_nothing_cannot_be_combined():
    with pytest.raises(ValueError, match="at least one"):
        combine()
