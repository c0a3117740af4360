"""LoRA through peft: which linear layers get factors, how they start, and how ranks and scales differ by client.

Hu et al. 2021, https://arxiv.org/abs/2106.09685: W x + (alpha / r) B A x, A [r, in] random, B [out, r] zero. The layout
calls factors `<module>.A` and `<module>.B`. With `freeze: A` the first factor stays where it started and is no leaf
(FFA-LoRA, Sun et al. 2024, https://arxiv.org/abs/2403.12313); with `sparse` each layer has a sparse update `<module>.S`
besides (SLoRA, Babakniya et al. 2023, https://arxiv.org/abs/2308.06522). Of a classifier the model inside is adapted;
its head is trained whole, in leaves `head.<parameter>` behind all others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedloom import lowrank, masks
from fedloom.adapters import heads
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.blocks import Called, own, within
from fedloom.adapters.config import LoraConfig
from fedloom.adapters.dropout import KeyedDropout, Moment
from fedloom.adapters.extra import Extra
from fedloom.adapters.together import Piece, Place, fitted, switched
from fedloom.contracts import Carry
from fedloom.errors import UserError, nearest
from fedloom.models.heads import Classifier
from fedloom.models.load import Base, quiet
from fedloom.params import Layout, Leaf

PREFIX = "base_model.model."
ENCODERS = {
    "albert": ["query", "value"],
    "camembert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
    "mpnet": ["q", "v"],
}
"""Attention projections of encoders that peft has no names for, by kind of model."""
Ranks = Callable[[list[str]], Mapping[str, int]]
"""The largest rank any client holds, by adapted module."""


def adapt(base: Base, config: LoraConfig, seed: int, ranks: Ranks | None = None, called: Called = own) -> Adapted:
    """Wrap the base's linear layers; the base itself stays frozen and shared.

    Args:
        base: the model, or its skeleton.
        config: kind of adapter.
        seed: where the factors start.
        ranks: of the shared adapter, by module; None: the configured one everywhere.
        called: what the layout calls an adapted module; by that name its numbers are drawn, too.

    Raises:
        UserError: a target names no linear layer, or the rank is too large for one.
    """
    wrapped = _wrapped(base.module, config)
    adapted = {name.removeprefix(PREFIX): one for name, one in wrapped.named_modules() if hasattr(one, "lora_A")}
    found = {called(name): layer for name, layer in adapted.items()}
    names = {called(name): name for name in adapted if called(name) != name}
    if base.skeleton:
        _fetch(found.values())
    shared = ranks(list(found)) if ranks is not None else dict.fromkeys(found, config.rank)
    full = Layout.of([leaf for name, layer in found.items() for leaf in _pair(name, layer, config, shared[name])])
    start, moment = lowrank.start(full, seed), Moment()
    layers = [_Layer(name, layer, config, seed, moment) for name, layer in found.items()]
    leaves, tensors = list[Leaf](), list[nn.Parameter]()
    for layer in layers:
        for leaf, tensor in layer.trainable(full):
            leaves.append(leaf)
            tensors.append(tensor)
    views = full.views(start)
    for layer in layers:
        layer.freeze(views)
    module, head = wrapped, list[str]()
    if isinstance(base.module, Classifier):
        module, head = base.module, [name for name, _ in base.module.head.named_parameters()]
        for leaf, tensor in heads.trainable(base.module):
            leaves.append(leaf)
            tensors.append(tensor)
        views |= heads.start(base.module)
    layout = Layout.of(leaves)
    first = layout.gather({leaf.name: views.get(leaf.name, torch.zeros(leaf.shape)) for leaf in layout.leaves})
    extras = {layer.name: layer.extra for layer in layers}

    def rescale(now: Layout) -> None:
        for layer in layers:
            layer.rescale(now)

    share(layers, moment)
    wrapped.eval()
    together = LoraTogether(layers, head)
    return Adapted(module, layout, tensors, first, moment, extras, rescale, together, wrapped, base.layers, names)


def _wrapped(module: Any, config: LoraConfig) -> Any:
    """The model with factors beside its linear layers, inside peft's wrapper; of a classifier, only its backbone."""
    from peft import get_peft_model

    settings = peft_config(module, config)
    module = module.backbone if isinstance(module, Classifier) else module
    with torch.random.fork_rng(), quiet():  # peft draws A from the global generator; ours are drawn later
        try:
            return get_peft_model(module, settings)
        except ValueError as error:
            why = str(error)
    if settings.target_modules is None:
        why = (
            f"peft names no layers for a {module.config.model_type}; use all-linear, or names of linear layers "
            f"({', '.join(linear_names(module)[:6])})"
        )
    raise UserError(f"adapter.targets={config.targets}: {why}")


