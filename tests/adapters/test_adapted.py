"""One flat buffer behind every trainable tensor."""

import pytest
import torch
from torch import nn

from fedloom.adapters.adapted import Adapted
from fedloom.params import Layout, Leaf

START = torch.zeros(10)


def built(origin="value"):
    """Two tensors holding 0..5 and 6..9."""
    tensors = [nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.arange(6.0, 10.0))]
    module = nn.ParameterList(tensors)
    layout = Layout.of([Leaf("first", (2, 3), origin=origin), Leaf("second", (4,), origin=origin)])
    return Adapted(module, layout, tensors, START)


def test_tensors_and_gradients_are_views_of_the_buffers():
    adapted = built()
    assert torch.equal(adapted.w, torch.arange(10.0))
    adapted.w[4] = 40
    adapted.g[7] = 70
    first, second = adapted.module
    assert first[1, 1] == 40
    assert second.grad[1] == 70
    (first.sum() * 2).backward()  # accumulates into the buffer, not into a new tensor
    assert adapted.g.tolist() == [2, 2, 2, 2, 2, 2, 0, 70, 0, 0]
    with torch.no_grad():
        second.fill_(-1)
    assert adapted.w.tolist() == [0, 1, 2, 3, 40, 5, -1, -1, -1, -1]


def test_what_is_loaded_is_read_and_neither_shares_memory():
    adapted, x = built(), torch.arange(10.0) * 3
    adapted.load(x)
    read = adapted.read()
    assert torch.equal(read, x)
    adapted.w.zero_()
    assert read[3] == 9
    assert x[3] == 9


def test_differences_are_to_what_the_base_held():
    adapted = built("difference")
    assert torch.equal(adapted.read(), torch.zeros(10))
    adapted.load(torch.full((10,), 0.5))
    assert torch.equal(adapted.w, torch.arange(10.0) + 0.5)
    assert torch.equal(adapted.read(), torch.full((10,), 0.5))


@pytest.mark.parametrize("shape", [(9,), (11,), (2, 5), (1,), ()])
def test_a_vector_of_another_model_is_refused(shape):
    adapted = built()
    with pytest.raises(ValueError, match="does not fit a model with 10 numbers"):
        adapted.load(torch.ones(shape))
    assert torch.equal(adapted.w, torch.arange(10.0))


def test_values_and_differences_do_not_mix():
    tensors = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    layout = Layout.of([Leaf("a", (2,)), Leaf("b", (2,), origin="difference")])
    with pytest.raises(ValueError, match="not both"):
        Adapted(nn.ParameterList(tensors), layout, tensors, torch.zeros(4))


def test_parameters_by_leaf_name():
    adapted = built()
    first, second = adapted.module
    assert [p is q for p, q in zip(adapted.parameters(None), [first, second], strict=True)] == [True, True]
    (only,) = adapted.parameters(["second"])
    assert only is second
    with pytest.raises(ValueError, match=r"names \['thrid'\]; leaves: first, second"):
        adapted.parameters(["second", "thrid"])
    with pytest.raises(ValueError, match="no leaf at all"):
        adapted.parameters([])
