"""Adapters and whole parameters in some blocks of a model: nothing else is trained, or travels."""

import shutil

import peft
import pytest
import torch
import transformers

import tiny
from fedloom.adapters.build import adapt, save
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.channel.codec import encode
from fedloom.contracts import Model
from fedloom.engine.choice import difference
from fedloom.engine.slots import Slots
from fedloom.errors import UserError
from fedloom.models.load import load_skeleton

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
FAMILIES = ("llama", "tied", "gpt2", "opt", "bloom", "gpt_neox")
DEEP = {"gpt2": {"n_layer": 5}, "bloom": {"n_layer": 5}}
GPT = "transformer.h"
BLOCKS = {"gpt2": GPT, "bloom": GPT, "opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
CHOSEN = [0, 4]
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "opt": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five blocks each."""
    return {
        family: tiny.saved(tmp_path_factory.mktemp(family), family, **DEEP.get(family, {"num_hidden_layers": 5}))
        for family in FAMILIES
    }


def begins(family, blocks=CHOSEN):
    return tuple(f"{BLOCKS.get(family, 'model.layers')}.{i}." for i in blocks)


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["auto", "all-linear"])
def test_only_modules_of_the_blocks_are_adapted(folders, family, targets):
    rig = tiny.Rig(folders[family], LoraConfig(rank=2, targets=targets, layers=CHOSEN))
    everywhere = tiny.Rig(folders[family], LoraConfig(rank=2, targets=targets))
    assert list(rig.layout.names) == [name for name in everywhere.layout.names if name.startswith(begins(family))]
    assert rig.layout.names
    views, others = rig.layout.views(rig.adapted.start), everywhere.layout.views(everywhere.adapted.start)
    assert all(torch.equal(view, others[name]) for name, view in views.items()), "the start does not depend on it"


@pytest.mark.parametrize("family", TARGETS)
def test_training_is_peft_s_own_with_layers_to_transform(folders, family):
    rig = tiny.Rig(folders[family], LoraConfig(rank=4, alpha=6, targets=TARGETS[family], layers=CHOSEN))
    x = rig.somewhere(1)
    run = rig.ask(rig.descend(x, max_grad_norm=1.0))
    model = tiny.peft_model(
        folders[family], rig.layout, x, r=4, lora_alpha=6, target_modules=TARGETS[family], layers_to_transform=CHOSEN
    )
    tiny.plain_descent(
        model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1), tiny.BATCHES, tiny.LRS, 1.0
    )
    assert tiny.distance(run.y - x, tiny.vector_of(model, rig.layout) - x) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_what_is_saved(folders, family, tmp_path):
    config = LoraConfig(rank=4, targets="all-linear", layers=CHOSEN)
    rig = tiny.Rig(folders[family], config)
    x = rig.somewhere(1, 0.1)
    save(rig.adapted, config, Model(x), rig.layout, str(folders[family]), tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folders[family]), str(tmp_path)).eval()
    adapted = {name for name, part in loaded.named_modules() if hasattr(part, "lora_A")}
    assert {name.removeprefix("base_model.model.") for name in adapted} == set(rig.adapted.extras)
    rig.adapted.load(x)
    assert (logits(loaded) - logits(rig.adapted.module)).abs().max() < 1e-5
    assert (logits(loaded) - logits(tiny.plain(folders[family]))).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_clients_side_by_side_train_the_same(folders, family):
    rig = tiny.Rig(folders[family], LoraConfig(rank=4, targets="all-linear", layers=CHOSEN))
    slots = Slots(rig.adapted, rig.tokenizer, (tiny.END,), 2, 256, False, "fused", rig.engine.objective)
    assert difference(slots, rig.engine, torch.float32) is None


@pytest.mark.parametrize("config", [LoraConfig(rank=2, layers=CHOSEN), FullConfig(layers=CHOSEN, embeddings=True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_the_same_layout_and_start(folders, family, config, tmp_path):
    whole = folders[family]
    bare = shutil.copytree(whole, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    real = tiny.Rig(whole, config).adapted
    skeleton = adapt(load_skeleton(tiny.config(bare), config.kind == "full"), config, 7)
    assert skeleton.layout == real.layout
    assert torch.equal(skeleton.start, real.start)


# -- whole parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_holds_the_blocks_parameters_alone(folders, family):
    rig = tiny.Rig(folders[family], FullConfig(layers=CHOSEN))
    named = dict(tiny.plain(folders[family]).named_parameters())
    assert list(rig.layout.names) == [name for name in named if name.startswith(begins(family))]
    both = tiny.Rig(folders[family], FullConfig(layers=CHOSEN, embeddings=True)).layout
    middle = begins(family, [1, 2, 3])
    assert list(both.names) == [name for name in named if not name.startswith(middle)]
    everything = tiny.Rig(folders[family], FullConfig()).layout
    assert list(everything.names) == list(named)
    assert len(encode(Model(torch.zeros(rig.layout.size)))) < len(encode(Model(torch.zeros(everything.size)))) / 2


@pytest.mark.parametrize("family", ["tied", "gpt2"])
def test_training_is_a_plain_loop_over_these_parameters(folders, family):
    rig = tiny.Rig(folders[family], FullConfig(layers=CHOSEN))
    run = rig.ask(rig.descend(rig.adapted.start, max_grad_norm=1.0))
    model = tiny.plain(folders[family])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(begins(family)))
    chosen = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in chosen]
    tiny.plain_descent(model, torch.optim.SGD(chosen, lr=1), tiny.BATCHES, tiny.LRS, 1.0)
    wanted = torch.cat([(p.detach() - b).reshape(-1) for p, b in zip(chosen, before, strict=True)])
    assert tiny.distance(run.y, wanted) < 1e-3


def test_no_other_parameter_gets_a_gradient(folders):
    rig = tiny.Rig(folders["llama"], FullConfig(layers=CHOSEN))
    rig.ask(rig.descend(rig.adapted.start))
    for name, parameter in rig.adapted.module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == name.startswith(begins("llama")), name
    assert rig.adapted.g.numel() == rig.layout.size


@pytest.mark.parametrize("family", ["tied", "gpt2"])
def test_the_whole_model_is_saved_and_only_these_tensors_changed(folders, family, tmp_path):
    config = FullConfig(layers=CHOSEN)
    rig = tiny.Rig(folders[family], config)
    x = rig.somewhere(1)
    save(rig.adapted, config, Model(x), rig.layout, str(folders[family]), tmp_path / "out")
    found, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "out"), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    changed = rig.layout.views(x)
    for (name, mine), base in zip(found.named_parameters(), tiny.plain(folders[family]).parameters(), strict=True):
        assert torch.equal(mine, base + changed[name] if name in changed else base), name


# -- words


@pytest.mark.parametrize("config", [LoraConfig(layers=[5]), FullConfig(layers=[0, 5])])
def test_a_block_that_is_not_there(folders, config):
    with pytest.raises(UserError, match=r"adapter\.layers: 5 is no layer of this model, which has 5 \(0 to 4\)"):
        tiny.Rig(folders["llama"], config)


@pytest.mark.parametrize("config", [LoraConfig(layers=[1, 1]), FullConfig(layers=[1, 1])])
def test_a_block_named_twice(folders, config):
    with pytest.raises(UserError, match="layer 1 is named twice"):
        tiny.Rig(folders["llama"], config)


def test_nothing_to_train(folders):
    with pytest.raises(UserError, match="nothing would be trained"):
        tiny.Rig(folders["llama"], FullConfig(layers=[]))
    with pytest.raises(UserError, match="no linear layer in these blocks"):
        tiny.Rig(folders["llama"], LoraConfig(targets=["lm_head"], layers=[0]))


def test_a_target_that_is_no_layer_is_still_said_to_be_none(folders):
    with pytest.raises(UserError, match="no linear layer is called q_porj"):
        tiny.Rig(folders["llama"], LoraConfig(targets=["q_porj"], layers=[0]))
