"""LoRA through peft: which linear layers get factors, how they start, and how they are saved.

Hu et al. 2021, https://arxiv.org/abs/2106.09685: W x + (alpha / r) B A x, A [r, in] random, B [out, r] zero. peft's
names appear in this file only; the layout calls factors `<module>.A` and `<module>.B`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom import rng
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.config import LoraConfig
from fedloom.adapters.dropout import KeyedDropout, Moment
from fedloom.errors import UserError, nearest
from fedloom.models.load import Base, quiet
from fedloom.params import Layout, Leaf, Params

PREFIX = "base_model.model."


def adapt(base: Base, config: LoraConfig, seed: int) -> Adapted:
    """Wrap the base's linear layers; the base itself stays frozen and shared.

    Raises:
        UserError: a target names no linear layer, or the rank is too large for one.
    """
    from peft import get_peft_model

    settings = peft_config(base.module, config)
    with torch.random.fork_rng(), quiet():  # peft draws A from the global generator; ours are drawn below
        try:
            module = get_peft_model(base.module, settings)
        except ValueError as error:
            raise UserError(f"adapter.targets={config.targets}: {error}") from None
    pairs = {name: layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}
    moment, leaves, tensors = Moment(), [], []
    for name, layer in pairs.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        short = name.removeprefix(PREFIX)
        _check_rank(short, config.rank, a.shape[1], b.shape[0])
        common: dict[str, Any] = {
            "module": short,
            "scale": float(layer.scaling["default"]),
            "transposed": bool(getattr(layer, "fan_in_fan_out", False)),
        }
        leaves += [
            Leaf(f"{short}.A", tuple(a.shape), factor="A", **common),
            Leaf(f"{short}.B", tuple(b.shape), factor="B", **common),
        ]
        tensors += [a, b]
        if config.dropout:
            layer.lora_dropout["default"] = KeyedDropout(config.dropout, short, moment)
    layout = Layout.of(leaves)
    return Adapted(module, layout, tensors, start_vector(layout, seed), moment)


def peft_config(module: nn.Module, config: LoraConfig) -> Any:
    """Peft's own settings object for these settings."""
    import peft

    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    if isinstance(targets, list) or targets not in ("auto", "all-linear"):
        targets = [targets] if isinstance(targets, str) else targets
        _check_targets(module, targets)
    conv1d = any(type(layer).__name__ == "Conv1D" for layer in module.modules())
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        target_modules=None if targets == "auto" else targets,
        fan_in_fan_out=conv1d,
        task_type="CAUSAL_LM",
    )


def start_vector(layout: Layout, seed: int) -> Params:
    """[P]: A uniform in ±1/sqrt(in) (peft's own rule), B zero; the same on every machine."""
    start = torch.zeros(layout.size)
    for leaf in layout.leaves:
        if leaf.factor == "A":
            values = rng.uniform(rng.key(seed, "lora start", leaf.name), *leaf.shape) * 2 - 1
            start[leaf.offset : leaf.offset + leaf.size] = (values / leaf.shape[1] ** 0.5).reshape(-1)
    return start


def save(adapted: Adapted, x: Params, base_name: str, folder: Path) -> None:
    """Write an adapter folder that `peft.PeftModel.from_pretrained` loads to the same logits.

    Args:
        adapted: the model it belongs to.
        x: [P].
        base_name: what goes into `base_model_name_or_path`.
        folder: made when it is not there.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = adapted.module.peft_config["default"]  # type: ignore[index]
    settings.base_model_name_or_path = base_name
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    save_file(peft_tensors(adapted.layout, x), str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def peft_tensors(layout: Layout, x: Params) -> dict[str, Tensor]:
    """The vector under peft's names."""
    views = layout.views(x.detach().float().cpu())
    return {
        f"{PREFIX}{leaf.module}.lora_{leaf.factor}.weight": views[leaf.name].clone().contiguous()
        for leaf in layout.leaves
    }


def from_peft(layout: Layout, tensors: Mapping[str, Tensor]) -> Params:
    """The vector [P] of an adapter file.

    Raises:
        ValueError: its tensors are not those of the layout.
    """
    names = {f"{PREFIX}{leaf.module}.lora_{leaf.factor}.weight": leaf.name for leaf in layout.leaves}
    return layout.gather({names.get(name, name): tensor for name, tensor in tensors.items()})


def _check_targets(module: nn.Module, targets: list[str]) -> None:
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(f"adapter.targets: no linear layer is called {target}.{nearest(target, known)}")


def _check_rank(module: str, rank: int, inputs: int, outputs: int) -> None:
    if rank > min(inputs, outputs):
        raise UserError(
            f"adapter.rank={rank} is too large for {module} ({outputs} x {inputs}); choose at most "
            f"{min(inputs, outputs)}, or leave this layer out of adapter.targets"
        )
