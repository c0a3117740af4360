"""Adapter folders of everything a model may hold: plain peft on a fresh base gives the same logits."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

import tiny
from fedloom import lowrank
from fedloom.adapters import saved
from fedloom.adapters.build import save
from fedloom.adapters.config import LoraConfig
from fedloom.adapters.lora import resized, scale
from fedloom.contracts import Model

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
KINDS = pytest.mark.parametrize(
    "settings",
    [{}, {"rslora": True}, {"scale": "shared"}, {"scale": "shared", "rslora": True}, {"alpha": 7.3}],
    ids=str,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in ("llama", "gpt2", "opt")}


def lora(**settings):
    return LoraConfig(**{"rank": 4, "alpha": 6, "targets": "all-linear", **settings})


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def mixed(rig, config):
    """A client's layout with ranks 1 to 4 over its modules."""
    ranks = {name: 1 + i % 4 for i, name in enumerate(rig.adapted.extras)}
    return resized(rig.layout, ranks, lambda rank: scale(config, rank))


def somewhere(layout, seed=0, size=0.1):
    source = torch.Generator().manual_seed(seed)
    return lowrank.start(layout, 7) + size * torch.randn(layout.size, generator=source)


def same(rig, model, layout, folder, path):
    """Written, read by plain peft on a fresh base, and compared with the model in memory; peft's model."""
    save(rig.adapted, rig.adapter, model, layout, str(folder), path)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folder), str(path)).eval()
    rig.adapted.load(model.x, layout, model.carry)
    wanted = logits(rig.adapted.module)
    assert (logits(loaded) - wanted).abs().max() < 1e-5
    assert (wanted - logits(tiny.plain(folder))).abs().max() > 0.05
    return loaded


@FAMILIES
@KINDS
def test_with_what_is_carried(folders, family, settings, tmp_path):
    rig = tiny.Rig(folders[family], lora(**settings))
    model = Model(rig.somewhere(1, 0.1), tiny.carried(rig.adapted, 3))
    same(rig, model, rig.layout, folders[family], tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.shape[0 if ".lora_A." in name else 1] for name, t in tensors.items()} == {4 + 3}


@FAMILIES
@KINDS
@pytest.mark.parametrize("carried", [False, True])
def test_with_other_ranks_in_other_modules(folders, family, settings, carried, tmp_path):
    config = lora(**settings)
    rig = tiny.Rig(folders[family], config)
    layout = mixed(rig, config)
    carry = tiny.carried(rig.adapted, 2) if carried else ()
    loaded = same(rig, Model(somewhere(layout), carry), layout, folders[family], tmp_path)
    for i, name in enumerate(rig.adapted.extras):
        layer = loaded.get_submodule(f"base_model.model.{name}")
        rank = 1 + i % 4
        assert layer.lora_A["default"].weight.shape[0] == rank + (2 if carried else 0)
        assert layer.scaling["default"] == pytest.approx(scale(config, rank), rel=1e-12)


def test_carried_products_of_other_widths_in_other_modules(folders, tmp_path):
    """Some carry nothing; some more than the layer is wide."""
    rig = tiny.Rig(folders["llama"], lora())
    carry, source = [], torch.Generator().manual_seed(0)
    for i, extra in enumerate(rig.adapted.extras.values()):
        width = (0, 1, 40)[i % 3]
        carry.append(0.05 * torch.randn(extra.outputs, width, generator=source))
        carry.append(0.05 * torch.randn(width, extra.inputs, generator=source))
    same(rig, Model(rig.somewhere(), tuple(carry)), rig.layout, folders["llama"], tmp_path)


def test_names_that_end_alike_keep_their_own_ranks(folders, tmp_path):
    """GPT-2 has `attn.c_proj` and `mlp.c_proj`, and layers 1 and 11 of a deep model end alike too."""
    folder = tiny.saved(tmp_path / "deep", "gpt2", n_layer=12)
    rig = tiny.Rig(folder, lora())
    ranks = {name: 1 + (i * 7) % 4 for i, name in enumerate(rig.adapted.extras)}
    layout = resized(rig.layout, ranks, lambda rank: 6 / rank)
    loaded = same(rig, Model(somewhere(layout)), layout, folder, tmp_path / "out")
    for name, rank in ranks.items():
        layer = loaded.get_submodule(f"base_model.model.{name}")
        assert (layer.lora_A["default"].weight.shape[0], layer.scaling["default"]) == (rank, 6 / rank)


