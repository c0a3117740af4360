"""LoRA: the layout says what peft does, and what is saved is what peft loads."""

import json
import math

import peft
import pytest
import torch
import transformers
from torch import nn

import tiny
from fedloom.adapters import saved
from fedloom.adapters.build import adapt, save
from fedloom.adapters.config import LoraConfig
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models.load import Base

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
MLP = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model of every family."""
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in tiny.FAMILIES}


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


# -- layout


@pytest.mark.parametrize("rslora, scale", [(False, 12 / 4), (True, 12 / math.sqrt(4))])
def test_leaves_come_in_pairs_with_peft_s_scale(folders, rslora, scale):
    rig = tiny.Rig(folders["llama"], LoraConfig(rank=4, alpha=12, rslora=rslora, targets=["q_proj", "down_proj"]))
    leaves = rig.layout.leaves
    assert len(leaves) == 2 * 2 * 2
    for a, b in zip(leaves[::2], leaves[1::2], strict=True):
        assert a.module == b.module
        assert (a.name, b.name) == (f"{a.module}.A", f"{a.module}.B")
        assert (a.factor, b.factor) == ("A", "B")
        inside = 48 if a.module.endswith("down_proj") else 32
        assert (a.shape, b.shape) == ((4, inside), (32, 4))
        assert a.scale == b.scale == pytest.approx(scale)
        assert not a.transposed
        assert a.origin == b.origin == "value"
    assert rig.layout.size == sum(p.numel() for p in rig.adapted.module.parameters() if p.requires_grad)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_layout_is_enough_to_write_the_adapted_weight_down(folders, family, rslora):
    """W + scale B A, transposed for Conv1D: a base model changed by that sum gives the adapted model's logits."""
    rig = tiny.Rig(folders[family], LoraConfig(rank=3, alpha=7, rslora=rslora, targets="all-linear"))
    x = rig.somewhere(size=0.1)
    rig.adapted.load(x)
    changed = tiny.plain(folders[family])
    parts = rig.layout.views(x)
    for leaf in (leaf for leaf in rig.layout.leaves if leaf.factor == "B"):
        assert leaf.transposed is (family == "gpt2")
        product = leaf.scale * parts[leaf.name] @ parts[f"{leaf.module}.A"]
        weight = changed.get_submodule(leaf.module).weight
        weight.data += product.T if leaf.transposed else product
    assert torch.allclose(logits(rig.adapted.module), logits(changed), atol=2e-5)
    assert (logits(changed) - logits(tiny.plain(folders[family]))).abs().max() > 0.1  # the adapter does something


