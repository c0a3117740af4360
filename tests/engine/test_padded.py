"""Texts side by side, and what is said of them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedloom.engine.padded import collate, said, together
from fedloom.objectives.base import Text

CPU = torch.device("cpu")
LONG = Text((5, 6, 7, 8), (1, 2), (7, 8))
SHORT = Text((9, 4), (0,), (4,))


class Counting(nn.Module):
    """Logit of token v at position t is v * ids[t] / 10."""

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        return SimpleNamespace(logits=input_ids[..., None] * torch.arange(10.0) / 10)


class Half(Counting):
    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=super().forward(input_ids, use_cache).logits.bfloat16())


class Pooling(nn.Module):
    """Sums of the real tokens of a text, for two classes."""

    def forward(self, input_ids, attention_mask):
        return (input_ids * attention_mask).sum(1, keepdim=True) * torch.tensor([1.0, -1.0])


def test_texts_stand_side_by_side_filled_up_on_the_right():
    batch = collate([LONG, SHORT], 2, CPU)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 4, 2, 2]]
    assert batch.real.tolist() == [[True] * 4, [True, True, False, False]]
    assert (batch.rows.tolist(), batch.places.tolist()) == ([0, 0, 1], [1, 2, 0])
    assert batch.targets.tolist() == [7, 8, 4]
    assert batch.ids.dtype == batch.targets.dtype == torch.int64


def test_filling_is_not_mistaken_for_text_where_they_share_a_token():
    assert collate([LONG, SHORT], 4, CPU).real.tolist()[1] == [True, True, False, False]


def test_log_probabilities_stand_before_their_targets():
    first, second = said(Counting(), collate([LONG, SHORT], 0, CPU), "logprob")
    rule = torch.log_softmax(torch.tensor([6.0, 7.0, 9.0])[:, None] * torch.arange(10.0) / 10, dim=1)
    assert first.tolist() == pytest.approx([float(rule[0, 7]), float(rule[1, 8])], rel=1e-6)
    assert second.tolist() == pytest.approx([float(rule[2, 4])], rel=1e-6)


def test_logits_stand_before_their_targets():
    found = together(said(Counting(), collate([LONG, SHORT], 0, CPU), "logits"), "logits")
    assert torch.equal(found, torch.tensor([6.0, 7.0, 9.0])[:, None] * torch.arange(10.0) / 10)


@pytest.mark.parametrize("forward", ["logprob", "logits"])
def test_half_precision_is_read_in_float32(forward):
    assert all(one.dtype == torch.float32 for one in said(Half(), collate([LONG], 0, CPU), forward))


def test_a_head_is_told_what_is_text():
    batch = collate([LONG, SHORT], 99, CPU)
    assert together(said(Pooling(), batch, "pooled"), "pooled").tolist() == [[26.0, -26.0], [13.0, -13.0]]