def test_over_a_bfloat16_base(folders, tmp_path):
    rig = tiny.Rig(folders["llama"], lora(), dtype="bfloat16")
    model = Model(rig.somewhere(1, 0.1), tiny.carried(rig.adapted, 3))
    save(rig.adapted, rig.adapter, model, rig.layout, "base", tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    exact = tiny.Rig(folders["llama"], lora())
    exact.adapted.load(model.x, carry=model.carry)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folders["llama"]), str(tmp_path)).eval()
    assert (logits(loaded) - logits(exact.adapted.module)).abs().max() < 1e-5


@pytest.mark.parametrize("settings, alpha, rank", [({}, 6, 4), ({"rslora": True}, 6, 4), ({"alpha": 7.3}, 7.3, 4)])
def test_the_settings_are_those_of_the_recipe_where_all_ranks_are_alike(folders, settings, alpha, rank, tmp_path):
    rig = tiny.Rig(folders["llama"], lora(dropout=0.2, **settings))
    save(rig.adapted, rig.adapter, Model(rig.somewhere()), rig.layout, "owner/name", tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (rank, pytest.approx(alpha))
    assert not written["rank_pattern"]
    assert not written["alpha_pattern"]
    assert written["use_rslora"] is settings.get("rslora", False)
    assert written["lora_dropout"] == 0.2
    assert written["base_model_name_or_path"] == "owner/name"
    assert (written["peft_type"], written["task_type"]) == ("LORA", "CAUSAL_LM")
    assert written["inference_mode"] is True


def test_saving_one_model_does_not_show_in_the_next(folders, tmp_path):
    """Ranks and alphas are written into settings of their own."""
    rig = tiny.Rig(folders["llama"], lora())
    layout = mixed(rig, rig.adapter)
    plain, other = Model(rig.somewhere()), Model(somewhere(layout), tiny.carried(rig.adapted, 2))
    for name, model, of in (("a", plain, rig.layout), ("b", other, layout), ("c", plain, rig.layout)):
        save(rig.adapted, rig.adapter, model, of, "base", tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        first, second, third = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == third
        assert first != second


def test_a_merged_model_is_the_adapted_one(folders, tmp_path):
    """What serving tools do with a folder: merge it, and drop peft."""
    for family in ("llama", "gpt2"):
        rig = tiny.Rig(folders[family], lora())
        layout = mixed(rig, rig.adapter)
        model = Model(somewhere(layout), tiny.carried(rig.adapted, 2))
        loaded = same(rig, model, layout, folders[family], tmp_path / family)
        rig.adapted.load(model.x, layout, model.carry)
        assert (logits(loaded.merge_and_unload()) - logits(rig.adapted.module)).abs().max() < 5e-5


def test_training_goes_on_in_plain_peft(folders, tmp_path):
    """Loaded as trainable, one step of SGD there is one step of ours."""
    rig = tiny.Rig(folders["llama"], lora())
    x = rig.somewhere()
    save(rig.adapted, rig.adapter, Model(x), rig.layout, "base", tmp_path)
    model = peft.PeftModel.from_pretrained(tiny.plain(folders["llama"]), str(tmp_path), is_trainable=True).eval()
    assert torch.equal(tiny.vector_of(model, rig.layout), x)
    tiny.plain_descent(model, torch.optim.SGD(model.parameters(), lr=1), tiny.BATCHES[:1], [0.1], None)
    run = rig.ask(rig.descend(x, batches=tiny.BATCHES[:1], lrs=[0.1]))
    assert tiny.distance(tiny.vector_of(model, rig.layout), run.y) < 1e-6


def test_a_vector_or_carry_that_does_not_fit_leaves_no_file(folders, tmp_path):
    rig = tiny.Rig(folders["llama"], lora())
    for model in (Model(torch.zeros(3)), Model(rig.somewhere(), (torch.ones(3, 1), torch.ones(1, 3)))):
        with pytest.raises(ValueError, match="does not fit"):
            save(rig.adapted, rig.adapter, model, rig.layout, "base", tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_factors_are_copies(folders):
    """A later client does not write into what was taken out."""
    rig = tiny.Rig(folders["llama"], lora())
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 2)
    found = saved.factors(rig.adapted, Model(x, carry), rig.layout)
    kept = {name: (a.clone(), b.clone(), s) for name, (a, b, s) in found.items()}
    rig.ask(rig.descend(rig.somewhere(3)))
    for name, (a, b, s) in kept.items():
        assert torch.equal(found[name][0], a)
        assert torch.equal(found[name][1], b)
        assert found[name][2] == s
    assert torch.equal(rig.adapted.start, tiny.Rig(folders["llama"], lora()).adapted.start)