@pytest.mark.parametrize(
    "family, targets, wanted",
    [
        ("llama", "auto", {"q_proj", "v_proj"}),
        ("gpt2", "auto", {"c_attn"}),
        ("llama", "all-linear", {*ATTENTION, *MLP}),
        ("gpt2", "all-linear", {"c_attn", "c_proj", "c_fc"}),
        ("opt", "all-linear", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
        ("llama", "o_proj", {"o_proj"}),
        ("llama", ["up_proj", "q_proj"], {"up_proj", "q_proj"}),
        ("llama", ["layers.1.self_attn.q_proj"], {"q_proj"}),
    ],
)
def test_targets_choose_layers_and_never_the_head_unasked(folders, family, targets, wanted):
    rig = tiny.Rig(folders[family], LoraConfig(rank=2, targets=targets))
    modules = {leaf.module for leaf in rig.layout.leaves}
    assert {module.rpartition(".")[2] for module in modules} == wanted
    if targets == ["layers.1.self_attn.q_proj"]:
        assert modules == {"model.layers.1.self_attn.q_proj"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_fresh_adapter_changes_nothing_and_only_factors_are_trained(folders, family):
    rig = tiny.Rig(folders[family])
    rig.adapted.load(rig.adapted.start)
    assert torch.equal(logits(rig.adapted.module), logits(tiny.plain(folders[family])))
    trainable = {name for name, p in rig.adapted.module.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable)
    assert len(trainable) == len(rig.layout.leaves)


# -- where it starts


def test_the_start_is_peft_s_rule_and_depends_on_the_seed_alone(folders):
    base = tiny.loaded(folders["llama"])
    before = tiny.randomness()
    start = adapt(base, LoraConfig(rank=8, targets="all-linear"), 5).start
    assert tiny.randomness() == before
    layout = tiny.Rig(folders["llama"], LoraConfig(rank=8, targets="all-linear")).layout
    drawn = []
    for leaf in layout.leaves:
        part = start[leaf.offset : leaf.offset + leaf.size]
        if leaf.factor == "B":
            assert not part.any()
            continue
        bound = 1 / math.sqrt(leaf.shape[1])
        assert part.abs().max() <= bound
        assert part.abs().max() > 0.95 * bound  # 256 numbers or more: one is near the end
        drawn.append(part / bound)
    pooled = torch.cat(drawn)
    assert abs(float(pooled.mean())) < 5 / math.sqrt(3 * len(pooled))
    assert float(pooled.var()) == pytest.approx(1 / 3, abs=0.03)  # uniform in ±1
    assert len({tuple(part[:8].tolist()) for part in drawn}) == len(drawn)  # no two layers begin alike
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = adapt(tiny.loaded(folders["llama"]), LoraConfig(rank=8, targets="all-linear"), 5).start
    assert torch.equal(again, start)
    other = adapt(tiny.loaded(folders["llama"]), LoraConfig(rank=8, targets="all-linear"), 6).start
    assert not torch.equal(other, start)


# -- through files


SETTINGS = [
    LoraConfig(rank=4, alpha=8),
    LoraConfig(rank=4, alpha=8, rslora=True),
    LoraConfig(rank=3, alpha=5, targets="all-linear"),
    LoraConfig(rank=2, alpha=9, dropout=0.2, targets="all-linear"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["auto", "rslora", "all-linear", "dropout"])
@pytest.mark.parametrize("family", ["llama", "tied", "gpt2", "qwen2", "opt", "phi", "gemma"])
def test_plain_peft_loads_what_is_saved_to_the_same_logits(folders, family, settings, tmp_path):
    rig = tiny.Rig(folders[family], settings)
    x, elsewhere = rig.somewhere(1, 0.1), rig.somewhere(2, 0.1)
    rig.adapted.load(elsewhere)  # what is in the model at the moment must not matter
    save(rig.adapted, settings, Model(x), rig.layout, str(folders[family]), tmp_path / "deep" / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folders[family]), str(tmp_path / "deep" / "adapter")).eval()
    rig.adapted.load(x)
    assert torch.allclose(logits(loaded), logits(rig.adapted.module), atol=1e-6)
    assert (logits(loaded) - logits(tiny.plain(folders[family]))).abs().max() > 0.01


def test_the_adapter_file_says_whose_it_is_and_auto_peft_finds_the_base(folders, tmp_path):
    rig = tiny.Rig(folders["llama"], LoraConfig(rank=2, targets=["q_proj", "up_proj"]))
    x = rig.somewhere(1, 0.1)
    save(rig.adapted, rig.adapter, Model(x), rig.layout, str(folders["llama"]), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(folders["llama"])
    assert written["inference_mode"] is True
    assert sorted(written["target_modules"]) == ["q_proj", "up_proj"]
    rig.adapted.load(x)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32).eval()
    assert torch.allclose(logits(found), logits(rig.adapted.module), atol=1e-6)


def test_an_adapter_is_saved_twice_alike_and_training_goes_on(folders, tmp_path):
    """Saving sets peft's settings to inference; that must not freeze the live model."""
    rig = tiny.Rig(folders["llama"])
    x = rig.somewhere()
    first = rig.ask(rig.descend(x))
    for name in "ab":
        save(rig.adapted, rig.adapter, Model(x), rig.layout, "owner/name", tmp_path / name)
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "owner/name"
    again = rig.ask(rig.descend(x))
    assert torch.equal(first.y, again.y)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_the_vector_under_peft_s_names_and_back(folders):
    rig = tiny.Rig(folders["gpt2"])
    x = rig.somewhere()
    tensors = saved.peft_tensors(rig.adapted, x)
    rig.adapted.load(x)
    own = peft.get_peft_model_state_dict(rig.adapted.module)
    assert sorted(tensors) == sorted(own)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, own[name])
    assert torch.equal(saved.from_peft(rig.layout, tensors), x)
    some = next(iter(tensors))
    with pytest.raises(ValueError, match="1 missing"):
        saved.from_peft(rig.layout, {name: t for name, t in tensors.items() if name != some})
    with pytest.raises(ValueError, match="1 unexpected"):
        saved.from_peft(rig.layout, {**tensors, "base_model.model.lm_head.lora_A.weight": tensors[some]})


def test_views_and_gather_are_each_other_s_inverse(folders):
    rig = tiny.Rig(folders["llama"])
    x = rig.somewhere()
    views = rig.layout.views(x)
    assert torch.equal(rig.layout.gather(dict(reversed(views.items()))), x)
    model = tiny.peft_model(folders["llama"], rig.layout, x, r=4, lora_alpha=16, target_modules="all-linear")
    assert torch.equal(tiny.vector_of(model, rig.layout), x)


# -- a base in bfloat16


def test_factors_stay_float32_over_a_bfloat16_base(folders, tmp_path):
    rig = tiny.Rig(folders["llama"], LoraConfig(rank=4, targets="all-linear"), dtype="bfloat16")
    assert {p.dtype for p in rig.adapted.tensors} == {torch.float32}
    assert {p.dtype for p in rig.adapted.module.parameters() if not p.requires_grad} == {torch.bfloat16}
    x = rig.somewhere()
    trained = rig.ask(rig.descend(x, lrs=[1e-5] * 4))  # steps that bfloat16 would round away
    assert trained.steps == 4
    assert {p.dtype for p in rig.adapted.tensors} == {torch.float32}
    assert 0 < float((trained.y - x).norm()) < 0.01
    assert not torch.equal(trained.y, trained.y.bfloat16().float())
    save(rig.adapted, rig.adapter, Model(trained.y), rig.layout, "base", tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folders["llama"], torch.bfloat16), str(tmp_path)).eval()
    rig.adapted.load(trained.y)
    assert torch.allclose(logits(loaded).float(), logits(rig.adapted.module).float(), atol=1e-6)


