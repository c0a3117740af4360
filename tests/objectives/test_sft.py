"""Supervised fine-tuning against a cross-entropy written out token by token."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tiny
from fedloom.data.encode import Encoded
from fedloom.engine.padded import collate, said
from fedloom.objectives.base import Text
from fedloom.objectives.sft import Sft

CPU = torch.device("cpu")
SFT = Sft()
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


def losses_of(module, examples, pad=0):
    found = said(module, collate(SFT.texts(examples), pad, CPU), "logprob")
    return SFT.losses(found, None, examples)


def test_texts_name_the_places_before_labels():
    assert SFT.texts([LONG, FIRST]) == [Text((5, 6, 7, 8), [1, 2], [7, 8]), Text((3, 4, 5), [1], [5])]


@pytest.mark.parametrize(
    "examples, count", [([LONG], 2), ([SHORT], 1), ([LONG, SHORT, FIRST], 4), ([FIRST], 1), ([], 0)]
)
def test_labelled_tokens_are_those_that_something_predicts(examples, count):
    assert SFT.count(examples) == count
    if examples:
        assert len(losses_of(Counting(), examples)) == count


def test_losses_by_hand():
    losses = losses_of(Counting(), [LONG, SHORT, FIRST])
    wanted = [loss_of(6, 7), loss_of(7, 8), loss_of(9, 4), loss_of(4, 5)]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-6)
    assert losses.dtype == torch.float32


def test_scores_by_hand():
    found = said(Counting(), collate(SFT.texts([LONG, SHORT]), 0, CPU), "logprob")
    first, second = SFT.scores(found, None, [LONG, SHORT])
    assert (first.examples, first.tokens, second.tokens) == (1, 2, 1)
    assert first.nll == pytest.approx(loss_of(6, 7) + loss_of(7, 8), rel=1e-6)
    assert second.nll == pytest.approx(loss_of(9, 4), rel=1e-6)


def test_a_batch_without_labels_has_no_losses_and_no_gradient():
    scale = nn.Parameter(torch.ones(()))
    module = Counting()
    module.forward = lambda input_ids, use_cache: SimpleNamespace(
        logits=scale * Counting.forward(module, input_ids, use_cache).logits
    )
    silent = Encoded((5, 6), (-100, -100), (5,), "?", None)
    losses = losses_of(module, [silent])
    assert losses.tolist() == []
    losses.sum().backward()
    assert scale.grad == 0
    found = said(module, collate(SFT.texts([silent]), 0, CPU), "logprob")
    assert SFT.scores(found, None, [silent])[0].tokens == 0


def test_an_example_to_try_an_engine_with_has_something_to_learn():
    assert SFT.count([SFT.made_up((4, 5, 6, 7))]) == 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_neighbours_and_filling_do_not_change_an_example(family, tmp_path):
    """Without an attention mask: filling on the right is seen by nobody, in every family."""
    folder = tiny.saved(tmp_path, family)
    module = tiny.loaded(folder).module
    examples = tiny.batch(9, 14, 5, 11)
    with torch.no_grad():
        losses = losses_of(module, examples)
        other = losses_of(module, examples, pad=200)
        whole = tiny.batch_loss(tiny.plain(folder), examples)  # the model's own loss, with an attention mask
    assert torch.allclose(losses, other, atol=1e-6)
    assert float(losses.mean()) == pytest.approx(float(whole), rel=1e-5)
    parts = iter(losses.split([SFT.count([one]) for one in examples]))
    for one in examples:
        nll, count = tiny.nll_alone(tiny.plain(folder), one)
        mine = next(parts)
        assert len(mine) == count
        assert float(mine.sum()) == pytest.approx(nll, rel=1e-5)
