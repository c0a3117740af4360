"""Texts that begin alike are computed once where they do: the same numbers as each in full."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import tiny
from engine import pair
from engine.pair import ALL, Pair, all_close, norms_in_double, one, serve
from engine.test_objectives import asked, pairs_of_answers
from fedloom.adapters.config import LoraConfig
from fedloom.adapters.dropout import KeyedDropout, Moment
from fedloom.engine.choice import difference
from fedloom.engine.padded import collate
from fedloom.engine.requests import Evaluate
from fedloom.engine.stream import Share, laid_out
from fedloom.objectives.base import Text
from fedloom.objectives.config import DpoConfig
from fedloom.objectives.preference import Preference

CPU = torch.device("cpu")
CHOSEN, REJECTED = Text((5, 6, 7, 8, 1), (1, 2, 3), (7, 8, 1)), Text((5, 6, 7, 9), (1, 2), (7, 9), shared=3)
OTHER = Text((2, 3), (0,), (3,))


@dataclass(frozen=True)
class Whole:
    """An objective whose texts share nothing."""

    of: Preference

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def texts(self, part):
        return [replace(text, shared=0) for text in self.of.texts(part)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Rotary and learned positions, grouped keys, a sliding window, capped products."""
    return {
        family: pair.saved(tmp_path_factory.mktemp(family), family)
        for family in ("llama", "gpt2", "opt", "mistral", "gemma2")
    }


def test_what_is_shared_stands_in_the_stream_once():
    found = laid_out([Share([OTHER, CHOSEN, REJECTED], ()), Share([CHOSEN], ())], 0, CPU)
    assert found.ids.tolist() == [[2, 3, 5, 6, 7, 8, 1, 9, 5, 6, 7, 8, 1, 0, 0, 0]]
    assert found.positions.tolist() == [[0, 1, 0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 4, 0, 0, 0]]
    assert list(found.spans) == [(0, 2), (2, 7), (7, 8), (8, 13), (13, 16)]
    assert found.trunks == {2: (2, 5)}
    assert found.places[:9].tolist() == [0, 3, 4, 5, 3, 4, 9, 10, 11]
    assert found.targets.tolist() == [3, 7, 8, 1, 7, 9, 7, 8, 1]
    assert [segment.stop for segment in found.segments] == [8, 13]
    assert Share([OTHER, CHOSEN, REJECTED], ()).tokens == 8


def test_a_pair_shares_all_that_both_answers_begin_with():
    objective = Preference(DpoConfig())
    (row,) = [objective.made_up((5, 6, 7, 8, 9, 7))]
    assert [text.shared for text in objective.texts([row])] == [0, 3]
    short = replace(row, rejected=replace(row.chosen, ids=row.chosen.ids[:4], labels=row.chosen.labels[:4]))
    assert [text.shared for text in objective.texts([short])] == [0, 3]  # one token is its own, whatever it says


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral", "gemma2"])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("reference", ["base", "start"])
def test_as_if_every_text_stood_there_in_full(folders, family, plain, reference):
    """Weights, gradients, losses and scores in float64; long prompts, so that windows end inside of them."""
    attention = "eager" if family == "gemma2" else "sdpa"
    objective = Preference(DpoConfig(beta=0.5, reference=reference))
    shared, whole = (
        Pair(folders[family], ALL, double=True, attention=attention, plain=plain, objective=one)
        for one in (objective, Whole(objective))
    )
    requests = asked(shared, "dpo sigmoid", 3)
    rows = [row for batch in pairs_of_answers(9) for row in batch]
    scored = Evaluate(shared.somewhere(4), shared.layout, rows, ("loss",), 3, 4)
    with norms_in_double():
        all_close(serve(shared.slots(3, 60), requests), serve(whole.slots(3, 60), requests), 1e-11)
        ours, theirs = one(shared.slots(2, 50), scored), one(whole.slots(2, 50), scored)
    assert (ours.nll, ours.chosen_reward) == pytest.approx((theirs.nll, theirs.chosen_reward), rel=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_takes_fewer_tokens(folders, checkpointing):
    """Recomputed layers see the trunks too."""
    p = Pair(folders["llama"], ALL, double=True, attention="sdpa", objective=Preference(DpoConfig()))
    requests = asked(p, "dpo sigmoid", 2)
    with norms_in_double():
        all_close(serve(p.slots(2, 60, checkpointing), requests), serve(p.reference(), requests), 1e-9)


def test_dropout_draws_rows_for_what_is_shared_once():
    batch = collate([CHOSEN, REJECTED, OTHER], 0, CPU)
    assert batch.drawn is not None
    assert batch.drawn.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert collate([CHOSEN, OTHER], 0, CPU).drawn is None
    layer = KeyedDropout(0.4, "q", Moment(5, batch.real, batch.drawn)).train()
    first, second, third = layer(torch.ones(3, 5, 64))
    assert torch.equal(first[:3], second[:3])
    assert not torch.equal(first[3], second[3])
    alone = KeyedDropout(0.4, "q", Moment(5)).train()(torch.ones(1, 8, 64))[0]
    assert torch.equal(torch.cat([first, second[3:4], third[:2]]), alone)


def test_with_dropout_as_the_plain_loop(folders):
    adapter = LoraConfig(rank=3, targets="all-linear", dropout=0.3)
    p = Pair(folders["llama"], adapter, double=True, attention="sdpa", objective=Preference(DpoConfig()))
    requests = asked(p, "dpo sigmoid", 3)
    with norms_in_double():
        all_close(serve(p.slots(3, 60), requests), serve(p.reference(), requests), 1e-9)


def test_the_check_at_the_start_sees_what_a_trunk_would_spoil(folders, monkeypatch):
    """Trunks that are not looked at: the check of an objective with shared beginnings finds it."""
    p = Pair(folders["llama"], ALL, objective=Preference(DpoConfig()))
    assert difference(p.slots(2), p.reference(), torch.float32) is None
    from fedloom.engine import stream

    real = stream.texts
    monkeypatch.setattr(stream, "texts", lambda config, spans, way, trunks: real(config, spans, way, {}))
    assert "gradient is off" in (difference(p.slots(2), p.reference(), torch.float32) or "")


def test_rows_of_the_tests_do_share():
    assert tiny.VOCAB > 40
    texts = Preference(DpoConfig()).texts(pairs_of_answers(0)[0])
    assert all(text.shared > 1 for text in texts[1::2])
