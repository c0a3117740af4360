"""The server's half of FedBiOT: what moves, what stays, and the same step written with plain transformers and peft."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import tiny
from fedloom.adapters.build import adapt
from fedloom.adapters.config import LoraConfig
from fedloom.contracts import ClientFailed, Fitted
from fedloom.engine import fitting
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.fitting import Fitter
from fedloom.engine.lessons import Align, Course
from fedloom.models.emulator import cut_out
from fedloom.models.layers import find
from fedloom.models.offsite import Plan
from fedloom.objectives.emulation import distance, divergence
from fedloom.objectives.sft import Sft
from fedloom.params import Layout, Params
from fedloom.plugging import check_fit, ends, renamed
from test_plugging import artefact

PLAN = Plan(5, 1, 1, (1, 3))
ALL = Plan(5, 1, 1, (1, 2, 3))
LAYERS = {"gpt2": {"n_layer": 5}, "bloom": {"n_layer": 5}}
LORA = LoraConfig(rank=3, alpha=6, targets="all-linear", dropout=0.3)
ORACLE = json.loads((Path(__file__).parents[1] / "oracles_offsite.json").read_text())["fedbiot_server_loss"]


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("owner"), "llama")


def saved(folder: Path, family: str) -> Path:
    return tiny.saved(folder, family, **LAYERS.get(family, {"num_hidden_layers": 5}))


class Pair:
    """Both models of a folder, adapted, and a point where the clients' leaves have been trained."""

    def __init__(self, folder: Path, plan: Plan = PLAN) -> None:
        small, whole = tiny.loaded(folder), tiny.loaded(folder)
        cut_out(small.module, plan)
        self.blocks = find(whole.module)[0]
        emulator = adapt(small, LORA, 7)
        homes = [plan.home(block) for block in plan.adapter]
        inside = LORA.model_copy(update={"layers": homes})
        owners = adapt(whole, inside, 7, called=renamed(plan, self.blocks))
        self.layout, self.owners = emulator.layout, owners.layout
        self.ends = ends(self.layout, plan, self.blocks)
        self.middle = tuple(name for name in self.layout.names if name not in self.ends)
        check_fit(Layout.of([leaf for leaf in self.layout.leaves if leaf.name in self.ends]), self.owners)
        self.fitter = Fitter(emulator, owners, plan, tiny.byte_tokenizer(), Sft())
        moved = self.somewhere(emulator.start)
        self.x = self.layout.put(emulator.start, self.ends, self.layout.take(moved, self.ends))

    @staticmethod
    def somewhere(x: Params) -> Params:
        return x + 0.05 * torch.randn(len(x), generator=torch.Generator().manual_seed(4))

    def request(self, steps: int, lr: float = 0.01, **changes: Any) -> Align:
        course = Course([tiny.BATCHES[i % 4] for i in range(steps)], [lr] * steps)
        return replace(Align(self.x, self.layout, course, self.middle, 0.5, 1.0, 1, "the server"), **changes)

    def fit(self, steps: int, **changes: Any) -> Fitted:
        found = self.fitter.serve(self.request(steps, **changes))
        assert isinstance(found, Fitted), found
        return found


def sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "ADAMW", OptimizerConfig(name="sgd"))


def test_the_loss_by_hand() -> None:
    """L2 = .15 / 6; KL: softmax of each row, Σ p log (p / q), a mean over the two tokens; .025 + .5 · .09576."""
    given, wanted = ORACLE["inputs"], ORACLE["outputs"]
    t, s = (torch.tensor(given[f"{who}_hidden"])[None] for who in ("teacher", "student"))
    words = [torch.tensor(given[f"{who}_logits"], dtype=torch.float64)[0] for who in ("teacher", "student")]
    l2 = distance(t, s, torch.ones(1, 2, dtype=torch.bool)).item()
    kl = divergence(*words).item() / 2
    assert l2 == pytest.approx(wanted["l2"], abs=1e-7)
    assert kl == pytest.approx(wanted["kl"], abs=1e-10)
    assert l2 + given["kd_weight"] * kl == pytest.approx(wanted["loss"], abs=1e-7)


def test_the_divergence_is_the_plain_one_and_nothing_where_words_are_equal() -> None:
    source = torch.Generator().manual_seed(0)
    one, other = (torch.randn(50, 261, generator=source, dtype=torch.float64) for _ in range(2))
    other.requires_grad_()
    plain = F.kl_div(F.log_softmax(other, -1), F.log_softmax(one, -1), log_target=True, reduction="sum")
    (wanted,) = torch.autograd.grad(plain, other)
    (found,) = torch.autograd.grad(divergence(one, other), other)
    assert divergence(one, other).item() == pytest.approx(plain.item())
    assert torch.allclose(found, wanted)
    same = one.float().requires_grad_()
    assert divergence(one.float(), same).item() == 0
    assert not torch.autograd.grad(divergence(one.float(), same), same)[0].any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_the_emulator_comes_nearer_and_the_adapter_stays(tmp_path: Path, family: str) -> None:
    pair = Pair(saved(tmp_path, family))
    found = pair.fit(30)
    assert torch.equal(pair.layout.take(found.y, pair.ends), pair.layout.take(pair.x, pair.ends))
    before, after = (pair.layout.views(x) for x in (pair.x, found.y))
    assert not any(torch.equal(before[name], after[name]) for name in pair.middle)
    first, last = pair.fit(1), pair.fit(1, x=found.y)
    assert first.distance is not None and last.distance is not None and last.distance < 0.9 * first.distance
    assert first.divergence is not None and last.divergence is not None and last.divergence < first.divergence
    assert (found.steps, found.skipped) == (30, 0)


