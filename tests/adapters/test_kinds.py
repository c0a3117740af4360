"""Every other kind of adapter against plain peft: start, training, what is written, texts behind virtual tokens."""

import json
import math
import shutil
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file

import tiny
from fedloom.adapters import others, others_saved, virtual
from fedloom.adapters.build import adapt, save
from fedloom.adapters.config import (
    AdaLoraConfig,
    DoraConfig,
    Ia3Config,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
    VeraConfig,
    virtual_tokens,
)
from fedloom.adapters.wrapping import settings, wrap
from fedloom.contracts import Model
from fedloom.engine import generation
from fedloom.engine.config import OptimizerConfig
from fedloom.errors import UserError
from fedloom.models.load import load_skeleton

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
KINDS = {
    "prefix": PrefixConfig(tokens=5),
    "prefix zero": PrefixConfig(tokens=3, start="zero"),
    "prefix projection": PrefixConfig(tokens=4, projection=True, hidden=12),
    "prefix projection zero": PrefixConfig(tokens=4, projection=True, start="zero"),
    "prompt": PromptConfig(tokens=5),
    "prompt vocabulary": PromptConfig(tokens=5, start="vocabulary"),
    "prompt text": PromptConfig(tokens=30, start="text", text="Answer the question:"),
    "p_tuning": PTuningConfig(tokens=5, hidden=12),
    "p_tuning wide": PTuningConfig(tokens=2),
    "ia3": Ia3Config(),
    "ia3 all": Ia3Config(targets="all-linear"),
    "ia3 outputs": Ia3Config(targets="all-linear", feedforward=[]),
    "vera": VeraConfig(rank=8),
    "vera all": VeraConfig(rank=40, targets="all-linear", start=0.3),
    "dora": DoraConfig(rank=4, alpha=6, targets="all-linear"),
    "dora rslora": DoraConfig(rank=3, rslora=True),
    "adalora": AdaLoraConfig(rank=6, target_rank=2, steps=10, targets="all-linear"),
}
AT_THE_BASE = {"prompt vocabulary", "prompt text", "dora", "dora rslora"}
MANY = ["llama", "gpt2"]
kinds = pytest.mark.parametrize("kind", KINDS)
families = pytest.mark.parametrize("family", MANY)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Whole folders, and the same without weights."""
    found = {}
    for family in MANY:
        whole = tiny.saved(tmp_path_factory.mktemp(family), family)
        bare = tmp_path_factory.mktemp(f"{family}-bare") / "model"
        found[family] = whole, shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    return found


def somewhere(rig, seed=1, size=0.1):
    return rig.somewhere(seed, size)


def logits(module, ids=IDS):
    with torch.no_grad():
        found = module.eval()(input_ids=ids, use_cache=False).logits
    return found[:, found.shape[1] - ids.shape[1] :]


def plain_peft(rig, folder, config):
    """Plain peft over the plain model, holding the rig's start, its frozen factors and what it takes from the base."""
    model = tiny.plain(folder)
    with torch.random.fork_rng():
        made = peft.get_peft_model(model, settings(model, config)).eval()
    mine = dict(rig.adapted.wrapper.named_parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not parameter.requires_grad:
                continue
            ours = mine.get(name)
            if ours is None:  # shifted
                ours = rig.adapted.wrapper.get_submodule(name.removesuffix(".weight")).weight
            parameter.copy_(ours)
        if isinstance(config, VeraConfig):
            for box in ("vera_A", "vera_B"):
                getattr(made.base_model, box)["default"].copy_(getattr(rig.adapted.wrapper.base_model, box)["default"])
    return made


@kinds
@families
def test_the_layout_holds_exactly_what_is_trained(folders, family, kind):
    rig = tiny.Rig(folders[family][0], KINDS[kind])
    wanted = [(n, p) for n, p in rig.adapted.module.named_parameters() if p.requires_grad and "ranknum" not in n]
    assert [tuple(p.shape) for _, p in wanted] == [leaf.shape for leaf in rig.layout.leaves]
    assert {leaf.factor for leaf in rig.layout.leaves} == {"plain"}
    shifted = {leaf.name for leaf in rig.layout.leaves if leaf.origin == "difference"}
    assert bool(shifted) is (kind in AT_THE_BASE)
    rig.adapted.load(rig.adapted.start)
    assert torch.equal(rig.adapted.read(), rig.adapted.start)
    x = somewhere(rig)
    rig.adapted.load(x)
    assert torch.equal(rig.adapted.read(), x)
    assert all(p.data_ptr() >= rig.adapted.w.data_ptr() for _, p in wanted)


@kinds
@families
def test_a_skeleton_has_the_same_layout_and_start_and_nothing_global_is_drawn(folders, family, kind):
    config = KINDS[kind]
    before = tiny.randomness()
    real = adapt(tiny.loaded(folders[family][0]), config, 7, tokenizer=tiny.byte_tokenizer())
    skeleton = adapt(load_skeleton(tiny.config(folders[family][1])), config, 7, tokenizer=tiny.byte_tokenizer())
    assert tiny.randomness() == before
    assert skeleton.layout == real.layout
    assert torch.equal(skeleton.start, real.start)
    assert skeleton.w.device.type == "cpu"
    assert skeleton.together is None


DRAWN = [kind for kind in KINDS if not kind.startswith(("ia3", "vera", "prompt v", "prompt t", "prefix zero"))]


@pytest.mark.parametrize("kind", DRAWN)
def test_another_seed_draws_another_start(folders, kind):
    first, second, again = (adapt(tiny.loaded(folders["llama"][0]), KINDS[kind], seed).start for seed in (7, 8, 7))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@families
@pytest.mark.parametrize("kind", ["ia3", "ia3 all", "vera", "vera all", "dora", "dora rslora", "adalora"])
def test_at_the_start_the_model_is_its_base(folders, family, kind):
    rig = tiny.Rig(folders[family][0], KINDS[kind])
    rig.adapted.load(rig.adapted.start)
    assert (logits(rig.adapted.module) - logits(tiny.plain(folders[family][0]))).abs().max() < 1e-6


@kinds
@families
def test_bare_it_is_its_base_and_then_stands_where_it_stood(folders, family, kind):
    rig = tiny.Rig(folders[family][0], KINDS[kind])
    rig.adapted.load(somewhere(rig))
    here, wanted = logits(rig.adapted.module), logits(tiny.plain(folders[family][0]))
    with rig.adapted.off():
        assert torch.equal(logits(rig.adapted.module), wanted)
    assert torch.equal(logits(rig.adapted.module), here)
    assert (here - wanted).abs().max() > 1e-3
    assert all(p.requires_grad for p in rig.adapted.tensors)


@pytest.mark.parametrize("family", ["llama"])
def test_starts_have_peft_s_distributions(folders, family):
    """Mean, spread and bounds of many numbers; constants exactly."""
    folder = folders[family][0]
    cases = {
        "prompt": PromptConfig(tokens=400),
        "prefix": PrefixConfig(tokens=400),
        "p_tuning": PTuningConfig(tokens=400, hidden=300),
        "prefix projection": PrefixConfig(tokens=300, projection=True, hidden=300),
        "ia3": Ia3Config(),
        "vera": VeraConfig(rank=64),
        "dora": DoraConfig(rank=16, targets="all-linear"),
        "adalora": AdaLoraConfig(rank=16, steps=10, targets="all-linear"),
    }
    for config in cases.values():
        rig = tiny.Rig(folder, config)
        rig.adapted.load(rig.adapted.start)
        torch.manual_seed(0)
        with torch.random.fork_rng():
            fresh = peft.get_peft_model(tiny.plain(folder), wrap(tiny.plain(folder), config).peft_config["default"])
        theirs = {n: p.detach() for n, p in fresh.named_parameters() if p.requires_grad}
        for name, parameter in rig.adapted.wrapper.named_parameters():
            if name not in theirs or name.endswith("difference"):
                continue
            ours, wanted = parameter.detach(), theirs[name]
            assert math.isclose(float(ours.abs().max()), float(wanted.abs().max()), rel_tol=0.35, abs_tol=1e-6), name
            if ours.numel() > 200:
                assert math.isclose(float(ours.std()), float(wanted.std()), rel_tol=0.15, abs_tol=1e-6), name
            if ours.numel() > 2000:
                assert abs(float(ours.mean()) - float(wanted.mean())) <= 0.1 * float(wanted.std()) + 1e-6, name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@kinds
@families
def test_training_is_a_plain_loop_over_plain_peft(folders, family, kind, optimizer):
    """Two steps from the same start: batches of several lengths, clipped."""
    if kind == "adalora":
        pytest.skip("its loss has a further term and its steps a budget: tests/adapters/test_budget.py")
    rig = tiny.Rig(folders[family][0], KINDS[kind])
    x = somewhere(rig, size=0.02)
    rig.adapted.load(x)
    model = plain_peft(rig, folders[family][0], KINDS[kind])
    trained = [p for p in model.parameters() if p.requires_grad]
    began = [p.detach().clone() for p in trained]
    made = torch.optim.SGD(trained, lr=1) if optimizer == "sgd" else torch.optim.AdamW(trained, lr=1, weight_decay=0)
    losses = tiny.plain_descent(model, made, tiny.BATCHES[:2], tiny.LRS[:2], 0.5)
    run = rig.ask(
        rig.descend(
            x, batches=tiny.BATCHES[:2], lrs=tiny.LRS[:2], max_grad_norm=0.5,
            optimizer=OptimizerConfig(name=optimizer, weight_decay=0.0),
        )
    )  # fmt: skip
    moved = torch.cat([(p.detach() - was).reshape(-1) for p, was in zip(trained, began, strict=True)])
    assert float(moved.norm()) > 1e-4
    assert float((run.y - x - moved).norm()) < 1e-3 * float(moved.norm())
    assert run.loss == pytest.approx(sum(losses) / 2, rel=1e-5)


@kinds
@families
def test_plain_peft_loads_what_is_written_to_the_same_logits(folders, family, kind, tmp_path):
    folder = folders[family][0]
    rig = tiny.Rig(folder, KINDS[kind])
    x = somewhere(rig)
    save(rig.adapted, KINDS[kind], Model(x), rig.layout, str(folder), tmp_path / "deep" / "final")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = peft.PeftModel.from_pretrained(tiny.plain(folder), str(tmp_path / "deep" / "final")).eval()
    rig.adapted.load(x)
    wanted = logits(rig.adapted.module)
    assert (logits(loaded) - wanted).abs().max() < 1e-5
    assert (wanted - logits(tiny.plain(folder))).abs().max() > 1e-3
    written = json.loads((tmp_path / "deep" / "final" / "adapter_config.json").read_text())
    assert written["inference_mode"] is True
    assert written["base_model_name_or_path"] == str(folder)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in AT_THE_BASE])
