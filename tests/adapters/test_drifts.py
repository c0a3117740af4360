"""Models that stand at a drift: in place where every parameter is trained, and on their way to files."""

import peft
import pytest
import torch
import transformers

import tiny
from fedloom.adapters.build import save
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.contracts import Model
from fedloom.drift import Drift, Strayed, moved
from fedloom.errors import UserError
from fedloom.models.load import load_skeleton

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
LORA, FULL = LoraConfig(rank=4, targets="all-linear"), FullConfig()
ONE, OTHER = (Drift(seed, torch.tensor([0.01, -0.02, 0.015])) for seed in (1, 2))
NOWHERE = Drift(1, torch.zeros(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("llama"), "llama")


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("config", [LORA, FULL], ids=["lora", "full"])
def test_every_way_to_a_drift_ends_in_the_same_bits(folder, config):
    fresh, used = tiny.Rig(folder, config).adapted, tiny.Rig(folder, config).adapted
    fresh.stand(ONE, fresh.layout)
    x = tiny.Rig(folder, config).somewhere(1)
    for step in (
        lambda: used.stand(OTHER, used.layout), lambda: used.load(x), lambda: used.stand(NOWHERE, used.layout),
        lambda: used.read(), lambda: used.load(x),
    ):  # fmt: skip
        step()
    used.stand(ONE, used.layout)
    assert torch.equal(used.w, fresh.w)
    with used.standing(x):
        assert not torch.equal(used.w, fresh.w)
    assert torch.equal(used.w, fresh.w)
    used.stand(OTHER, used.layout)
    used.stand(ONE, used.layout)
    assert torch.equal(used.w, fresh.w)


def test_all_parameters_stand_in_place_until_a_vector_comes(folder):
    adapted = tiny.Rig(folder, FULL).adapted
    base = adapted.w.clone()
    footing = adapted.stand(ONE, adapted.layout)
    assert footing.w is adapted.w
    assert adapted._base is None
    assert torch.equal(adapted.w, moved(base, adapted.layout, ONE))
    with adapted.standing(torch.zeros(adapted.layout.size)):  # the base, on its grids
        assert torch.equal(adapted.w, moved(base, adapted.layout, NOWHERE))
    assert torch.equal(adapted.w, moved(base, adapted.layout, ONE))
    assert torch.equal(adapted.read(), adapted.w - moved(base, adapted.layout, NOWHERE))


def test_training_from_a_drift_does_not_lose_it(folder, monkeypatch):
    """A vector is loaded over the model, trained, read; the next one to stand there draws only what is new."""
    adapted = tiny.Rig(folder, FULL).adapted
    adapted.stand(ONE, adapted.layout)
    x, there = adapted.read(), adapted.w.clone()
    adapted.load(x)
    assert torch.equal(adapted.w, there)
    adapted.load(x + 0.01)
    monkeypatch.setattr("fedloom.noise.fill", None)
    adapted.stand(ONE, adapted.layout)
    assert torch.equal(adapted.w, there)
    monkeypatch.undo()
    adapted.load(x)
    adapted.stand(OTHER, adapted.layout)
    assert torch.equal(adapted.w, moved(tiny.Rig(folder, FULL).adapted.w, adapted.layout, OTHER))


def test_a_vector_before_any_drift_means_what_it_always_meant(folder):
    rig, adapted = tiny.Rig(folder, FULL), tiny.Rig(folder, FULL).adapted
    x = rig.somewhere(1)
    adapted.load(x)
    adapted.stand(ONE, adapted.layout)
    adapted.load(x)
    rig.adapted.load(x)
    assert torch.equal(adapted.w, rig.adapted.w)


def test_the_start_of_all_parameters_takes_no_room(folder):
    start = tiny.Rig(folder, FULL).adapted.start
    assert start.untyped_storage().nbytes() <= 8
    assert not start.any()


@pytest.mark.parametrize("rested", [False, True])
def test_plain_peft_loads_an_adapter_at_a_drift(folder, tmp_path, rested):
    rig = tiny.Rig(folder, LORA)
    adapted = rig.adapted
    if rested:
        adapted.rest(start=False)
    save(adapted, LORA, Model(torch.empty(0), drift=ONE), rig.layout, str(folder), tmp_path / "a")
    found = peft.PeftModel.from_pretrained(tiny.plain(folder), str(tmp_path / "a"))
    like = tiny.Rig(folder, LORA).adapted
    like.load(moved(like.start, rig.layout, ONE))
    assert torch.equal(logits(found), logits(like.module))
    assert (logits(found) - logits(tiny.plain(folder))).abs().max() > 1e-3


def test_a_skeleton_writes_the_same_adapter(folder, tmp_path):
    from fedloom.adapters.build import adapt

    model = Model(torch.empty(0), drift=ONE)
    for name, adapted in (
        ("whole", tiny.Rig(folder, LORA).adapted),
        ("bones", adapt(load_skeleton(tiny.config(folder)), LORA, 7)),
    ):
        save(adapted, LORA, model, adapted.layout, str(folder), tmp_path / name)
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "bones"))
    assert one == other


def test_transformers_loads_a_whole_model_at_a_drift(folder, tmp_path):
    rig = tiny.Rig(folder, FULL)
    save(rig.adapted, FULL, Model(torch.empty(0), drift=ONE), rig.layout, str(folder), tmp_path / "a")
    found = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "a"), dtype=torch.float32)
    rig.adapted.stand(OTHER, rig.layout)
    rig.adapted.stand(ONE, rig.layout)
    assert torch.equal(logits(found), logits(rig.adapted.module))


def test_what_cannot_be_stood_at_is_said(folder):
    rig = tiny.Rig(folder, FULL)
    before = rig.adapted.w.clone()
    with pytest.raises(Strayed, match="diverged"):
        rig.adapted.stand(Drift(1, torch.tensor([30.0])), rig.layout)
    rig.adapted.stand(NOWHERE, rig.layout)
    assert float((rig.adapted.w - before).abs().max()) < 1e-6
    bones = load_skeleton(tiny.config(folder))
    from fedloom.adapters.build import adapt

    skeleton = adapt(bones, FULL, 7)
    with pytest.raises(UserError, match="without its weights"):
        skeleton.stand(ONE, skeleton.layout)