def test_an_emulator_of_all_middle_blocks_does_not_move(owner: Path) -> None:
    pair = Pair(owner, ALL)
    found = pair.fit(4)
    assert found.distance == 0 == found.divergence
    assert torch.equal(found.y, pair.x)


def test_the_same_request_gives_the_same_bits_and_no_generator_is_touched(owner: Path) -> None:
    pair, before = Pair(owner), tiny.randomness()
    one = pair.fit(5)
    assert torch.equal(one.y, pair.fit(5).y)
    assert tiny.randomness() == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_by_hand(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of different lengths, one by one; the teacher is the owner's whole model with the clients' leaves."""
    sgd(monkeypatch)
    folder = saved(tmp_path / "owner", family)
    pair, lr = Pair(folder), 0.2
    pair.x = pair.somewhere(pair.x)
    small = plain(artefact(folder, tmp_path / "emulator", PLAN), pair.layout, pair.x)
    homes = [(f"{pair.blocks}.{block}.", f"{pair.blocks}.{PLAN.home(block)}.") for block in PLAN.adapter]
    leaves = []
    for leaf in pair.owners.leaves:
        here, home = next(pair for pair in homes if leaf.name.startswith(pair[0]))
        leaves.append(replace(leaf, name=leaf.name.replace(here, home), module=leaf.module.replace(here, home)))
    whole = plain(folder, Layout.of(leaves), pair.layout.take(pair.x, pair.ends))
    apart = size = kl = torch.zeros(())
    tokens = 0
    for example in tiny.BATCHES[0]:
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            theirs = whole(ids, output_hidden_states=True)
        mine = small(ids, output_hidden_states=True)
        t, s = theirs.hidden_states[4], mine.hidden_states[3]  # what enters the last block of either
        apart, size, tokens = apart + (t - s).square().sum(), size + t.square().sum(), tokens + len(example.ids)
        p, q = (F.log_softmax(one.logits[0], -1) for one in (theirs, mine))
        kl = kl + (p.exp() * (p - q)).sum()
    (apart / size + 0.5 * kl / tokens).backward()
    found = pair.fit(1, course=Course([tiny.BATCHES[0]], [lr]), max_grad_norm=None)
    assert found.distance == pytest.approx((apart / size).item(), rel=1e-5)
    assert found.divergence == pytest.approx((kl / tokens).item(), rel=1e-4)
    now, before = pair.layout.views(found.y), pair.layout.views(pair.x)
    for leaf in pair.layout.leaves:
        factor: Any = small.get_submodule(f"base_model.model.{leaf.module}.lora_{leaf.factor}.default")
        step = lr * factor.weight.grad if leaf.name in pair.middle else torch.zeros(leaf.shape)
        assert torch.allclose(before[leaf.name] - now[leaf.name], step, atol=3e-6, rtol=1e-3), leaf.name


def plain(folder: Path, layout: Layout, x: Params) -> Any:
    modules = sorted({leaf.module for leaf in layout.leaves})
    return tiny.peft_model(folder, layout, x, r=LORA.rank, lora_alpha=LORA.alpha, target_modules=modules)


def test_parts_of_a_batch_are_the_batch(owner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sgd(monkeypatch)
    pair = Pair(owner)
    once, parts = pair.fit(3, lr=0.2), pair.fit(3, lr=0.2, accumulate=3)
    assert parts.distance == pytest.approx(once.distance, rel=1e-5)
    assert parts.divergence == pytest.approx(once.divergence, rel=1e-4)
    assert tiny.distance(parts.y - pair.x, once.y - pair.x) < 1e-3


def test_long_gradients_are_shortened_by_what_moves(owner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sgd(monkeypatch)
    pair = Pair(owner)
    way = (pair.fit(1, lr=1.0, max_grad_norm=1e-3).y - pair.x).norm().item()
    assert way == pytest.approx(1e-3, rel=2e-3)


def test_what_is_not_finite_fails(owner: Path) -> None:
    pair = Pair(owner)
    for changes in ({"x": pair.x * float("nan")}, {"lr": 1e30}):
        found = pair.fitter.serve(pair.request(4, **changes))
        assert isinstance(found, ClientFailed)
        assert str(found).startswith("alignment: loss or gradient not finite")
        assert found.missing.reason == "nonfinite"


def test_every_leaf_moves_or_is_the_owner_s(owner: Path) -> None:
    pair = Pair(owner)
    wrong: Sequence[Sequence[str]] = (pair.middle[1:], (*pair.middle, pair.ends[0]))
    for train in wrong:
        with pytest.raises(ValueError, match="those that move and those of the owner"):
            pair.fitter.serve(pair.request(1, train=train))