def test_a_skeleton_writes_what_the_real_base_writes(folders, kind, tmp_path):
    whole, bare = folders["llama"]
    config = KINDS[kind]
    real, skeleton = (adapt(base, config, 7) for base in (tiny.loaded(whole), load_skeleton(tiny.config(bare))))
    x = real.start + 0.1 * torch.randn(real.layout.size, generator=torch.Generator().manual_seed(1))
    for name, adapted in (("real", real), ("skeleton", skeleton)):
        save(adapted, config, Model(x), adapted.layout, "owner/name", tmp_path / name)
        adapted.rest()
        save(adapted, config, Model(x), adapted.layout, "owner/name", tmp_path / f"{name} again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        found = {(tmp_path / name / file).read_bytes() for name in ("real", "skeleton", "skeleton again")}
        assert len(found) == 1


@pytest.mark.parametrize("kind", sorted(AT_THE_BASE))
def test_what_a_skeleton_cannot_write_is_completed_where_the_base_is(folders, kind, tmp_path):
    whole, bare = folders["llama"]
    config, words = KINDS[kind], tiny.byte_tokenizer()
    skeleton = adapt(load_skeleton(tiny.config(bare)), config, 7, tokenizer=words)
    x = skeleton.start + 0.1 * torch.randn(skeleton.layout.size, generator=torch.Generator().manual_seed(1))
    save(skeleton, config, Model(x), skeleton.layout, "owner/name", tmp_path)
    assert others_saved.incomplete(tmp_path)
    assert "fedloom export" in (tmp_path / "README.md").read_text()
    real = adapt(tiny.loaded(whole), config, 7, tokenizer=words)
    others_saved.complete(real, str(whole), tmp_path)
    assert not others_saved.incomplete(tmp_path)
    real.load(x)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(whole), str(tmp_path)).eval()
    assert (logits(loaded) - logits(real.module)).abs().max() < 1e-5
    other = adapt(tiny.loaded(whole), DoraConfig(rank=2), 7)
    save(skeleton, config, Model(x), skeleton.layout, "owner/name", tmp_path / "b")
    with pytest.raises(UserError, match="does not belong to this model"):
        others_saved.complete(other, str(whole), tmp_path / "b")
    with pytest.raises(UserError, match="without its weights"):
        others.numbers(skeleton)


