"""A sparse update beside the factors: which entries it touches, what they add, and what they learn."""

import numpy
import peft
import pytest
import torch

import tiny
from fedloom import masks
from fedloom.adapters.build import save
from fedloom.adapters.config import LoraConfig
from fedloom.adapters.lora import resized
from fedloom.contracts import Model
from fedloom.engine.config import OptimizerConfig
from tiny import BATCHES, distance

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
DENSITY = 0.07
SPARSE = LoraConfig(rank=3, alpha=6, targets="all-linear", sparse=DENSITY)
WITHOUT = SPARSE.model_copy(update={"sparse": None})
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.1, args={"eps": 1e-5})
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def rigs(folders):
    return {name: tiny.Rig(folder, SPARSE) for name, folder in folders.items()}


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def names(rig, plain):
    """The sparse leaves, or the factors."""
    return [leaf.name for leaf in rig.layout.leaves if (leaf.factor == "plain") is plain]


def sparse_point(rig, seed=0, size=0.3):
    """A point where the factors are at their start and the sparse updates are not zero."""
    sparse = names(rig, True)
    values = size * torch.randn(
        len(rig.layout.take(rig.adapted.start, sparse)), generator=torch.Generator().manual_seed(seed)
    )
    return rig.layout.put(rig.adapted.start, sparse, values)


def updates(rig, x):
    """[out, in] by module, the numbers put in place one by one."""
    found = {}
    for name, extra in rig.adapted.extras.items():
        dense = numpy.zeros((extra.outputs, extra.inputs), dtype=numpy.float32)
        places = masks.entries(7, name, extra.outputs, extra.inputs, DENSITY)
        for place, value in zip(places.tolist(), rig.layout.views(x)[f"{name}.S"].tolist(), strict=True):
            dense[place // extra.inputs, place % extra.inputs] = value
        found[name] = torch.from_numpy(dense)
    return found


# -- masks


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (32, 48), (96, 32)])
@pytest.mark.parametrize("density", [1e-6, 0.01, 0.5, 0.999, 1.0])
def test_a_mask_has_exactly_its_density(shape, density):
    places = masks.entries(0, "m", *shape, density)
    size = shape[0] * shape[1]
    assert len(places) == max(1, round(density * size))
    assert places.dtype == torch.int64
    assert places.tolist() == sorted(set(places.tolist()))
    assert 0 <= int(places[0]) <= int(places[-1]) < size


def test_masks_are_a_matter_of_seed_and_module_alone():
    before = tiny.randomness()
    one = masks.entries(3, "q", 20, 30, 0.1)
    assert torch.equal(one, masks.entries(3, "q", 20, 30, 0.1))
    assert not torch.equal(one, masks.entries(4, "q", 20, 30, 0.1))
    assert not torch.equal(one, masks.entries(3, "k", 20, 30, 0.1))
    assert tiny.randomness() == before


def test_the_mask_is_the_same_on_every_machine():
    """Pinned: clients and server draw it each for itself, so a change of how it is made is a change of format."""
    assert masks.entries(5, "model.layers.0.q", 6, 8, 0.15).tolist() == PINNED


PINNED = [10, 13, 14, 17, 23, 31, 44]


def test_every_entry_is_as_likely_as_any_other():
    """2,000 masks of a fifth of 30 entries: 400 each, standard deviation 18."""
    counts = torch.zeros(30)
    for seed in range(2000):
        counts[masks.entries(seed, "m", 5, 6, 0.2)] += 1
    assert counts.sum() == 2000 * 6
    assert (counts - 400).abs().max() < 5 * 18


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_no_density_of_that_kind(density):
    with pytest.raises(ValueError, match="density"):
        masks.entries(0, "m", 4, 4, density)


def test_dense_by_hand_and_its_gradient():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    places = torch.tensor([1, 3, 5])
    found = masks.dense(values, places, 2, 3)
    assert found.tolist() == [[0, 1, 0], [2, 0, 3]]
    (found * torch.arange(6.0).view(2, 3)).sum().backward()
    assert values.grad.tolist() == [1, 3, 5]


# -- layout


