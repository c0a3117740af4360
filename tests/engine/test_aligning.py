"""Alignment of an emulator: what moves, what is shared, and the same step written without fedloom."""

import copy

import pytest
import torch
from torch.nn import functional as F

import tiny
from fedloom.engine.aligning import Aligning, Terms, beside
from fedloom.engine.lessons import Course
from fedloom.errors import RunStopped
from fedloom.models.layers import find
from fedloom.models.load import load_model
from fedloom.models.offsite import Plan
from fedloom.objectives.sft import Sft

PLAN = Plan(5, 1, 1, (1, 3))
LAYERS = {"gpt2": {"n_layer": 5}, "bloom": {"n_layer": 5}}
HELD = tiny.batch(11, 6, 15, seed=9)


def owner(folder, family="llama"):
    return load_model(tiny.config(tiny.saved(folder, family, **LAYERS.get(family, {"num_hidden_layers": 5})))).module


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return owner(tmp_path_factory.mktemp("llama"))


def pair(module, plan=PLAN):
    return Aligning(module, plan, Sft(), 0)


def course(steps, lr=0.003):
    return Course([tiny.BATCHES[i % 4] for i in range(steps)], [lr] * steps)


def names_of(module, blocks):
    place, _ = find(module)
    return {name for name, _ in module.named_parameters() if any(name.startswith(f"{place}.{i}.") for i in blocks)}


@pytest.mark.parametrize("family", ["llama", "tied", "gpt2", "opt", "bloom", "gpt_neox"])
def test_only_the_middle_blocks_move(tmp_path, family):
    """By distillation alone, so that language modelling is not what helps; on rows that were not trained on."""
    module = owner(tmp_path, family)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    made = pair(module)
    first = {name: tensor.clone() for name, tensor in made.emulator.state_dict().items()}
    apart = made.apart(HELD, 2)
    assert apart > 1e-4
    losses = made.learn(course(40), Terms(1.0, 0.0), "adamw", 1.0)
    assert len(losses) == 40
    assert made.apart(HELD, 2) < apart
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    moved = {name for name, tensor in made.emulator.state_dict().items() if not torch.equal(tensor, first[name])}
    middle = names_of(made.emulator, PLAN.emulated)
    assert moved <= middle
    assert len(moved) > len(middle) / 2
    assert not any(p.requires_grad for p in (*module.parameters(), *made.emulator.parameters()))


def test_all_but_the_trained_blocks_is_shared(llama):
    """The emulator costs the memory of its middle blocks alone, and none of the owner's blocks is among them."""
    emulator = beside(llama, PLAN)
    owners = {p.data_ptr() for p in llama.parameters()}
    own = {name for name, p in emulator.named_parameters() if p.data_ptr() not in owners}
    assert own == names_of(emulator, PLAN.emulated)
    _, theirs = find(llama)
    for block, home in zip(find(emulator)[1], PLAN.layers, strict=True):
        for one, other in zip(block.parameters(), theirs[home].parameters(), strict=True):
            assert torch.equal(one, other)
    assert llama.config.num_hidden_layers == 5


def test_an_emulator_of_all_middle_blocks_is_no_distance_apart(llama):
    whole = pair(llama, Plan(5, 1, 1, (1, 2, 3)))
    assert whole.apart(HELD, 3) == 0
    (loss,) = whole.learn(course(1), Terms(1.0, 0.0), "sgd", None)
    assert loss == 0


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_neighbours_in_a_batch_change_nothing(tmp_path, family):
    """Texts of 6, 11 and 15 tokens, side by side with filling or one by one."""
    made = pair(owner(tmp_path, family))
    assert made.apart(HELD, 3) == pytest.approx(made.apart(HELD, 1), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_by_hand(tmp_path, family):
    """One text, SGD: hidden states from plain transformers, the loss as the paper writes it, one step."""
    module, example, lr = owner(tmp_path, family), tiny.example(12, 4), 0.05
    place, blocks = find(module)
    whole, plain = copy.deepcopy(module), copy.deepcopy(module)
    student = [copy.deepcopy(blocks[i]).requires_grad_(True) for i in PLAN.kept]
    ids = torch.tensor([example.ids])
    with torch.no_grad():
        owners = whole(ids, output_hidden_states=True).hidden_states[4]  # what enters block 4, behind the middle
    plain.set_submodule(place, torch.nn.ModuleList([blocks[0], *student, blocks[4]]))
    plain.config.num_hidden_layers = 4
    out = plain(ids, output_hidden_states=True, use_cache=False)
    said = out.hidden_states[3]
    kd = ((owners - said) / owners.square().mean().sqrt()).square().mean()
    labels = torch.tensor(example.labels)
    lm = F.cross_entropy(out.logits[0, :-1], labels[1:], ignore_index=-100)
    loss = 0.9 * kd + 0.1 * lm
    loss.backward()
    made = pair(module)
    (found,) = made.learn(Course([[example]], [lr]), Terms(0.9, 0.1), "sgd", None)
    assert found == pytest.approx(loss.item(), rel=1e-5)
    for mine, its in zip(made.learning, student, strict=True):
        for one, other in zip(mine.parameters(), its.parameters(), strict=True):
            wanted = other if other.grad is None else other - lr * other.grad
            assert torch.allclose(one, wanted, atol=1e-6)


def test_the_same_course_gives_the_same_bits(llama):
    made = [pair(llama) for _ in range(2)]
    losses = [one.learn(course(6), Terms(0.9, 0.1), "adamw", 1.0) for one in made]
    assert losses[0] == losses[1]
    for one, other in zip(*(m.emulator.parameters() for m in made), strict=True):
        assert torch.equal(one, other)


def test_no_global_generator_is_touched(llama):
    before = tiny.randomness()
    made = pair(llama)
    made.learn(course(2), Terms(0.9, 0.1), "adamw", 1.0)
    made.apart(HELD, 2)
    assert tiny.randomness() == before


def test_long_gradients_are_shortened(llama):
    """With plain SGD the way of one step is at most lr times the limit."""
    made = pair(llama)
    before = [p.clone() for block in made.learning for p in block.parameters()]
    made.learn(course(1, lr=1.0), Terms(0.9, 0.1), "sgd", 1e-3)
    now = [p for block in made.learning for p in block.parameters()]
    way = torch.stack([(a - b).norm() for a, b in zip(now, before, strict=True)]).norm().item()
    assert 0.5e-3 < way <= 1.001e-3


def test_what_is_not_finite_ends_it(llama):
    with pytest.raises(
        RunStopped, match=r"loss or gradient not finite in step \d+ .lr 1e\+30.; lower offsite.align.lr"
    ):
        pair(llama).learn(course(5, lr=1e30), Terms(0.9, 0.1), "sgd", None)


def test_rounded_to_the_format_of_the_file(llama):
    made = pair(llama)
    made.learn(course(2), Terms(0.9, 0.1), "adamw", 1.0)
    made.round_to(torch.bfloat16)
    for p in (p for block in made.learning for p in block.parameters()):
        assert p.dtype == torch.float32
        assert torch.equal(p, p.bfloat16().float())