def test_a_prompt_begins_at_its_text(folders):
    folder = folders["llama"][0]
    words = tiny.byte_tokenizer()
    config = KINDS["prompt text"]
    adapted = adapt(tiny.loaded(folder), config, 7, tokenizer=words)
    ids = (words(config.text)["input_ids"] * 9)[:30]
    adapted.load(adapted.start)
    prompt = adapted.wrapper.get_prompt(1)[0]
    assert torch.equal(prompt, tiny.plain(folder).get_input_embeddings()(torch.tensor(ids)))
    assert not adapted.start.any()
    with pytest.raises(ValueError, match="tokenizer"):
        adapt(tiny.loaded(folder), config, 7)


def test_virtual_tokens_are_those_of_peft(folders):
    for kind, config in KINDS.items():
        rig = tiny.Rig(folders["llama"][0], config)
        assert virtual.tokens(rig.adapted.module) == virtual_tokens(config), kind
    assert virtual.tokens(tiny.plain(folders["llama"][0])) == 0


@families
@pytest.mark.parametrize(
    "kind", ["prefix", "prefix projection", "prompt", "prompt vocabulary", "p_tuning", "ia3", "dora"]
)
def test_answers_are_those_of_a_loop_without_a_cache(folders, family, kind):
    """Prompts of several lengths in batches, among them one that reaches the last position."""
    rig = tiny.Rig(folders[family][0], KINDS[kind])
    rig.adapted.load(somewhere(rig, size=0.3))
    before = virtual_tokens(KINDS[kind])
    long = tiny.POSITIONS - before - 3
    prompts = [tiny.example(length, length).ids for length in (4, 9, 9, 6, 4, long, long + 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = generation.answers(rig.adapted.module, rig.tokenizer, prompts, (), 3, 6)
    for prompt, answer in zip(prompts, found, strict=True):
        ids, wanted = list(prompt), list[int]()
        for _ in range(max(0, min(6, tiny.POSITIONS - before - len(prompt)))):
            wanted.append(int(logits(rig.adapted.module, torch.tensor([ids]))[0, -1].argmax()))
            ids.append(wanted[-1])
        assert answer == rig.tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize(
    "config, words",
    [
        (DoraConfig(rank=33), "adapter.rank=33 is too large for"),
        (AdaLoraConfig(rank=33, steps=10), "adapter.rank=33 is too large for"),
        (Ia3Config(targets=["k_prj"]), "no linear layer is called k_prj"),
        (VeraConfig(targets="q_prj"), "no linear layer is called q_prj"),
        (Ia3Config(targets=["k_proj"], feedforward=["down_proj"]), "adapter.feedforward names down_proj"),
    ],
)
def test_mistakes_are_told(folders, config, words):
    for base in (tiny.loaded(folders["llama"][0]), load_skeleton(tiny.config(folders["llama"][1]))):
        with pytest.raises(UserError, match=words):
            adapt(base, config, 0)


def test_an_unknown_architecture_is_told(tmp_path):
    """peft names no layers of Phi for AdaLoRA, and none of BLOOM's MLP are made up."""
    folder = tiny.saved(tmp_path, "phi")
    with pytest.raises(UserError, match=r"adapter.targets=auto: peft names no layers for a phi; use all-linear"):
        adapt(tiny.loaded(folder), AdaLoraConfig(steps=10), 0)


def test_a_carry_is_refused(folders):
    rig = tiny.Rig(folders["llama"][0], KINDS["ia3"])
    with pytest.raises(ValueError, match="does not fit"):
        rig.adapted.load(rig.adapted.start, carry=(torch.zeros(2, 1), torch.zeros(1, 2)))


def test_projections_are_the_same_everywhere_and_in_the_file(folders, tmp_path):
    whole, bare = folders["gpt2"]
    config = KINDS["vera all"]
    adapted = [adapt(base, config, 7) for base in (tiny.loaded(whole), load_skeleton(tiny.config(bare)))]
    first, second = (one.wrapper.base_model for one in adapted)
    assert torch.equal(first.vera_A["default"], second.vera_A["default"])
    other = adapt(tiny.loaded(whole), config, 8).wrapper.base_model
    assert not torch.equal(first.vera_B["default"], other.vera_B["default"])
    layer = next(iter(others.layers(adapted[0].wrapper).values()))
    assert layer.vera_A is first.vera_A
    bound = (6 / first.vera_A["default"].shape[1]) ** 0.5
    assert 0.98 * bound < float(first.vera_A["default"].abs().max()) <= bound
    save(adapted[0], config, Model(adapted[0].start), adapted[0].layout, "base", tmp_path)
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")["base_model.vera_A"], first.vera_A["default"])
