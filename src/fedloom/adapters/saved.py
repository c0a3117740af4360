"""Adapters as files that plain peft loads: `peft.PeftModel.from_pretrained` gives the same logits.

What a model carries on top of its base becomes further columns of B and rows of A, so the folder's adapter has a higher
rank than the trained one. peft's names appear in the files of this folder only. Of a classifier, peft knows the model
without the head, which stands in files beside the adapter.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom.adapters import classifiers, heads, readme
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.extra import Extra
from fedloom.adapters.lora import PREFIX
from fedloom.contracts import Model
from fedloom.models.heads import Classifier
from fedloom.params import Layout, Params


def save(adapted: Adapted, model: Model, layout: Layout, base_name: str, folder: Path) -> None:
    """Write an adapter folder.

    Args:
        adapted: the model it belongs to.
        model: x [P] of the layout, and its carry; or a drift.
        layout: what x means; a client's own may have smaller ranks.
        base_name: what goes into `base_model_name_or_path`.
        folder: made when it is not there.
    """
    import copy

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    pairs = {adapted.names.get(name, name): pair for name, pair in factors(adapted, model, layout).items()}
    wrapper: Any = adapted.wrapper
    settings: Any = copy.deepcopy(wrapper.peft_config["default"])
    settings.base_model_name_or_path = base_name
    settings.inference_mode = True
    if isinstance(adapted.module, Classifier):  # loaded without a head, the base has its pooler again
        settings.exclude_modules = heads.POOLER if adapted.module.pooler else None
    _say_ranks(settings, {name: (a.shape[0], s) for name, (a, _, s) in pairs.items()})
    settings.save_pretrained(str(folder))
    tensors = {}
    for name, (a, b, _) in pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    if isinstance(adapted.module, Classifier):
        classifiers.save_head(adapted.module, folder)
    readme.write(folder, adapted.module, base_name, adapted.layers)


def factors(adapted: Adapted, model: Model, layout: Layout) -> dict[str, tuple[Tensor, Tensor, float]]:
    """By adapted module: A [k, in], B [out, k] and scale of everything on top of the base, in float32 on the CPU."""
    if model.drift is not None:
        adapted.stand(model.drift, layout)
    else:
        adapted.load(model.x, layout, model.carry)
    found, wrapper = {}, adapted.wrapper
    assert wrapper is not None
    for name, extra in adapted.extras.items():
        layer: Any = wrapper.get_submodule(PREFIX + adapted.names.get(name, name))
        scale = float(layer.scaling["default"])
        a = [layer.lora_A["default"].weight]
        b = [layer.lora_B["default"].weight]
        for left, right in _added(extra):
            a.append(right)
            b.append(left / scale)
        found[name] = (_cpu(torch.cat(a)), _cpu(torch.cat(b, dim=1)), scale)
    return found


def peft_tensors(adapted: Adapted, x: Params) -> dict[str, Tensor]:
    """The shared vector under peft's names; a head's parameters under ours."""
    views = adapted.layout.views(x)
    found = {name: view for name, view in views.items() if name.startswith(heads.PREFIX)}
    for name, (a, b, _) in factors(adapted, Model(x), adapted.layout).items():
        own = PREFIX + adapted.names.get(name, name)
        found[f"{own}.lora_A.weight"], found[f"{own}.lora_B.weight"] = a, b
    return found


def from_peft(layout: Layout, tensors: Mapping[str, Tensor]) -> Params:
    """The vector [P] of an adapter file.

    Raises:
        ValueError: its tensors are not those of the layout.
    """
    factors_ = [leaf for leaf in layout.leaves if leaf.module]
    names = {f"{PREFIX}{leaf.module}.lora_{leaf.factor}.weight": leaf.name for leaf in factors_}
    return layout.gather({names.get(name, name): tensor for name, tensor in tensors.items()})


def _added(extra: Extra) -> list[tuple[Tensor, Tensor]]:
    """Products that stand beside the adapter's own; a sparse update is its non-zero columns times unit rows."""
    pairs = [] if extra.carry is None else [extra.carry]
    if extra.live and extra.values is not None and extra.places is not None:
        from fedloom.masks import dense

        update = dense(extra.values.detach(), extra.places, extra.outputs, extra.inputs)
        columns = update.any(dim=0).nonzero().squeeze(1)
        pairs.append((update[:, columns], torch.eye(extra.inputs, device=update.device)[columns]))
    return pairs


def _say_ranks(settings: Any, modules: Mapping[str, tuple[int, float]]) -> None:
    """Write ranks and alphas into peft's settings: the commonest as the rule, the others by module.

    peft computes a module's scale from its alpha and rank, so alpha is whatever gives the scale that was trained.
    """
    said = {
        name: (rank, scale * (rank**0.5 if settings.use_rslora else rank)) for name, (rank, scale) in modules.items()
    }
    (settings.r, alpha), _ = Counter(said.values()).most_common(1)[0]
    settings.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
    others = {name: both for name, both in said.items() if both != (settings.r, alpha)}
    settings.rank_pattern = {f"^{name}$".replace(".", r"\."): rank for name, (rank, _) in others.items()}
    settings.alpha_pattern = {f"^{name}$".replace(".", r"\."): alpha for name, (_, alpha) in others.items()}


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()
