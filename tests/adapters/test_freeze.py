"""FFA-LoRA: the first factor stays where it started, on every machine, and is neither trained nor sent."""

import peft
import pytest
import torch

import tiny
from fedloom import lowrank
from fedloom.adapters.build import save
from fedloom.adapters.config import LoraConfig
from fedloom.contracts import Model
from fedloom.engine.config import OptimizerConfig
from tiny import BATCHES, LRS, distance

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
FROZEN = LoraConfig(rank=4, alpha=6, targets="all-linear", freeze="A")
BOTH = FROZEN.model_copy(update={"freeze": "none"})
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.1, args={"eps": 1e-5})
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in ("llama", "gpt2")}


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def firsts(rig):
    """The first factor of every module, as the model holds it."""
    layers = {name: rig.adapted.module.get_submodule(f"base_model.model.{name}") for name in rig.adapted.extras}
    return {name: layer.lora_A["default"].weight.detach().clone() for name, layer in layers.items()}


def whole(rig, both, x):
    """The vector of an adapter that trains both factors, standing at the same point."""
    return both.layout.put(both.adapted.start, rig.layout.names, x)


@FAMILIES
def test_only_the_second_factor_is_there_to_be_trained_and_sent(folders, family):
    rig, both = tiny.Rig(folders[family], FROZEN), tiny.Rig(folders[family], BOTH)
    assert {leaf.factor for leaf in rig.layout.leaves} == {"B"}
    assert [leaf.name for leaf in rig.layout.leaves] == [leaf.name for leaf in both.layout.leaves if leaf.factor == "B"]
    assert {leaf.scale for leaf in rig.layout.leaves} == {6 / 4}
    assert not rig.adapted.start.any()
    trainable = {name for name, p in rig.adapted.module.named_parameters() if p.requires_grad}
    assert len(trainable) == len(rig.layout.leaves)
    assert all(".lora_B." in name for name in trainable)


@FAMILIES
def test_the_frozen_factor_is_the_one_everybody_would_start_with(folders, family):
    """Drawn from the seed, so that it never travels: peft's rule, the same numbers as without freezing."""
    rig, both = tiny.Rig(folders[family], FROZEN), tiny.Rig(folders[family], BOTH)
    views = both.layout.views(lowrank.start(both.layout, 7))
    found = firsts(rig)
    assert found.keys() == {leaf.module for leaf in both.layout.leaves}
    assert all(torch.equal(a, views[f"{name}.A"]) for name, a in found.items())
    assert all(a.any() for a in found.values())


def test_rank_one_is_frozen_at_its_keyed_start_too(folders):
    """peft's own random start has the shape of rank 1; it must not show through."""
    config = FROZEN.model_copy(update={"rank": 1})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = firsts(tiny.Rig(folders["llama"], config))
        torch.manual_seed(2)
        other = firsts(tiny.Rig(folders["llama"], config))
    assert all(torch.equal(one[name], other[name]) for name in one)


@FAMILIES
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_that_of_both_factors_with_the_first_at_rest(folders, family, dropout, checkpointing):
    config = FROZEN.model_copy(update={"dropout": dropout})
    rig = tiny.Rig(folders[family], config, checkpointing=checkpointing)
    both = tiny.Rig(folders[family], config.model_copy(update={"freeze": "none"}), checkpointing=checkpointing)
    before = firsts(rig)
    x = rig.somewhere()
    how = {"optimizer": ADAMW, "max_grad_norm": 0.5, "gradient": True}
    run = rig.ask(rig.descend(x, **how))
    wanted = both.ask(both.descend(whole(rig, both, x), train=list(rig.layout.names), **how))
    assert float((run.y - x).norm()) > 1e-3
    assert distance(run.y, both.layout.take(wanted.y, rig.layout.names)) < 1e-6
    assert distance(run.gradient, both.layout.take(wanted.gradient, rig.layout.names)) < 1e-5
    after = firsts(rig)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.y.shape == (rig.layout.size,)


def test_no_request_and_no_other_client_moves_it(folders):
    rig = tiny.Rig(folders["llama"], FROZEN)
    before, start = firsts(rig), rig.adapted.start.clone()
    for seed in range(3):
        x, carry = rig.somewhere(seed), tiny.carried(rig.adapted, 2, seed)
        rig.ask(rig.descend(x, optimizer=ADAMW, carry=carry, lrs=[0.3] * 4))
        rig.ask(rig.descend(x, correct=lambda g, w: g * float("nan")))
        rig.adapted.load(x)
    after = firsts(rig)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(rig.adapted.start, start)
    with pytest.raises(ValueError, match="`train` names"):
        rig.ask(rig.descend(rig.somewhere(), train=["model.layers.0.self_attn.q_proj.A"]))


@FAMILIES
@pytest.mark.parametrize("carried", [False, True])
def test_plain_peft_loads_the_saved_folder_to_the_same_logits(folders, family, carried, tmp_path):
    """Both factors are in the file; peft knows nothing of freezing."""
    rig = tiny.Rig(folders[family], FROZEN)
    x = rig.somewhere(1, 0.1)
    carry = tiny.carried(rig.adapted, 2) if carried else ()
    save(rig.adapted, FROZEN, Model(x, carry), rig.layout, str(folders[family]), tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folders[family]), str(tmp_path)).eval()
    rig.adapted.load(x, carry=carry)
    assert (logits(loaded) - logits(rig.adapted.module)).abs().max() < 1e-5
    assert (logits(loaded) - logits(tiny.plain(folders[family]))).abs().max() > 0.01


@FAMILIES
def test_the_plain_loop_with_a_frozen_factor(folders, family):
    """Plain peft with requires_grad off for A; SGD over the rest."""
    rig, both = tiny.Rig(folders[family], FROZEN), tiny.Rig(folders[family], BOTH)
    x = rig.somewhere()
    model = tiny.peft_model(
        folders[family], both.layout, whole(rig, both, x), r=4, lora_alpha=6, target_modules="all-linear"
    )
    seconds = [
        model.get_submodule(f"base_model.model.{leaf.module}.lora_B.default").weight for leaf in rig.layout.leaves
    ]
    for p in model.parameters():
        p.requires_grad_(any(p is b for b in seconds))
    tiny.plain_descent(model, torch.optim.SGD(seconds, lr=1), BATCHES, LRS, 0.5)
    wanted = torch.cat([b.detach().reshape(-1) for b in seconds])
    run = rig.ask(rig.descend(x, max_grad_norm=0.5))
    assert float((wanted - x).norm()) > 1e-4
    assert float((run.y - wanted).norm()) < 1e-3 * float((wanted - x).norm())
