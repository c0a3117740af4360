"""Every parameter trained: what travels is the difference, what is saved is the whole model."""

import pytest
import torch
import transformers

import tiny
from fedloom.adapters.build import adapt, save
from fedloom.adapters.config import FullConfig
from fedloom.contracts import Model

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
FULL = FullConfig()


@pytest.fixture(scope="module", params=["llama", "tied", "gpt2"])
def folder(request, tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp(request.param), request.param)


def logits(module):
    with torch.no_grad():
        return module(input_ids=IDS).logits


def named(folder):
    return dict(tiny.plain(folder).named_parameters())  # tied tensors come once


def test_the_layout_is_the_model_s_parameters_and_starts_at_no_difference(folder):
    rig = tiny.Rig(folder, FULL)
    assert {leaf.name: leaf.shape for leaf in rig.layout.leaves} == {
        n: tuple(p.shape) for n, p in named(folder).items()
    }
    assert {(leaf.factor, leaf.origin, leaf.module) for leaf in rig.layout.leaves} == {("plain", "difference", "")}
    assert not rig.adapted.start.any()
    assert rig.adapted.start.shape == (sum(p.numel() for p in named(folder).values()),)
    rig.adapted.load(rig.adapted.start)
    assert torch.equal(logits(rig.adapted.module), logits(tiny.plain(folder)))


def test_a_difference_is_added_to_the_base(folder):
    rig = tiny.Rig(folder, FULL)
    x = rig.somewhere(1)
    rig.adapted.load(x)
    changed, parts = tiny.plain(folder), rig.layout.views(x)
    for name, parameter in changed.named_parameters():
        parameter.data += parts[name]
    assert torch.equal(logits(rig.adapted.module), logits(changed))
    assert torch.allclose(rig.adapted.read(), x, atol=1e-6)


def test_transformers_loads_what_is_saved_to_the_same_logits(folder, tmp_path):
    rig = tiny.Rig(folder, FULL)
    x, elsewhere = rig.somewhere(1), rig.somewhere(2)
    rig.adapted.load(elsewhere)
    save(rig.adapted, FULL, Model(x), rig.layout, str(folder), tmp_path / "deep" / "final")
    assert torch.allclose(rig.adapted.read(), elsewhere, atol=1e-6)
    found, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "deep" / "final"), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    rig.adapted.load(x)
    assert torch.equal(logits(found.eval()), logits(rig.adapted.module))
    shared = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (found, tiny.plain(folder))]
    assert shared[0] is shared[1]


def test_training_is_a_plain_loop_over_all_parameters(folder):
    rig = tiny.Rig(folder, FULL)
    x = rig.somewhere(1, 0.01)
    run = rig.ask(rig.descend(x, max_grad_norm=1.0))
    model, parts = tiny.plain(folder), rig.layout.views(x)
    for name, parameter in model.named_parameters():
        parameter.data += parts[name]
    tiny.plain_descent(model, torch.optim.SGD(model.parameters(), lr=1), tiny.BATCHES, tiny.LRS, 1.0)
    base = named(folder)
    wanted = torch.cat([(p.detach() - base[name].detach()).reshape(-1) for name, p in model.named_parameters()])
    moved = float((wanted - x).norm())
    assert moved > 1e-3
    assert float((run.y - wanted).norm()) < 1e-4 * moved


@pytest.mark.parametrize("kind", ["correction", "penalty"])
def test_corrections_and_penalties_see_what_vectors_mean(folder, kind):
    """A pull towards an anchor: vectors hold differences to the base, so both must be handed differences."""
    rig = tiny.Rig(folder, FULL)
    x, anchor, mu = rig.somewhere(1, 0.01), rig.somewhere(2, 0.01), 0.7
    spans = {leaf.name: slice(leaf.offset, leaf.offset + leaf.size) for leaf in rig.layout.leaves}

    def pull(tensors, anchor):
        return sum((t.reshape(-1) - anchor[spans[name]]).square().sum() for name, t in tensors.items()) * mu / 2

    model, parts = tiny.plain(folder), rig.layout.views(x)
    for name, parameter in model.named_parameters():
        parameter.data += parts[name]
    tiny.batch_loss(model, tiny.BATCHES[0]).backward()
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    wanted = x - 0.1 * (g + mu * (x - anchor))
    common = {"batches": tiny.BATCHES[:1], "lrs": [0.1], "with_": (anchor,)}
    how = {"correct": lambda g, w, anchor: g + mu * (w - anchor)} if kind == "correction" else {"penalty": pull}
    run = rig.ask(rig.descend(x, **how, **common))
    assert float((run.y - wanted).norm()) < 1e-3 * float((wanted - x).norm())


def test_training_is_in_float32_whatever_the_folder_holds(folder):
    rig = tiny.Rig(folder, FULL, dtype="bfloat16")
    assert {p.dtype for p in rig.adapted.module.parameters()} == {torch.float32}
    x = torch.zeros(rig.layout.size)
    run = rig.ask(rig.descend(x, lrs=[1e-6] * 4))  # below bfloat16's spacing around any weight
    assert float(run.y.abs().max()) > 0


def test_nothing_global_is_drawn(folder):
    base = tiny.loaded(folder, True)
    before = tiny.randomness()
    adapted = adapt(base, FULL, 3)
    assert tiny.randomness() == before
    assert torch.equal(adapted.start, adapt(tiny.loaded(folder, True), FULL, 4).start)