@FAMILIES
def test_a_sparse_leaf_stands_beside_each_pair(rigs, family):
    rig = rigs[family]
    for a, b, s in zip(rig.layout.leaves[::3], rig.layout.leaves[1::3], rig.layout.leaves[2::3], strict=True):
        assert (a.name, b.name, s.name) == (f"{a.module}.A", f"{a.module}.B", f"{a.module}.S")
        assert (s.factor, s.module) == ("plain", a.module)
        assert s.shape == (round(DENSITY * b.shape[0] * a.shape[1]),)
        assert (s.offset, a.offset) == (b.offset + b.size, s.offset - b.size - a.size)
    assert not rig.layout.take(rig.adapted.start, names(rig, True)).any()
    other = tiny.Rig(rig.base.name, WITHOUT)
    factors = rig.layout.take(rig.adapted.start, names(rig, False))
    assert torch.equal(factors, other.adapted.start)  # the factors start as without
    trainable = sum(p.numel() for p in rig.adapted.module.parameters() if p.requires_grad)
    assert trainable + len(rig.layout.take(rig.adapted.start, names(rig, True))) == rig.layout.size


def test_two_models_draw_the_same_entries(folders):
    one, other = (tiny.Rig(folders["llama"], SPARSE) for _ in range(2))
    for name in one.adapted.extras:
        places = one.adapted.extras[name].places
        assert torch.equal(places, other.adapted.extras[name].places)
        extra = one.adapted.extras[name]
        assert torch.equal(places, masks.entries(7, name, extra.outputs, extra.inputs, DENSITY))


# -- forward


@FAMILIES
def test_it_adds_what_the_changed_weight_would(folders, rigs, family):
    rig, changed = rigs[family], tiny.plain(folders[family])
    x = sparse_point(rig)
    for name, update in updates(rig, x).items():
        assert int((update != 0).sum()) == round(DENSITY * update.numel())
        changed.get_submodule(name).weight.data += update.T if family == "gpt2" else update
    rig.adapted.load(x)
    found = logits(rig.adapted.module)
    assert (found - logits(changed)).abs().max() < 2e-5
    assert (found - logits(tiny.plain(folders[family]))).abs().max() > 0.1


def test_together_with_factors_and_a_carry(folders, rigs):
    rig = rigs["llama"]
    x, carry = rig.somewhere(1), tiny.carried(rig.adapted, 2)
    changed, views = tiny.plain(folders["llama"]), rig.layout.views(x)
    for i, (name, update) in enumerate(updates(rig, x).items()):
        product = 6 / 3 * views[f"{name}.B"] @ views[f"{name}.A"] + carry[2 * i] @ carry[2 * i + 1]
        changed.get_submodule(name).weight.data += product + update
    rig.adapted.load(x, carry=carry)
    assert (logits(rig.adapted.module) - logits(changed)).abs().max() < 2e-5


@FAMILIES
def test_an_update_of_zeros_is_not_computed(rigs, family, monkeypatch):
    """It would cost as much as a dense layer in every pass."""
    rig, calls = rigs[family], []
    dense = masks.dense
    monkeypatch.setattr(masks, "dense", lambda *given: calls.append(1) or dense(*given))
    factors = names(rig, False)
    at_zero = rig.layout.put(
        rig.somewhere(), names(rig, True), 0 * rig.layout.take(rig.adapted.start, names(rig, True))
    )
    rig.adapted.load(at_zero)
    logits(rig.adapted.module)
    rig.ask(rig.descend(at_zero, train=factors))
    assert calls == []
    run = rig.ask(rig.descend(at_zero, train=names(rig, True)[:1], batches=BATCHES[:1], lrs=[0.1]))
    assert len(calls) == 1  # one module's, one pass
    rig.adapted.load(run.y)
    logits(rig.adapted.module)
    assert len(calls) == 2
    rig.adapted.load(at_zero)
    logits(rig.adapted.module)
    assert len(calls) == 2
    rig.ask(rig.descend(rig.adapted.start, batches=BATCHES[:1], lrs=[0.1]))
    assert len(calls) == 2 + len(rig.adapted.extras)


# -- training


@FAMILIES
@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_gradient_is_the_dense_one_at_its_entries(folders, family, checkpointing):
    """The oracle is autograd over the base's own weights, all of them."""
    rig = tiny.Rig(folders[family], SPARSE, checkpointing=checkpointing)
    x = sparse_point(rig)
    run = rig.ask(rig.descend(x, batches=BATCHES[:1], lrs=[0.1], gradient=True, train=names(rig, True)))
    changed = tiny.plain(folders[family])
    for name, update in updates(rig, x).items():
        changed.get_submodule(name).weight.data += update.T if family == "gpt2" else update
    tiny.batch_loss(changed, BATCHES[0]).backward()
    for name, extra in rig.adapted.extras.items():
        whole = changed.get_submodule(name).weight.grad
        whole = whole.T if family == "gpt2" else whole
        wanted = whole.reshape(-1)[masks.entries(7, name, extra.outputs, extra.inputs, DENSITY)]
        assert wanted.norm() > 1e-5
        assert distance(rig.layout.views(run.gradient)[f"{name}.S"], wanted) < 1e-4, name
    assert distance(run.y - x, -0.1 * run.gradient) < 1e-4


