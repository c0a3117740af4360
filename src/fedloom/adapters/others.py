"""Kinds of adapters besides LoRA, through peft: prefix, prompt, p-tuning, (IA)^3, VeRA, DoRA and AdaLoRA.

What is federated are the trained parameters themselves, by name, each a plain leaf: `<module>.<part>` for what hangs on
a linear layer, `prompt.<parameter>` for what makes virtual tokens, `head.<parameter>` for a classifier's head. They are
not peft's state dict, which holds other things (of p-tuning the tokens without the network that makes them). Where a
tensor begins at numbers of the base its leaf is a difference to them (`shifted`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.adapters import heads, starts
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.budget import Budget
from fedloom.adapters.config import (
    AdaLoraConfig,
    DoraConfig,
    Ia3Config,
    OtherConfig,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
    TargetConfig,
    VeraConfig,
)
from fedloom.adapters.dropout import KeyedDropout, Moment
from fedloom.adapters.lora import PREFIX
from fedloom.adapters.wrapping import wrap
from fedloom.errors import UserError
from fedloom.models.heads import Classifier
from fedloom.models.load import Base
from fedloom.params import Layout, Leaf

PARTS = {
    "lora_A": "A", "lora_B": "B", "lora_E": "E", "lora_magnitude_vector": "magnitude",
    "ia3_l": "scale", "vera_lambda_b": "b", "vera_lambda_d": "d",
}  # fmt: skip
"""Last part of a leaf's name, by what peft calls it."""
ENCODER = "prompt_encoder.default."


@dataclass(frozen=True)
class Part:
    """A trained parameter."""

    name: str
    """Of its leaf."""
    peft: str
    """In an adapter file; empty where peft writes what it makes of the parameter."""
    tensor: nn.Parameter
    shifted: bool
    """Whether it is a difference to the base."""


def adapt(base: Base, config: OtherConfig, seed: int, tokenizer: Any = None) -> Adapted:
    """Wrap the base; it stays frozen and shared.

    Args:
        base: the model, or its skeleton.
        config: which kind.
        seed: where it starts.
        tokenizer: the model's, for a prompt that starts from a text; else it may be None.

    Raises:
        UserError: the kind does not fit the model, or a target names no linear layer.
    """
    if isinstance(base.module, Classifier) and isinstance(config, PromptConfig | PTuningConfig | PrefixConfig):
        raise UserError(
            f"adapter.kind={config.kind}: virtual tokens would count as text where a text is pooled; with "
            "objective=classify use lora, dora, ia3 or vera"
        )
    wrapped = wrap(base.module, config)
    _begin_at_the_base(wrapped, base, config, seed, tokenizer)
    if base.skeleton:
        _fetch(wrapped)
    if isinstance(config, VeraConfig):
        _project(wrapped, config, seed)
    found = list(parts(wrapped))
    layout = Layout.of([_leaf(part) for part in found])
    _check_ranks(layout, config)
    first, tensors, module, moment = starts.start(layout, config, seed), [p.tensor for p in found], wrapped, Moment()
    if isinstance(base.module, Classifier):
        module = base.module
        pairs = heads.trainable(base.module)
        layout = Layout.of([*layout.leaves, *(leaf for leaf, _ in pairs)])
        tensors += [tensor for _, tensor in pairs]
        first |= heads.start(base.module)
    if isinstance(config, TargetConfig):
        _key_dropout(wrapped, config, moment)
    wrapped.eval()
    return Adapted(
        module, layout, tensors, layout.gather(first), moment, wrapper=wrapped, layers=base.layers, shifts=True,
        bare=lambda: _bare(wrapped, config), apart=f"adapters of kind {config.kind} are trained one client at a time",
        budget=Budget(wrapped, config) if isinstance(config, AdaLoraConfig) else None,
    )  # fmt: skip


def parts(wrapped: Any) -> Iterator[Part]:
    """Everything that is trained inside peft's wrapper, in the order of the model."""
    for path, tensor in wrapped.named_parameters():
        shifted = path.endswith(".difference")
        if path.startswith(ENCODER):
            inner = path.removeprefix(ENCODER)
            yield Part("prompt." + (inner.replace(".difference", ".weight")), "", tensor, shifted)
            continue
        words = path.split(".")
        place = next((i for i, word in enumerate(words) if word in PARTS and words[i + 1 : i + 2] == ["default"]), None)
        if place is None:
            continue
        module = ".".join(words[:place]).removeprefix(PREFIX)
        written = ".".join([*words[: place + 1], *(["weight"] if words[-1] == "weight" else [])])
        yield Part(f"{module}.{PARTS[words[place]]}", written, tensor, shifted)


