"""What a client carries on top of the base: as a wider adapter would add it, and gone with the next client."""

import pytest
import torch

import tiny
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.contracts import Call
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.reference import ROOM
from fedloom.engine.requests import Evaluate, Generate, Logits, Probe
from tiny import BATCHES, LRS, distance

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
ALL = LoraConfig(rank=4, alpha=6, targets="all-linear")
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in ("llama", "gpt2", "opt")}


@pytest.fixture(scope="module")
def rigs(folders):
    """Shared by tests: nothing carried in one may show in another."""
    return {name: tiny.Rig(folder, ALL) for name, folder in folders.items()}


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def frozen(rig):
    """Every number of the base, bit for bit."""
    return {name: p.detach().clone() for name, p in rig.adapted.module.named_parameters() if ".lora_" not in name}


# -- forward


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("width", [1, 3, 40])  # 40 is wider than the layers are
def test_a_carried_product_adds_what_a_wider_adapter_would(folders, rigs, family, width):
    rig = rigs[family]
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, width)
    rig.adapted.load(x, carry=carry)
    found = logits(rig.adapted.module)
    wanted = logits(tiny.widened(folders[family], rig.layout, x, carry))
    assert (found - wanted).abs().max() < 2e-5
    rig.adapted.load(x)
    assert (found - logits(rig.adapted.module)).abs().max() > 0.1


@FAMILIES
def test_it_stands_in_the_base_s_weight_the_right_way_round(folders, rigs, family):
    """Products are [out, in]; a Conv1D stores [in, out]."""
    rig, changed = rigs[family], tiny.plain(folders[family])
    carry = tiny.carried(rig.adapted, 2)
    for i, name in enumerate(rig.adapted.extras):
        product = carry[2 * i] @ carry[2 * i + 1]
        changed.get_submodule(name).weight.data += product.T if family == "gpt2" else product
    rig.adapted.load(rig.adapted.start, carry=carry)
    assert (logits(rig.adapted.module) - logits(changed)).abs().max() < 2e-5


@FAMILIES
def test_each_module_gets_its_own(rigs, family):
    """All pairs but one of zeros: only that module's output moves."""
    rig = rigs[family]
    modules = list(rig.adapted.extras)
    for chosen in (0, len(modules) - 1):
        carry = list(tiny.carried(rig.adapted, 2))
        for i in range(len(modules)):
            if i != chosen:
                carry[2 * i] = torch.zeros_like(carry[2 * i])
        seen = {}
        hooks = [
            rig.adapted.module.get_submodule(f"base_model.model.{name}").register_forward_hook(
                lambda m, args, out, name=name, seen=seen: seen.__setitem__(name, (args[0], out))
            )
            for name in modules
        ]
        rig.adapted.load(rig.adapted.start, carry=tuple(carry))
        logits(rig.adapted.module)
        for hook in hooks:
            hook.remove()
        for i, name in enumerate(modules):
            layer = rig.adapted.module.get_submodule(f"base_model.model.{name}")
            given, out = seen[name]
            with torch.no_grad():
                plain = layer.base_layer(given)
            same = torch.allclose(out, plain, atol=1e-6)
            assert same is (i != chosen), name


@FAMILIES
def test_a_product_of_width_zero_and_one_of_zeros_add_nothing(rigs, family):
    rig = rigs[family]
    x = rig.somewhere()
    rig.adapted.load(x)
    wanted = logits(rig.adapted.module)
    rig.adapted.load(x, carry=tiny.carried(rig.adapted, 0))
    assert torch.equal(logits(rig.adapted.module), wanted)
    rig.adapted.load(x, carry=tuple(torch.zeros_like(part) for part in tiny.carried(rig.adapted, 2)))
    assert torch.equal(logits(rig.adapted.module), wanted)


def test_modules_may_carry_products_of_different_widths(folders, rigs):
    rig = rigs["llama"]
    carry = []
    for i, extra in enumerate(rig.adapted.extras.values()):
        width = i % 3
        carry += [0.1 * torch.ones(extra.outputs, width), 0.1 * torch.ones(width, extra.inputs)]
    changed = tiny.plain(folders["llama"])
    for i, name in enumerate(rig.adapted.extras):
        changed.get_submodule(name).weight.data += carry[2 * i] @ carry[2 * i + 1]
    rig.adapted.load(rig.adapted.start, carry=tuple(carry))
    assert (logits(rig.adapted.module) - logits(changed)).abs().max() < 2e-5


def test_float64_factors_are_taken_too(rigs):
    rig = rigs["llama"]
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 2)
    rig.adapted.load(x, carry=carry)
    wanted = logits(rig.adapted.module)
    rig.adapted.load(x, carry=tuple(part.double() for part in carry))
    assert torch.equal(logits(rig.adapted.module), wanted)


# -- nothing stays behind