@FAMILIES
def test_only_masked_entries_ever_change_the_weight(folders, family):
    """Read from the model itself: its layers' answers to unit vectors, before and after training."""
    rig = tiny.Rig(folders[family], SPARSE)
    run = rig.ask(rig.descend(rig.adapted.start, train=names(rig, True), optimizer=ADAMW, lrs=[0.01] * 4))
    moved = rig.layout.take(run.y, names(rig, True))
    assert float((moved != 0).double().mean()) > 0.9
    assert torch.equal(rig.layout.take(run.y, names(rig, False)), rig.layout.take(rig.adapted.start, names(rig, False)))
    rig.adapted.load(run.y)
    for name, extra in rig.adapted.extras.items():
        layer = rig.adapted.module.get_submodule(f"base_model.model.{name}")
        unit = torch.eye(extra.inputs)
        with torch.no_grad():
            change = (layer(unit) - layer.base_layer(unit)).T.reshape(-1)
        places = masks.entries(7, name, extra.outputs, extra.inputs, DENSITY)
        outside = torch.ones(len(change), dtype=torch.bool)
        outside[places] = False
        assert change[outside].abs().max() < 1e-6
        assert change[places].abs().max() > 1e-3


def test_factors_train_beside_it_as_the_dense_layer_would_have_them(folders, tmp_path):
    """A training of the factors alone over a non-zero sparse update is one over a base that holds it."""
    rig = tiny.Rig(folders["llama"], SPARSE)
    x = sparse_point(rig)
    changed = tiny.plain(folders["llama"])
    for name, update in updates(rig, x).items():
        changed.get_submodule(name).weight.data += update
    changed.save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    other = tiny.Rig(tmp_path, WITHOUT)
    run = rig.ask(rig.descend(x, train=names(rig, False), max_grad_norm=0.5))
    wanted = other.ask(other.descend(other.adapted.start, max_grad_norm=0.5))
    moved = float((wanted.y - other.adapted.start).norm())
    found = rig.layout.take(run.y, names(rig, False))
    assert moved > 1e-3
    assert float((found - wanted.y).norm()) < 1e-3 * moved


def test_clients_leave_nothing_to_each_other(folders):
    used = tiny.Rig(folders["llama"], SPARSE)
    for seed in range(4):
        fresh = tiny.Rig(folders["llama"], SPARSE)
        x = fresh.somewhere(seed) if seed % 2 else fresh.adapted.start
        train = names(fresh, seed >= 2)
        request = fresh.descend(x, train=train, optimizer=ADAMW, gradient=True)
        one, other = used.ask(request), fresh.ask(request)
        assert torch.equal(one.y, other.y)
        assert torch.equal(one.gradient, other.gradient)


def test_smaller_ranks_keep_their_sparse_leaves(rigs):
    rig = rigs["llama"]
    layout = resized(rig.layout, dict.fromkeys(rig.adapted.extras, 1), lambda rank: 6 / rank)
    sparse = names(rig, True)
    values = torch.randn(len(rig.layout.take(rig.adapted.start, sparse)), generator=torch.Generator().manual_seed(3))
    small = layout.put(torch.zeros(layout.size), sparse, values)
    large = rig.layout.put(torch.zeros(rig.layout.size), sparse, values)
    rig.adapted.load(small, layout)
    found = logits(rig.adapted.module)
    rig.adapted.load(large)
    assert torch.equal(found, logits(rig.adapted.module))


# -- through files


@FAMILIES
@pytest.mark.parametrize("what", ["sparse alone", "everything", "nothing"])
def test_plain_peft_loads_what_is_saved_to_the_same_logits(rigs, folders, family, what, tmp_path):
    rig = rigs[family]
    x = {"sparse alone": sparse_point(rig), "everything": rig.somewhere(2), "nothing": rig.adapted.start}[what]
    carry = tiny.carried(rig.adapted, 2) if what == "everything" else ()
    save(rig.adapted, SPARSE, Model(x, carry), rig.layout, str(folders[family]), tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folders[family]), str(tmp_path)).eval()
    rig.adapted.load(x, carry=carry)
    assert (logits(loaded) - logits(rig.adapted.module)).abs().max() < 2e-5
    far = (logits(loaded) - logits(tiny.plain(folders[family]))).abs().max() > 0.01
    assert bool(far) is (what != "nothing")
