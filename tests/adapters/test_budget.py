"""AdaLoRA's budget: steps, importance and masks are those of plain peft, over one training or several."""

import peft
import pytest
import torch

import tiny
from fedloom.adapters.budget import without
from fedloom.adapters.build import save
from fedloom.adapters.config import AdaLoraConfig
from fedloom.adapters.wrapping import settings
from fedloom.contracts import Model
from fedloom.engine.config import OptimizerConfig

CONFIG = AdaLoraConfig(rank=6, target_rank=2, steps=8, warmup=1, final=2, targets="all-linear")
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.0, args={"eps": 1e-5})
BATCHES, LRS = tiny.BATCHES * 2, tiny.LRS * 2


def plain(folder, config, x, layout):
    """Peft alone, as its documentation has it; the numbers after each step."""
    model = tiny.plain(folder)
    with torch.random.fork_rng():
        model = peft.get_peft_model(model, settings(model, config)).eval()
    trained = {n: p for n, p in model.named_parameters() if any(f"lora_{letter}.default" in n for letter in "ABE")}
    with torch.no_grad():
        for parameter, view in zip(trained.values(), layout.views(x).values(), strict=True):
            parameter.copy_(view)
    optimizer = torch.optim.AdamW(trained.values(), lr=1, weight_decay=0, eps=1e-5)
    for step, (examples, lr) in enumerate(zip(BATCHES, LRS, strict=True)):
        optimizer.zero_grad()
        tiny.batch_loss(model, examples).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        model.base_model.update_and_allocate(step)
        yield torch.cat([p.detach().reshape(-1) for p in trained.values()])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp(request.param), request.param)


def request(rig, x, steps, **changes):
    how = {"batches": BATCHES[steps], "lrs": LRS[steps], "optimizer": ADAMW, "max_grad_norm": 1.0, **changes}
    return rig.descend(x, **how)


@pytest.mark.parametrize("every", [1, 3])
def test_a_training_is_that_of_plain_peft(folder, every):
    config = CONFIG.model_copy(update={"every": every})
    rig = tiny.Rig(folder, config)
    x = rig.somewhere(1, 0.1)
    wanted = list(plain(folder, config, x, rig.layout))[-1]
    run = rig.ask(request(rig, x, slice(None)))
    assert float((run.y - wanted).norm()) < 1e-3 * float((wanted - x).norm())
    zeros = sum(int((view == 0).sum()) for name, view in rig.layout.views(run.y).items() if name.endswith(".E"))
    modules = len(rig.layout.leaves) // 3
    assert zeros == modules * (config.rank - config.target_rank)
    assert zeros == sum(int((view == 0).sum()) for view in rig.layout.views(wanted).values())


@pytest.mark.parametrize("parts", [[3, 5], [1, 2, 2, 3], [7, 1]])
def test_several_trainings_are_one_to_the_bit(folder, parts):
    """What is remembered goes in and out, while another client trains on the same model."""
    rig = tiny.Rig(folder, CONFIG)
    x = rig.somewhere(1, 0.1)
    whole = rig.ask(request(rig, x, slice(None), inner={}))
    inner, y, done = {}, x, 0
    for count in parts:
        run = rig.ask(request(rig, y, slice(done, done + count), inner=inner))
        inner, y, done = run.inner, run.y, done + count
        rig.ask(request(rig, rig.somewhere(5, 0.1), slice(0, 4), inner={}))
    assert torch.equal(y, whole.y)
    assert sorted(inner) == sorted(whole.inner)
    assert all(torch.equal(inner[name], whole.inner[name]) for name in inner)
    assert set(without(inner)) < set(inner)


def test_without_memory_the_budget_begins_anew(folder):
    rig = tiny.Rig(folder, CONFIG)
    x = rig.somewhere(1, 0.1)
    first, second = (rig.ask(request(rig, x, slice(0, 4))) for _ in range(2))
    assert torch.equal(first.y, second.y)


def test_memory_of_another_adapter_is_refused(folder):
    rig = tiny.Rig(folder, CONFIG)
    with pytest.raises(ValueError, match="another adapter"):
        rig.ask(request(rig, rig.adapted.start, slice(0, 1), inner={"AdaLoRA exp_avg_ipt x.E": torch.zeros(1)}))


def test_what_is_left_out_is_left_out_of_the_file(folder, tmp_path):
    rig = tiny.Rig(folder, CONFIG)
    run = rig.ask(request(rig, rig.somewhere(1, 0.1), slice(None)))
    save(rig.adapted, CONFIG, Model(run.y), rig.layout, str(folder), tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folder), str(tmp_path)).eval()
    rig.adapted.load(run.y)
    ids = torch.tensor([[5, 60, 200, 33, 9]])
    with torch.no_grad():
        assert (loaded(input_ids=ids).logits - rig.adapted.module.eval()(input_ids=ids).logits).abs().max() < 1e-5