@FAMILIES
def test_what_one_client_carries_never_reaches_the_next(rigs, family):
    rig = rigs[family]
    before = frozen(rig)
    x, carry, other = rig.somewhere(1), tiny.carried(rig.adapted, 3, 1), tiny.carried(rig.adapted, 2, 2)
    rig.adapted.load(x)
    bare = logits(rig.adapted.module)
    rig.adapted.load(x, carry=other)
    second = logits(rig.adapted.module)
    for _ in range(2):
        rig.adapted.load(rig.somewhere(2), carry=carry)
        logits(rig.adapted.module)
        rig.ask(rig.descend(rig.somewhere(3), carry=carry))
        rig.adapted.load(x)
        assert torch.equal(logits(rig.adapted.module), bare)
        rig.adapted.load(x, carry=other)
        assert torch.equal(logits(rig.adapted.module), second)
    after = frozen(rig)
    assert before.keys() == after.keys()
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)


@FAMILIES
def test_a_training_leaves_what_it_carried_as_it_was(rigs, family):
    rig = rigs[family]
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 3)
    kept = [part.clone() for part in carry]
    rig.ask(rig.descend(x, carry=carry, lrs=[0.5] * 4, max_grad_norm=1.0))
    assert all(torch.equal(one, other) for one, other in zip(carry, kept, strict=True))
    assert not any(part.requires_grad or part.grad is not None for part in carry)


def test_evaluations_with_other_carries_do_not_share_a_pass(rigs):
    """Equal weights over another carry are another model; equal ones may come from different places."""
    rig = rigs["llama"]
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 2)

    def evaluated(carried):
        return Evaluate(x, rig.layout, BATCHES[0], ("loss",), 4, 2, carried)

    alone = [rig.ask(evaluated(carried)) for carried in ((), carry)]
    assert abs(alone[0].nll - alone[1].nll) > 0.01
    asked = [evaluated(carried) for carried in ((), carry, tuple(part.clone() for part in carry), (), carry)]
    for client, request in enumerate(asked):
        rig.engine.admit(Call(client, request))
    found = {}
    while rig.engine.room() < ROOM:
        found |= dict(rig.engine.advance())
    for i, which in enumerate((0, 1, 1, 0, 1)):
        assert found[i].nll == pytest.approx(alone[which].nll, rel=1e-6)
        assert found[i].tokens == alone[which].tokens


def test_every_request_looks_at_the_carried_model(folders, rigs):
    """Scores, answers, losses and outputs, against plain peft."""
    rig = rigs["llama"]
    x, carry = rig.somewhere(size=0.2), tiny.carried(rig.adapted, 3, size=0.3)
    model, examples = tiny.widened(folders["llama"], rig.layout, x, carry), BATCHES[0]
    pairs = [tiny.nll_alone(model, one) for one in examples]
    nll, count = sum(nll for nll, _ in pairs), sum(count for _, count in pairs)
    scores = rig.ask(Evaluate(x, rig.layout, examples, ("loss",), 2, 3, carry))
    assert scores.nll == pytest.approx(nll, rel=1e-5)
    assert rig.ask(Probe([x], rig.layout, examples, carry)) == [pytest.approx(nll / count, rel=1e-5)]
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([one.ids])).logits[0, len(one.prompt) - 1 : -1] for one in examples]
    assert torch.allclose(rig.ask(Logits(x, rig.layout, examples, carry)), torch.cat(rows), atol=1e-4)
    prompt = tiny.example(7, 90).ids
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert tiny.END not in ids[len(prompt) :]
    wanted = [rig.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)]
    assert rig.ask(Generate(x, rig.layout, [prompt], 1, 6, carry)) == wanted
    assert rig.ask(Generate(x, rig.layout, [prompt], 1, 6)) != wanted


# -- training


@FAMILIES
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_to_the_factors_through_it(folders, family, checkpointing):
    """The plain loop over a wider adapter of which only the first columns train."""
    rig = tiny.Rig(folders[family], ALL, checkpointing=checkpointing)
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 3)
    run = rig.ask(rig.descend(x, carry=carry, batches=BATCHES[:1], lrs=[0.1], gradient=True))
    model = tiny.widened(folders[family], rig.layout, x, carry)
    tiny.batch_loss(model, BATCHES[0]).backward()
    for leaf in rig.layout.leaves:
        whole = model.get_submodule(f"base_model.model.{leaf.module}.lora_{leaf.factor}.default").weight.grad
        wanted = whole[: leaf.shape[0]] if leaf.factor == "A" else whole[:, : leaf.shape[1]]
        found = rig.layout.views(run.gradient)[leaf.name]
        assert wanted.norm() > 1e-4
        assert distance(found, wanted) < 1e-4, leaf.name
    assert distance(run.y - x, -0.1 * run.gradient) < 1e-5