def share(layers: "Sequence[_Layer]", moment: Moment) -> None:
    """Let every adapted layer serve several clients while the moment says so."""
    for number, layer in enumerate(layers):
        weight = layer.a.weight
        anchor = weight.new_zeros(()).requires_grad_()
        place = Place(layer.name, number, layer.layer.base_layer, layer.config.dropout, layer.extra.places, anchor)
        layer.layer.forward = switched(layer.layer, moment, place)


class LoraTogether:
    """What a client's row means for the adapted layers (`fedloom.adapters.together.Together`)."""

    def __init__(self, layers: "Sequence[_Layer]", head: Sequence[str] = ()) -> None:
        self.layers, self.head = layers, head

    def pieces(self, w: Tensor, g: Tensor | None, layout: Layout) -> list[Piece]:
        """Views of a row w [P] and its gradients g [P], layer by layer."""
        values, grads = layout.views(w), layout.views(g) if g is not None else {}
        scales = {leaf.module: leaf.scale for leaf in layout.leaves if leaf.factor == "B"}
        found = []
        for layer in self.layers:
            a, b, s = (f"{layer.name}.{part}" for part in "ABS")
            first = values[a] if layer.frozen is None else layer.frozen.to(w.dtype)
            found.append(
                Piece(first, values[b], scales[layer.name], grads.get(a), grads.get(b), values.get(s), grads.get(s))
            )
        return found

    def carry(self, pieces: Sequence[Piece], carry: Carry) -> None:
        """Set what the client carries on top of the base, or nothing."""
        shapes = [(layer.extra.outputs, layer.extra.inputs) for layer in self.layers]
        for piece, pair in zip(pieces, fitted(carry, shapes, pieces[0].b), strict=True):
            piece.carry = pair

    def heads(self, w: Tensor, g: Tensor | None, layout: Layout) -> dict[str, Tensor]:
        """Views of a row w [P] by the names of the head's parameters; with g [P], leaves whose gradients are in it."""
        if not self.head:
            return {}
        return heads.views(self.head, layout.views(w.detach()), layout.views(g) if g is not None else None)


def resized(layout: Layout, ranks: Mapping[str, int], scale: Callable[[int], float]) -> Layout:
    """The layout of a client whose modules have these ranks.

    Args:
        layout: the shared one.
        ranks: by adapted module.
        scale: what the product is multiplied with, by rank.
    """
    leaves = []
    for leaf in layout.leaves:
        if leaf.factor == "plain":
            leaves.append(leaf)
            continue
        rank = ranks[leaf.module]
        shape = (rank, leaf.shape[1]) if leaf.factor == "A" else (leaf.shape[0], rank)
        leaves.append(replace(leaf, shape=shape, scale=scale(rank)))
    return Layout.of(leaves)


def scale(config: LoraConfig, rank: int) -> float:
    """What the product is multiplied with: alpha / r, or alpha / sqrt(r), with its own rank or the shared one."""
    r = config.rank if config.scale == "shared" else rank
    return float(config.alpha / (r**0.5 if config.rslora else r))


def peft_config(module: Any, config: LoraConfig) -> Any:
    """Peft's own settings object for these settings."""
    import peft

    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    if isinstance(targets, list) or targets not in ("auto", "all-linear"):
        targets = [targets] if isinstance(targets, str) else targets
        check_targets(module.backbone if isinstance(module, Classifier) else module, targets)
    if targets == "auto":
        targets = ENCODERS.get(module.config.model_type, "auto")
    if config.layers is not None:
        targets = _inside(module.backbone if isinstance(module, Classifier) else module, targets, config.layers)
    pooler = isinstance(module, Classifier) and getattr(module.backbone, "pooler", None) is not None
    conv1d = any(type(layer).__name__ == "Conv1D" for layer in module.modules())
    return peft.LoraConfig(
        r=1,  # the tensors become views of our buffers, of whatever rank the layout says
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        target_modules=None if targets == "auto" else targets,
        fan_in_fan_out=conv1d,
        exclude_modules=heads.POOLER if pooler else None,
        task_type="FEATURE_EXTRACTION" if isinstance(module, Classifier) else "CAUSAL_LM",
    )