def layers(wrapped: Any) -> dict[str, Any]:
    """The linear layers peft put something around, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix(PREFIX): module
        for name, module in wrapped.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def _leaf(part: Part) -> Leaf:
    return Leaf(part.name, tuple(part.tensor.shape), origin="difference" if part.shifted else "value")


def _begin_at_the_base(wrapped: Any, base: Base, config: OtherConfig, seed: int, tokenizer: Any) -> None:
    """Let what begins at numbers of the base be trained as a difference to them."""
    from fedloom.adapters.shifted import Magnitude, PromptRows

    if isinstance(config, DoraConfig):
        for layer in layers(wrapped).values():
            old = layer.lora_magnitude_vector["default"]
            layer.lora_magnitude_vector["default"] = Magnitude(old.fan_in_fan_out, old.weight)
    if isinstance(config, PromptConfig | PTuningConfig):
        table, width = wrapped.word_embeddings, wrapped.peft_config["default"].token_dim
        if table is None or table.embedding_dim != width:
            raise UserError(
                f"adapter.kind={config.kind}: the token vectors of {base.name} are not as wide as its layers "
                f"({width}), and virtual tokens stand among them; use prefix or lora"
            )
        if isinstance(config, PromptConfig) and config.start != "random":
            ids = _begun(config, seed, table.num_embeddings, tokenizer, base.skeleton)
            with torch.no_grad():
                rows = table(torch.tensor(ids, device=table.weight.device))
            wrapped.prompt_encoder["default"].embedding = PromptRows(rows)


def _begun(config: PromptConfig, seed: int, known: int, tokenizer: Any, skeleton: bool) -> list[int]:
    """Which tokens of the base virtual ones begin as."""
    if config.start == "vocabulary" or skeleton:  # a skeleton has no numbers to look up
        return starts.vocabulary(seed, config.tokens, known)
    if tokenizer is None:
        raise ValueError("a prompt that starts from a text needs the tokenizer")
    ids = list(tokenizer(config.text)["input_ids"])
    if not ids:
        raise UserError(f"adapter.text={config.text!r}: the tokenizer makes no token of it; take another text")
    return (ids * (config.tokens // len(ids) + 1))[: config.tokens]


def _fetch(wrapped: Any) -> None:
    """Put what is trained on the CPU, as zeros: peft puts it where the base is, and a skeleton is nowhere."""
    for path in [name for name, p in wrapped.named_parameters() if p.requires_grad and p.is_meta]:
        owner, _, name = path.rpartition(".")
        module = wrapped.get_submodule(owner)
        setattr(module, name, nn.Parameter(torch.zeros(getattr(module, name).shape)))


def _project(wrapped: Any, config: VeraConfig, seed: int) -> None:
    """Put our draws in the place of peft's shared factors."""
    model = wrapped.base_model
    inputs, outputs = model.vera_A["default"].shape[1], model.vera_B["default"].shape[0]
    where = next(part.tensor for part in parts(wrapped))
    for box, drawn in zip((model.vera_A, model.vera_B), starts.projections(config, seed, inputs, outputs), strict=True):
        box["default"] = drawn.to(where)


def _key_dropout(wrapped: Any, config: TargetConfig, moment: Moment) -> None:
    if isinstance(config, Ia3Config) or not config.dropout:
        return
    for name, layer in layers(wrapped).items():
        box = layer.vera_dropout if isinstance(config, VeraConfig) else layer.lora_dropout
        box["default"] = KeyedDropout(config.dropout, name, moment)


def _check_ranks(layout: Layout, config: OtherConfig) -> None:
    """A rank beyond a layer's width adds nothing but traffic."""
    if not isinstance(config, DoraConfig | AdaLoraConfig):
        return
    widths = {leaf.name: leaf.shape[1 if leaf.name.endswith(".A") else 0] for leaf in layout.leaves}
    name, least = min(
        ((name, width) for name, width in widths.items() if name.endswith((".A", ".B"))), key=lambda pair: pair[1]
    )
    if config.rank > least:
        raise UserError(
            f"adapter.rank={config.rank} is too large for {name.rpartition('.')[0]}, which is {least} wide on one "
            f"side; choose at most {least}, or leave this layer out of adapter.targets"
        )


@contextmanager
def _bare(wrapped: Any, config: OtherConfig) -> Iterator[None]:
    """Within, the model computes as its base: for most of these kinds no numbers of the adapter mean that."""
    if not isinstance(config, TargetConfig):
        with wrapped.disable_adapter():
            yield
        return
    inside = list(layers(wrapped).values())
    for layer in inside:  # peft's own switch turns off gradients too, and looks through the whole model
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in inside:
            layer._disable_adapters = False


def numbers(adapted: Adapted) -> dict[str, Tensor]:
    """What stands in the model, by peft's names, as an adapter file has it: float32, on the CPU.

    Raises:
        UserError: a difference to the base is needed in full, and the base is a skeleton.
    """
    wrapped: Any = adapted.wrapper
    if hasattr(wrapped, "prompt_encoder"):
        with torch.no_grad():
            return {"prompt_embeddings": _cpu(wrapped.get_prompt_embedding_to_save("default"))}
    found = {}
    for part in parts(wrapped):
        tensor: Tensor = part.tensor
        if part.shifted:
            tensor = wrapped.get_submodule(part.peft + ".default").weight
        found[part.peft] = _cpu(tensor)
    for name in ("vera_A", "vera_B"):
        if hasattr(wrapped.base_model, name):
            found[f"base_model.{name}"] = _cpu(getattr(wrapped.base_model, name)["default"])
    return found


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone().contiguous()