def test_a_training_over_a_carry_is_one_over_a_base_that_holds_it(folders, tmp_path):
    """Four steps of AdamW with dropout; the base's folder is written with the products inside."""
    adapter = LoraConfig(rank=4, targets="all-linear", dropout=0.2)
    rig = tiny.Rig(folders["llama"], adapter)
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 2)
    changed = tiny.plain(folders["llama"])
    for i, name in enumerate(rig.adapted.extras):
        changed.get_submodule(name).weight.data += carry[2 * i] @ carry[2 * i + 1]
    changed.save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    other = tiny.Rig(tmp_path, adapter)
    adamw = OptimizerConfig(name="adamw", weight_decay=0.1, args={"eps": 1e-5})
    run = rig.ask(rig.descend(x, carry=carry, optimizer=adamw, max_grad_norm=0.5))
    wanted = other.ask(other.descend(x, optimizer=adamw, max_grad_norm=0.5))
    moved = float((wanted.y - x).norm())
    assert moved > 1e-3
    assert float((run.y - wanted.y).norm()) < 1e-3 * moved
    assert run.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert distance(rig.ask(rig.descend(x, optimizer=adamw, max_grad_norm=0.5)).y, run.y) > 1e-4


@FAMILIES
def test_recomputed_activations_give_the_same_bits(folders, family):
    adapter = LoraConfig(rank=4, targets="all-linear", dropout=0.3)
    kept, recomputed = (tiny.Rig(folders[family], adapter, checkpointing=c) for c in (False, True))
    x, carry = kept.somewhere(), tiny.carried(kept.adapted, 3)
    wanted = kept.descend(x, carry=carry, gradient=True)
    one, other = kept.ask(wanted), recomputed.ask(wanted)
    assert torch.equal(one.gradient, other.gradient)
    assert torch.equal(one.y, other.y)


@FAMILIES
@pytest.mark.parametrize("checkpointing", [False, True])
def test_over_a_bfloat16_base(folders, family, checkpointing):
    """Outputs stay in the base's format, the product is computed in float32, gradients reach the float32 factors."""
    rig = tiny.Rig(folders[family], ALL, checkpointing=checkpointing, dtype="bfloat16")
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 3)
    rig.adapted.load(x, carry=carry)
    found = logits(rig.adapted.module)
    exact = logits(tiny.widened(folders[family], rig.layout, x, carry))
    assert found.dtype == torch.bfloat16
    assert distance(found.float(), exact) < 0.03  # eight bits of mantissa
    bare = tiny.Rig(folders[family], ALL, dtype="bfloat16")
    bare.adapted.load(x)
    assert distance(logits(bare.adapted.module).float(), exact) > 0.1
    seen = []
    name = next(iter(rig.adapted.extras))
    layer = rig.adapted.module.get_submodule(f"base_model.model.{name}")
    hook = layer.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    run = rig.ask(rig.descend(x, carry=carry, gradient=True))
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert run.y.dtype == run.gradient.dtype == torch.float32
    exact = tiny.Rig(folders[family], ALL)
    wanted = exact.ask(exact.descend(x, carry=carry, gradient=True))
    assert distance(run.gradient, wanted.gradient) < 0.1


# -- mistakes


def broken(carry, what):
    first, second, *rest = carry
    return {
        "one factor": (first,),
        "one pair too few": tuple(rest),
        "one pair too many": (*carry, first, second),
        "factors exchanged": (second, first, *rest),
        "transposed": (first.T, second.T, *rest),
        "widths differ": (first[:, :1], second, *rest),
        "another layer's": (torch.ones(7, 2), torch.ones(2, 5), *rest),
        "no matrix": (first[:, 0], second, *rest),
        "no matrix either": (first, second[0], *rest),
    }[what]


@FAMILIES
@pytest.mark.parametrize(
    "what",
    ["one factor", "one pair too few", "one pair too many", "factors exchanged", "transposed", "widths differ",
     "another layer's", "no matrix", "no matrix either"],
)  # fmt: skip
def test_factors_that_do_not_fit_are_refused_in_words(rigs, family, what):
    rig = rigs[family]
    x, carry = rig.somewhere(), tiny.carried(rig.adapted, 3)
    rig.adapted.load(x)
    wanted = logits(rig.adapted.module)
    with pytest.raises(ValueError, match=r"carr.* does not fit"):
        rig.adapted.load(x, carry=broken(carry, what))
    rig.adapted.load(x)  # and the next client notices nothing
    assert torch.equal(logits(rig.adapted.module), wanted)


def test_a_model_trained_whole_carries_nothing(folders):
    rig = tiny.Rig(folders["llama"], FullConfig())
    with pytest.raises(ValueError, match="does not fit 0 adapted modules"):
        rig.adapted.load(rig.adapted.start, carry=(torch.ones(3, 1), torch.ones(1, 3)))
    assert rig.ask(rig.descend(rig.adapted.start, lrs=[1e-3, *LRS[1:]])).steps == 4
