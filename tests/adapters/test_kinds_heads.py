"""Kinds of adapters beside a classification head: encoders and decoders, trained, written, put together again."""

import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fedloom.adapters.build import adapt, save
from fedloom.adapters.classifiers import load_classifier
from fedloom.adapters.config import (
    AdaLoraConfig,
    DoraConfig,
    Ia3Config,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
    VeraConfig,
)
from fedloom.adapters.wrapping import settings
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models.config import ModelConfig
from fedloom.models.heads import HeadSpec
from models import tiny_classifiers as small

SPEC = HeadSpec(3, "mean", "mlp", seed=4)
HEAD = ["head.dense.weight", "head.dense.bias", "head.out.weight", "head.out.bias"]
TARGETS = torch.tensor([0, 2, 1, 2])
KINDS = {
    "ia3": Ia3Config(),
    "vera": VeraConfig(rank=8),
    "dora": DoraConfig(rank=3),
    "dora all": DoraConfig(rank=3, targets="all-linear"),
    "adalora": AdaLoraConfig(rank=4, target_rank=2, steps=10),
}
FAMILIES = ["bert", "roberta", "llama", "gpt2"]
families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: small.saved(tmp_path_factory.mktemp(name), name) for name in small.FAMILIES}


def made(folder, kind, spec=SPEC, make=small.loaded):
    return adapt(make(folder, spec), KINDS[kind], 7)


def somewhere(adapted, seed=1, size=0.1):
    return adapted.start + size * torch.randn(adapted.layout.size, generator=torch.Generator().manual_seed(seed))


def scores(module):
    with torch.no_grad():
        return module.eval()(*small.batch(small.TEXTS))


@kinds
@families
def test_the_head_stands_behind_and_skeletons_agree(folders, family, kind, tmp_path):
    real = made(folders[family], kind)
    assert list(real.layout.names[-4:]) == HEAD
    assert not any("pooler" in name or name.startswith("backbone") for name in real.layout.names)
    bare = shutil.copytree(folders[family], tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    skeleton = made(bare, kind, make=small.skeleton)
    assert skeleton.layout == real.layout
    assert torch.equal(skeleton.start, real.start)


@kinds
@families
def test_two_steps_are_those_of_a_plain_loop(folders, family, kind):
    """Plain peft over the model alone, a head of plain layers, pooled by hand."""
    adapted = made(folders[family], kind)
    x = somewhere(adapted, size=0.05)
    adapted.load(x)
    theirs = small.plain(folders[family])
    if hasattr(theirs, "pooler"):
        theirs.pooler = None
    with torch.random.fork_rng():
        theirs = peft.get_peft_model(theirs, settings(small.loaded(folders[family], SPEC).module, KINDS[kind])).eval()
    named = {n: p for n, p in theirs.named_parameters() if p.requires_grad and "ranknum" not in n}
    wanted = dict(adapted.wrapper.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            ours = wanted.get(name)
            if ours is None:  # a difference to the base
                ours = adapted.wrapper.get_submodule(name.removesuffix(".weight")).weight
            parameter.copy_(ours)
        if kind == "vera":
            for box in ("vera_A", "vera_B"):
                getattr(theirs.base_model, box)["default"].copy_(getattr(adapted.wrapper.base_model, box)["default"])
    head = {n: p.detach().clone().requires_grad_() for n, p in adapted.module.head.named_parameters()}
    trained = [*named.values(), *head.values()]
    began = torch.cat([p.detach().reshape(-1) for p in trained])
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        rows = torch.stack([small.logits(head, mean_of(theirs, text)) for text in small.TEXTS])
        F.cross_entropy(rows, TARGETS).backward()
        optimizer.step()
        adapted.g.zero_()
        F.cross_entropy(adapted.module(*small.batch(small.TEXTS)), TARGETS).backward()
        with torch.no_grad():
            adapted.w -= 0.1 * adapted.g
    moved = torch.cat([p.detach().reshape(-1) for p in trained]) - began
    assert float(moved.norm()) > 1e-3
    assert float((adapted.read() - x - moved).norm()) < 1e-4 * float(moved.norm())


def mean_of(model, text):
    ids = torch.tensor([text])
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(0)


@kinds
@families
def test_what_is_written_is_put_together_again(folders, family, kind, tmp_path):
    spec = HeadSpec(3, "cls" if family in small.POOLERS else "auto", labels=("a", "b", "c"))
    adapted = made(folders[family], kind, spec)
    adapted.load(somewhere(adapted))
    wanted = scores(adapted.module)
    save(adapted, KINDS[kind], Model(somewhere(adapted)), adapted.layout, str(folders[family]), tmp_path)
    assert "head.out.weight" not in load_file(tmp_path / "adapter_model.safetensors")
    found = load_classifier(tmp_path, "cpu", ModelConfig(name=str(folders[family])))
    assert (scores(found) - wanted).abs().max() < 1e-5
    loaded = peft.PeftModel.from_pretrained(small.plain(folders[family]), str(tmp_path)).eval()
    ids, mask = small.batch(small.TEXTS[:1])
    with torch.no_grad():
        hidden = loaded(input_ids=ids, attention_mask=mask).last_hidden_state
        ours = adapted.module.states(ids, mask)
    assert (hidden - ours).abs().max() < 1e-5


@pytest.mark.parametrize("config", [PromptConfig(), PTuningConfig(), PrefixConfig()])
def test_virtual_tokens_are_refused(folders, config):
    with pytest.raises(UserError, match=r"virtual tokens would count as text where a text is pooled"):
        adapt(small.loaded(folders["bert"], SPEC), config, 0)


def test_what_peft_names_no_layers_for_is_told(folders):
    with pytest.raises(UserError, match=r"peft names no layers for a distilbert"):
        adapt(small.loaded(folders["distilbert"], SPEC), Ia3Config(), 0)
    assert adapt(small.loaded(folders["distilbert"], SPEC), DoraConfig(rank=2), 0).layout.size
    with pytest.raises(UserError, match=r"the model's own pooler would be adapted too"):
        adapt(small.loaded(folders["bert"], SPEC), VeraConfig(targets="all-linear"), 0)