class _Layer:
    """One adapted layer: its tensors, and what hangs on it."""

    def __init__(self, name: str, layer: Any, config: LoraConfig, seed: int, moment: Moment) -> None:
        self.name, self.layer, self.config, self.seed = name, layer, config, seed
        self.a, self.b = layer.lora_A["default"], layer.lora_B["default"]
        self.frozen: Tensor | None = None
        self.extra = Extra(self.b.weight.shape[0], self.a.weight.shape[1], moment)
        self.extra.hang(layer)
        if config.dropout:
            layer.lora_dropout["default"] = KeyedDropout(config.dropout, name, moment)

    def trainable(self, full: Layout) -> list[tuple[Leaf, nn.Parameter]]:
        """Leaves and their tensors."""
        known = {leaf.name: leaf for leaf in full.leaves}
        pair = [(known[f"{self.name}.A"], self.a.weight), (known[f"{self.name}.B"], self.b.weight)]
        if self.config.freeze == "A":
            pair = pair[1:]
        if self.config.sparse is not None:
            pair.append(self._sparse(self.config.sparse))
        return pair

    def freeze(self, start: Mapping[str, Tensor]) -> None:
        """Keep A where it starts, when it is no leaf."""
        if self.config.freeze == "A":
            self.frozen = start[f"{self.name}.A"].to(self.a.weight)
            self.a.weight.requires_grad_(False)
            self.a.weight.data = self.frozen

    def rescale(self, layout: Layout) -> None:
        """Follow a layout: its scale."""
        leaf = next(leaf for leaf in layout.leaves if leaf.module == self.name and leaf.factor == "B")
        self.layer.scaling["default"] = leaf.scale

    def _sparse(self, density: float) -> tuple[Leaf, nn.Parameter]:
        extra = self.extra
        extra.places = masks.entries(self.seed, self.name, extra.outputs, extra.inputs, density)
        extra.places = extra.places.to(self.a.weight.device)
        extra.values = nn.Parameter(self.a.weight.new_zeros(len(extra.places)))
        return Leaf(f"{self.name}.S", (len(extra.places),), module=self.name), extra.values


def _pair(name: str, layer: Any, config: LoraConfig, rank: int) -> list[Leaf]:
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    _check_rank(config, name, rank, a.shape[1], b.shape[0])
    common: dict[str, Any] = {
        "module": name,
        "scale": scale(config, rank),
        "transposed": bool(getattr(layer, "fan_in_fan_out", False)),
    }
    return [
        Leaf(f"{name}.A", (rank, a.shape[1]), factor="A", **common),
        Leaf(f"{name}.B", (b.shape[0], rank), factor="B", **common),
    ]


def _fetch(layers: Iterable[Any]) -> None:
    """Put factors on the CPU, as zeros: peft puts them where the base is, and a skeleton is nowhere."""
    for layer in layers:
        for factor in (layer.lora_A["default"], layer.lora_B["default"]):
            factor.to_empty(device="cpu")
            nn.init.zeros_(factor.weight)


def check_targets(module: nn.Module, targets: list[str]) -> None:
    """Whether these name linear layers.

    Raises:
        UserError: one does not.
    """
    linear = [n for n, m in module.named_modules() if _is_linear(m)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = linear_names(module)
            raise UserError(f"adapter.targets: no linear layer is called {target}.{nearest(target, known)}")


def _inside(module: Any, targets: str | list[str], layers: Sequence[int]) -> str | list[str]:
    """Whole names of the targets in these blocks: peft's own way of choosing blocks knows numbers in names only."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    inside = within(module, layers, "adapter.layers")
    if targets == "auto":
        if module.config.model_type not in known:
            return targets  # peft will say so
        targets = list(known[module.config.model_type])
    names = [name for name, part in module.named_modules() if _is_linear(part) and inside(name)]
    if targets != "all-linear":
        names = [name for name in names if any(name.endswith(f".{target}") or name == target for target in targets)]
    if not names:
        raise UserError(f"adapter.layers={list(layers)}: no linear layer in these blocks is one of adapter.targets")
    return names


def linear_names(module: nn.Module) -> list[str]:
    """Last parts of the names of all linear layers."""
    return sorted({name.rpartition(".")[2] for name, part in module.named_modules() if _is_linear(part)})


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _check_rank(config: LoraConfig, module: str, rank: int, inputs: int, outputs: int) -> None:
    setting = f"adapter.rank={rank}" if rank == config.rank else f"rank {rank} (of adapter.ranks or of a client)"
    if rank > min(inputs, outputs):
        raise UserError(
            f"{setting} is too large for {module} ({outputs} x {inputs}); choose at most "
            f"{min(inputs, outputs)}, or leave this layer out of adapter.targets"
        )
