"""Over a skeleton: the layout, start and extras of the real base to the bit, and adapters that can be written."""

import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file

import tiny
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.build import adapt, save
from fedloom.adapters.config import FullConfig, LoraConfig, RanksConfig
from fedloom.adapters.lora import resized, scale
from fedloom.adapters.ranks import Ranks
from fedloom.adapters.saved import from_peft, peft_tensors
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models.load import NANO, load_model, load_skeleton

LORA = LoraConfig(rank=4, alpha=6, targets="all-linear")
KINDS = {
    "lora": LORA,
    "auto": LoraConfig(rank=2),
    "rank 1": LORA.model_copy(update={"rank": 1}),
    "dropout": LORA.model_copy(update={"dropout": 0.1}),
    "rslora": LORA.model_copy(update={"rslora": True, "scale": "shared"}),
    "frozen A": LORA.model_copy(update={"freeze": "A"}),
    "sparse": LORA.model_copy(update={"sparse": 0.2}),
    "frozen and sparse": LORA.model_copy(update={"freeze": "A", "sparse": 0.05, "dropout": 0.2}),
    "ranks": LORA.model_copy(update={"ranks": RanksConfig(name="uniform", small=2, medium=3, large=5)}),
    "full": FullConfig(),
}
FAMILIES = [*tiny.FAMILIES, "nano"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Whole folders, and the same without weights."""
    found = {}
    for family in FAMILIES:
        whole = NANO if family == "nano" else tiny.saved(tmp_path_factory.mktemp(family), family)
        bare = tmp_path_factory.mktemp(f"{family}-bare") / "model"
        found[family] = whole, shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    return found


def both(folders, family, config, ranks=None, **model) -> tuple[Adapted, Adapted]:
    """Adapted over the real base, and over its skeleton."""
    whole, bare = folders[family]
    full = config.kind == "full"
    real = adapt(load_model(tiny.config(whole, **model), full), config, 7, ranks)
    before = tiny.randomness()
    skeleton = adapt(load_skeleton(tiny.config(bare, **model), full), config, 7, ranks)
    assert tiny.randomness() == before
    return real, skeleton


def extras(adapted):
    return [
        (name, e.outputs, e.inputs, None if e.places is None else e.places.tolist(), e.carry, e.live)
        for name, e in adapted.extras.items()
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_layout_start_and_extras_are_those_of_the_real_base(folders, family, kind):
    config = KINDS[kind]
    ranks = Ranks(config, 20, {3: 6, 4: {"*": 2}}, 7) if kind == "ranks" else None
    real, skeleton = both(folders, family, config, None if ranks is None else ranks.largest)
    assert skeleton.layout == real.layout
    assert skeleton.layout.fingerprint == real.layout.fingerprint
    assert skeleton.start.dtype == real.start.dtype
    assert skeleton.start.device.type == "cpu"
    assert torch.equal(skeleton.start, real.start)
    assert extras(skeleton) == extras(real)
    assert (skeleton.together is None) == (real.together is None)
    if ranks is not None:
        layouts = [
            resized(one.layout, ranks.of(client, list(one.extras)), lambda rank: scale(config, rank))
            for one in (real, skeleton)
            for client in (0, 3, 4)
        ]
        assert layouts[:3] == layouts[3:]
        assert len(set(layouts)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_s_number_format_plays_no_part(folders, kind):
    real, skeleton = both(folders, "llama", KINDS[kind], dtype="bfloat16")
    _, other = both(folders, "llama", KINDS[kind], dtype="float32")
    assert skeleton.layout == other.layout == real.layout
    assert torch.equal(skeleton.start, real.start)
    assert torch.equal(other.start, real.start)
    assert skeleton.w.dtype == torch.float32


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("full", "ranks")])
@pytest.mark.parametrize("family", ["llama", "tied", "gpt2"])
def test_what_is_written_is_byte_for_byte_what_the_real_base_writes(folders, family, kind, tmp_path):
    config = KINDS[kind]
    real, skeleton = both(folders, family, config)
    x = real.start + 0.1 * torch.randn(real.layout.size, generator=torch.Generator().manual_seed(1))
    model = Model(x, tiny.carried(real, 3))
    for name, adapted in (("real", real), ("skeleton", skeleton)):
        save(adapted, config, model, adapted.layout, "owner/name", tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "skeleton" / file).read_bytes() == (tmp_path / "real" / file).read_bytes()


def test_a_client_s_own_ranks_are_written_too_and_plain_peft_reads_them(folders, tmp_path):
    _, skeleton = both(folders, "llama", LORA)
    ranks = {name: 1 + i % 4 for i, name in enumerate(skeleton.extras)}
    layout = resized(skeleton.layout, ranks, lambda rank: scale(LORA, rank))
    x = 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(2))
    save(skeleton, LORA, Model(x), layout, "owner/name", tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.plain(folders["llama"][0]), str(tmp_path)).eval()
    rig = tiny.Rig(folders["llama"][0], LORA)
    rig.adapted.load(x, layout)
    ids = torch.tensor([[5, 60, 200, 33, 9]])
    with torch.no_grad():
        assert (loaded(input_ids=ids).logits - rig.adapted.module.eval()(input_ids=ids).logits).abs().max() < 1e-5
    assert from_peft(layout, load_file(tmp_path / "adapter_model.safetensors")).equal(x)


def test_an_adapter_s_numbers_go_in_and_out_and_nothing_is_left_from_before(folders):
    _, skeleton = both(folders, "llama", KINDS["rank 1"])
    assert not skeleton.read().any()
    x = torch.randn(skeleton.layout.size, generator=torch.Generator().manual_seed(3))
    skeleton.load(x)
    assert torch.equal(skeleton.read(), x)
    assert from_peft(skeleton.layout, peft_tensors(skeleton, x)).equal(x)
    frozen = {p.device.type for p in skeleton.module.parameters() if not p.requires_grad}
    assert frozen == {"meta"}


def test_mistakes_are_told_as_with_the_real_base(folders):
    for config, words in (
        (LORA.model_copy(update={"rank": 33}), "adapter.rank=33 is too large"),
        (LORA.model_copy(update={"targets": ["q_prj"]}), "no linear layer is called q_prj"),
    ):
        with pytest.raises(UserError, match=words):
            adapt(load_skeleton(tiny.config(folders["llama"][1])), config, 0)


def test_what_needs_the_weights_says_so_where_all_are_trained(folders, tmp_path):
    _, skeleton = both(folders, "llama", FullConfig())
    x = skeleton.start
    assert {t.device.type for t in (skeleton.w, skeleton.g, *skeleton.tensors)} == {"meta"}
    for asked in (lambda: skeleton.load(x), skeleton.read):
        with pytest.raises(UserError, match=r"adapter\.kind=full: .* without its weights"):
            asked()
    with pytest.raises(UserError, match=r"adapter\.kind=full: the tuned model cannot be written to .*out"):
        save(skeleton, FullConfig(), Model(x), skeleton.layout, "owner/name", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="does not fit"):
        skeleton.load(torch.zeros(3))