# -- mistakes


def refused(folder, settings):
    with pytest.raises(UserError) as caught:
        tiny.Rig(folder, settings)
    return str(caught.value)


def test_a_target_that_is_no_layer_is_answered_with_the_nearest(folders):
    message = refused(folders["llama"], LoraConfig(targets=["q_proj", "vproj"]))
    assert "vproj" in message
    assert "Did you mean v_proj?" in message
    assert "c_attn" in refused(folders["gpt2"], LoraConfig(targets="xyzzy"))
    assert "embed_tokens" in refused(
        folders["llama"], LoraConfig(targets=["embed_tokens"])
    )  # a layer, not a linear one


def test_no_target_at_all(folders):
    assert "adapter.targets" in refused(folders["llama"], LoraConfig(targets=[]))


@pytest.mark.parametrize("rank, fits", [(16, True), (17, False), (33, False)])
def test_a_rank_larger_than_a_layer(folders, rank, fits):
    """k_proj takes 32 numbers and gives 16: two heads of four share one of its own."""
    settings = LoraConfig(rank=rank, targets=["k_proj"])
    if fits:
        assert [leaf.shape for leaf in tiny.Rig(folders["llama"], settings).layout.leaves[:2]] == [(16, 32), (16, 16)]
        return
    message = refused(folders["llama"], settings)
    assert f"adapter.rank={rank}" in message
    assert "k_proj (16 x 32); choose at most 16" in message


class FutureConfig(transformers.LlamaConfig):
    """An architecture peft has no entry for."""

    model_type = "llama_of_the_future"


def test_auto_where_peft_knows_no_layers():
    """The message names the setting of the recipe, not only peft's own."""
    settings = FutureConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    base = Base(transformers.LlamaForCausalLM(settings), "x", torch.device("cpu"), torch.float32, 1, None)
    with pytest.raises(UserError, match=r"adapter\.targets=auto"):
        adapt(base, LoraConfig(rank=2), 0)
    named = adapt(base, LoraConfig(rank=2, targets=["q_proj"]), 0)  # naming them is the way out
    assert [leaf.module for leaf in named.layout.leaves] == ["model.layers.0.self_attn.q_proj"] * 2


def test_conv1d_is_what_makes_a_layer_transposed():
    """Guards the fixture: GPT-2's layers really are of that kind."""
    kinds = {type(m).__name__ for m in transformers.GPT2LMHeadModel(tiny.FAMILIES["gpt2"]()).modules()}
    assert "Conv1D" in kinds
    assert not any(isinstance(m, nn.Linear) for m in transformers.GPT2Model(tiny.FAMILIES["gpt2"]()).modules())
