"""Supervised fine-tuning against a cross-entropy written out token by token."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tiny
from fedloom.data.encode import Encoded
from fedloom.objectives.sft import collate, labelled, labelled_logits, token_losses

CPU = torch.device("cpu")
LONG = Encoded((5, 6, 7, 8), (-100, -100, 7, 8), (5, 6), "?", None)
SHORT = Encoded((9, 4), (-100, 4), (9,), "?", None)
FIRST = Encoded((3, 4, 5), (3, -100, 5), (3,), "?", None)
"""Its first token is labelled, but nothing stands before it."""


class Counting(nn.Module):
    """Logit of token v at position t is v * ids[t] / 10: a softmax one can do by hand."""

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        return SimpleNamespace(logits=input_ids[..., None] * torch.arange(10.0) / 10)


def loss_of(seen, label):
    """-log softmax of `label` after the token `seen`."""
    return math.log(sum(math.exp(v * seen / 10) for v in range(10))) - label * seen / 10


def test_examples_stand_side_by_side_filled_up_on_the_right():
    batch = collate([LONG, SHORT], 2, CPU)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 4, 2, 2]]
    assert batch.labels.tolist() == [[-100, -100, 7, 8], [-100, 4, -100, -100]]
    assert batch.real.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.ids.dtype == batch.labels.dtype == torch.int64
    assert batch.real.dtype == torch.bool


def test_filling_is_not_mistaken_for_text_where_they_share_a_token():
    assert collate([LONG, SHORT], 4, CPU).real.tolist()[1] == [True, True, False, False]


@pytest.mark.parametrize(
    "examples, count", [([LONG], 2), ([SHORT], 1), ([LONG, SHORT, FIRST], 4), ([FIRST], 1), ([], 0)]
)
def test_labelled_tokens_are_those_that_something_predicts(examples, count):
    assert labelled(examples) == count
    if examples:
        assert len(token_losses(Counting(), collate(examples, 0, CPU))[0]) == count


def test_losses_by_hand():
    losses, rows = token_losses(Counting(), collate([LONG, SHORT, FIRST], 0, CPU))
    wanted = [loss_of(6, 7), loss_of(7, 8), loss_of(9, 4), loss_of(4, 5)]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-6)
    assert rows.tolist() == [0, 0, 1, 2]
    assert losses.dtype == torch.float32


def test_logits_stand_before_their_labels():
    found = labelled_logits(Counting(), collate([LONG, SHORT], 0, CPU))
    assert torch.equal(found, torch.tensor([6.0, 7.0, 9.0])[:, None] * torch.arange(10.0) / 10)


def test_losses_are_float32_over_half_precision_logits():
    class Half(Counting):
        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=super().forward(input_ids, use_cache).logits.bfloat16())

    batch = collate([LONG], 0, CPU)
    assert token_losses(Half(), batch)[0].dtype == torch.float32
    assert labelled_logits(Half(), batch).dtype == torch.float32


def test_a_batch_without_labels_has_no_losses_and_no_gradient():
    scale = nn.Parameter(torch.ones(()))
    module = Counting()
    module.forward = lambda input_ids, use_cache: SimpleNamespace(
        logits=scale * Counting.forward(module, input_ids, use_cache).logits
    )
    silent = Encoded((5, 6), (-100, -100), (5,), "?", None)
    losses, rows = token_losses(module, collate([silent], 0, CPU))
    assert (losses.tolist(), rows.tolist()) == ([], [])
    losses.sum().backward()
    assert scale.grad == 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_neighbours_and_filling_do_not_change_an_example(family, tmp_path):
    """Without an attention mask: filling on the right is seen by nobody, in every family."""
    folder = tiny.saved(tmp_path, family)
    module = tiny.loaded(folder).module
    examples = tiny.batch(9, 14, 5, 11)
    with torch.no_grad():
        losses, rows = token_losses(module, collate(examples, 0, CPU))
        other, _ = token_losses(module, collate(examples, 200, CPU))
        whole = tiny.batch_loss(tiny.plain(folder), examples)  # the model's own loss, with an attention mask
    assert torch.allclose(losses, other, atol=1e-6)
    assert float(losses.mean()) == pytest.approx(float(whole), rel=1e-5)
    for row, one in enumerate(examples):
        nll, count = tiny.nll_alone(tiny.plain(folder), one)
        mine = losses[rows == row]
        assert len(mine) == count
        assert float(mine.sum()) == pytest.approx(nll, rel=1e-5)
