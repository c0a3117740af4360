"""A base in 8 or 4 bits: products, gradients, both engines, skeletons; needs bitsandbytes."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import tiny
from fedloom.adapters.build import adapt, save
from fedloom.adapters.config import LoraConfig
from fedloom.assembly import Parts
from fedloom.config import load
from fedloom.contracts import Model
from fedloom.errors import UserError
from fedloom.models import quantised
from fedloom.models.config import ModelConfig
from fedloom.models.identity import frame, kin
from fedloom.models.load import NANO, load_model, load_skeleton

pytest.importorskip("bitsandbytes", reason="needs the extra `quant`")
KINDS = ("int8", "nf4")
IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def nano(kind: str | None, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(name="nano", quantize=kind, dtype=dtype)  # type: ignore[arg-type]


def test_outputs_are_near_and_weights_small(kind: str) -> None:
    whole, small = load_model(nano(None)).module, load_model(nano(kind)).module
    wanted, found = whole(input_ids=IDS).logits, small(input_ids=IDS).logits
    assert 0 < float((wanted - found).norm() / wanted.norm()) < (0.2 if kind == "nf4" else 0.05)
    layers = {name: layer for name, layer in small.named_modules() if quantised.held(layer)}
    assert len(layers) == 7 * whole.config.num_hidden_layers  # embeddings and head stay as they are
    held = sum(_bytes(layer) for layer in layers.values())
    before = sum(4 * whole.get_submodule(name).weight.numel() for name in layers)
    assert held <= (0.30 if kind == "nf4" else 0.40) * before


def _bytes(layer: torch.nn.Module) -> int:
    """All tensors a layer keeps, those of bitsandbytes' records too."""
    weight = layer.weight
    state = getattr(weight, "quant_state", None)
    more = [getattr(weight, "SCB", None)] if state is None else list(state.as_dict().values())
    tensors = [weight.data, *(t for t in more if isinstance(t, torch.Tensor))]
    return sum(t.numel() * t.element_size() for t in tensors)


def test_a_layer_is_the_product_of_what_its_numbers_stand_for(kind: str) -> None:
    module = load_model(nano(kind)).module
    layer = module.get_submodule("model.layers.1.mlp.down_proj")
    weight = quantised.dense(layer, torch.float32)
    exact = load_model(nano(None)).module.get_submodule("model.layers.1.mlp.down_proj").weight
    assert weight.shape == exact.shape
    step = exact.abs().amax(dim=1, keepdim=True) / 127 if kind == "int8" else exact.abs().max() / 4
    assert ((weight - exact).abs() <= step * 0.51).all()
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = layer(x)
    assert torch.equal(y, functional.linear(x, weight))
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(g, torch.ones(5, weight.shape[0]) @ weight)
    assert torch.equal(layer(x[2:3].repeat(4, 1))[:1], layer(x)[2:3]), "a text's result is its own"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_after_an_evaluation(kind: str, dtype: str) -> None:
    """bitsandbytes alone gives none on CPUs that multiply bfloat16, once it evaluated."""
    adapted = adapt(load_model(nano(kind, dtype)), LoraConfig(rank=2), seed=0)
    module = adapted.module
    with torch.no_grad():
        module.eval()
        module(input_ids=IDS)
    adapted.load(adapted.start)
    adapted.parameters(None)
    module(input_ids=IDS, labels=IDS).loss.backward()
    assert float(adapted.g.norm()) > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_skeleton_has_the_layout_and_start_of_the_loaded_base(tmp_path: Path, kind: str, family: str) -> None:
    folder = tiny.saved(tmp_path, family)
    config = ModelConfig(name=str(folder), quantize=kind, dtype="float32")  # type: ignore[arg-type]
    lora = LoraConfig(rank=2, targets="all-linear")
    whole, bones = adapt(load_model(config), lora, 3), adapt(load_skeleton(config), lora, 3)
    assert whole.layout.fingerprint == bones.layout.fingerprint
    assert torch.equal(whole.start, bones.start)
    assert load_model(config).parameters == load_model(ModelConfig(name=str(folder))).parameters


def test_a_quantised_base_is_told_from_others_by_what_all_have(kind: str) -> None:
    small, whole = load_model(nano(kind)).module, load_model(nano(None)).module
    assert frame(small) == frame(whole)
    assert kin(small) == kin(load_model(nano(kind)).module)
    assert kin(small).endswith(f"@{kind}")
    assert not kin(small).startswith(kin(whole))
    with torch.no_grad():
        whole.model.norm.weight[0] += 1
    assert frame(small) != frame(whole)


def run_parts(kind: str, *more: str) -> Parts:
    return Parts(load("quickstart", [f"model.quantize={kind}", "model.dtype=float32", *more]))


def test_clients_side_by_side(kind: str) -> None:
    """`auto` checks gradients of the shared pass against the plain loop, and would say why it does not use it."""
    parts = run_parts(kind)
    assert parts.engine.startswith("slots"), parts.engine
    assert "neighbours change no bit" in parts.engine


def test_an_adapter_of_a_quantised_base_loads_with_peft(tmp_path: Path, kind: str) -> None:
    import transformers
    from peft import PeftModel

    config = LoraConfig(rank=2)
    adapted = adapt(load_model(nano(kind)), config, seed=0)
    x = adapted.start + 0.05 * torch.randn(adapted.layout.size, generator=torch.Generator().manual_seed(2))
    save(adapted, config, Model(x), adapted.layout, str(NANO), tmp_path / "adapter")
    adapted.load(x)
    wanted = adapted.module(input_ids=IDS).logits
    settings = quantised.settings(kind, torch.float32)  # type: ignore[arg-type]
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        NANO, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}
    )
    for layer in plain.modules():
        layer.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16 here, whatever is asked
    found = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))(input_ids=IDS).logits
    far = float((wanted - found).detach().norm() / wanted.detach().norm())
    assert far < (1e-5 if kind == "nf4" else 0.03), "bitsandbytes rounds inputs of int8 layers, we do not"


def test_a_model_without_linear_layers_inside_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layer that can be quantised"):
        quantised.attach(torch.nn.Sequential(torch.nn.LayerNorm(4)))


def test_without_the_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"bitsandbytes and accelerate, which are not installed; pip install"):
        load_model(nano("nf4"))
