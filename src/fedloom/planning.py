"""How much memory a run will need, before anything is loaded.

Nothing is estimated that can be found out: what a model keeps for its backward pass is heard from the model itself,
which is laid out without numbers and run on tensors without numbers (torch's fake ones). Lengths of texts are those of
a sample of the rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from fedloom import plugging
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.blocks import INSIDE
from fedloom.adapters.build import adapt
from fedloom.adapters.config import AdapterConfig, FullConfig, LoraConfig
from fedloom.config import Config
from fedloom.engine.choice import SLOTS, choose, default_tokens
from fedloom.engine.config import EngineConfig, OptimizerConfig
from fedloom.models import parting, quantised
from fedloom.models.config import ModelConfig
from fedloom.models.heads import Classifier
from fedloom.models.load import Base, load_model, load_skeleton, load_tokenizer
from fedloom.models.picking import pick_device, pick_dtype
from fedloom.sides import Both, head, labelled

SAMPLE = 200
"""Rows whose lengths are looked at."""
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 0, "adagrad": 1, "rmsprop": 1, "adamax": 2, "nadam": 2, "radam": 2}
"""Vectors an optimiser keeps beside weights and gradients; others are taken to keep two."""


@dataclass(frozen=True)
class Item:
    """One part of the memory."""

    name: str
    bytes: float
    why: str


@dataclass(frozen=True)
class Texts:
    """What the rows of a client are like."""

    mean: float
    """Tokens."""
    longest: int
    learned: float
    """Share of the tokens whose likelihood is asked for."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs at its peak."""

    items: Sequence[Item]
    device: str
    slots: int
    """Clients side by side; 1: one after the other."""
    tokens: int
    """Of one pass."""
    each: float
    """Bytes of one more client side by side."""
    per_token: float
    """Bytes that a token of a pass needs."""
    free: float
    """Bytes there are on the device, for this process; infinite where nobody says."""

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(item.bytes for item in self.items)

    @property
    def fitting(self) -> int:
        """Clients side by side that fit, all else as it is; only where `free` is known."""
        return max(0, self.slots + math.floor((self.free - self.total) / self.each))


def plan(config: Config) -> MemoryPlan:
    """The memory of a simulation, or of a client of a deployment, in one process.

    Raises:
        UserError: model or data of the recipe are not there.
    """
    side = Both()
    tokenizer = side.tokenizer(config)
    data = side.data(config, tokenizer)
    config, texts = labelled(config, data.labels), sampled(data, config)
    whole = isinstance(config.adapter, FullConfig)
    base, adapter, owner = _model(config, whole)
    device = pick_device(config.model.device)
    dtype = torch.float32 if whole else _dtype(config, device)
    alone = whole or config.engine.name == "reference"
    weights, widest = _weights(base, dtype, config), _widest(base.module)
    adapted = adapt(base, adapter, config.seed, tokenizer=tokenizer)
    slots = 1 if alone or adapted.together is None else config.engine.slots or SLOTS
    micro = math.ceil(config.local.batch_size / config.local.accumulate)
    tokens = _tokens(config, device, base, texts, micro, shared=slots > 1, seats=slots)
    rows = max(1, round(tokens / (texts.longest if slots == 1 else texts.mean)))
    length = math.ceil(tokens / rows)
    seen = kept(adapted, dtype, rows, length, config.model.gradient_checkpointing)
    vocabulary = _vocabulary(base.module)
    learned = texts.learned if config.objective.name != "classify" else 0.0
    libraries = warm(dtype) if device.type == "cpu" else 0.0
    size = adapted.layout.size
    vectors = 2 + _moments(config.local.optimizer)
    own = f"{slots} x {size:,} numbers x {vectors} (weights, gradients, optimiser)"
    words = f"{tokens * learned:.0f} tokens x {vocabulary:,} words, in float32"
    items = [
        Item("libraries", libraries, "Python, torch and others, once they have computed something"),
        Item("base", weights, f"{base.parameters / 1e6:.1f} M numbers"),
        Item("clients", 4.0 * size * vectors * slots, own),
        Item("messages", 4.0 * size * (2 * slots + 8), "given, sent back, the server's vectors and sums, the model's"),
        Item("activations", float(seen), f"a pass of {rows} x {length} tokens, heard from the model"),
        Item("answers", tokens * learned * vocabulary * (12 + dtype.itemsize), words),
        Item("working space", 3.0 * tokens * widest * dtype.itemsize, "the widest layer, forward and backward"),
    ]
    per_token = sum(item.bytes for item in items[4:]) / tokens
    if owner is not None:
        items.append(Item("owner's model", _weights(owner, dtype, config), "to be scored with the clients' blocks"))
    each = 4.0 * size * (vectors + 2)
    return MemoryPlan(items, str(device), slots, tokens, each, per_token, _free(device))


def _model(config: Config, whole: bool) -> tuple[Base, AdapterConfig, Base | None]:
    """Skeleton of what is trained, its adapter, and the owner's model where there is one beside it."""
    longest, offsite = config.data.max_length, config.offsite
    own = load_skeleton(config.model, whole, longest, head(config))
    if offsite is None:
        return own, config.adapter, None
    found = parting.emulated(config.model, offsite, whole, longest, skeleton=True)
    inside = plugging.adapter(config.adapter, offsite, found.plan.adapter)
    return found.base, inside, own if whole or offsite.evaluate != "emulator" else None


def sampled(data: Any, config: Config) -> Texts:
    """Lengths of some training rows of all clients."""
    per = max(1, SAMPLE // max(1, len(data.clients)))
    sizes, learned = list[int](), list[float]()
    for client in data.clients[:SAMPLE]:
        for one in client.get("train")[:per]:
            sizes.append(one.size)
            labels = getattr(one, "labels", None)
            learned.append(sum(label != -100 for label in labels) / len(labels) if labels else 0.5)
    if not sizes:
        return Texts(config.data.max_length, config.data.max_length, 0.5)
    return Texts(fmean(sizes), max(sizes), fmean(learned))


def kept(adapted: Adapted, dtype: torch.dtype, rows: int, length: int, checkpointing: bool = False) -> int:
    """Bytes a model over a skeleton keeps for the backward pass of some texts, besides its own numbers.

    Args:
        adapted: the model with its adapter.
        dtype: of the base.
        rows: texts.
        length: tokens of each.
        checkpointing: only what stands between the blocks is kept, and then all of one block.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    module: Any = adapted.module
    trained = {id(tensor) for tensor in adapted.tensors}
    with FakeTensorMode(allow_non_fake_inputs=True):
        numbers: dict[str, Tensor] = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            shape = tuple(tensor.shape)
            if id(tensor) in trained:
                leaf = next(
                    leaf for leaf, one in zip(adapted.layout.leaves, adapted.tensors, strict=True) if one is tensor
                )
                shape = leaf.shape
            kind = tensor.dtype if id(tensor) in trained or not tensor.is_floating_point() else dtype
            numbers[name] = torch.empty(shape, dtype=kind, device="cpu", requires_grad=id(tensor) in trained)
        ids = torch.zeros(rows, length, dtype=torch.long)
        before = module.training
        module.train()
        found = _heard(module, numbers, ids)
        if checkpointing:  # blocks' inputs, and whatever one block keeps while it is computed again
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            found = _heard(module, numbers, ids) + found // module.config.get_text_config().num_hidden_layers
            module.gradient_checkpointing_disable()
        module.train(before)
    return found


def _heard(module: nn.Module, numbers: dict[str, Tensor], ids: Tensor) -> int:
    known = {tensor.untyped_storage()._cdata for tensor in numbers.values()}
    seen: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            seen[storage._cdata] = storage  # held, so that no other storage is given its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        if isinstance(module, Classifier):  # its head keeps next to nothing
            inside = {name.removeprefix(INSIDE): tensor for name, tensor in numbers.items() if name.startswith(INSIDE)}
            functional_call(module.backbone, inside, kwargs={"input_ids": ids})
        else:
            functional_call(module, numbers, kwargs={"input_ids": ids, "use_cache": False})
    return sum(storage.nbytes() for storage in seen.values())


def _tokens(
    config: Config, device: torch.device, base: Base, texts: Texts, micro: int, *, shared: bool, seats: int
) -> int:
    """Tokens of the largest pass."""
    if not shared:
        return micro * texts.longest
    budget = config.engine.tokens_per_step or default_tokens(device, base.parameters)
    own = math.ceil(micro * texts.mean)
    return max(own, min(budget, own * seats))


def _dtype(config: Config, device: torch.device) -> torch.dtype:
    from transformers import AutoConfig

    from fedloom.models.load import location
    from fedloom.models.picking import pick_attention

    settings = AutoConfig.from_pretrained(location(config.model.name), revision=config.model.revision)
    attention = pick_attention(config.model.attention, device, config.data.max_length)
    return pick_dtype(config.model.dtype, device, False, getattr(settings, "hidden_size", None), attention)


def _weights(base: Base, dtype: torch.dtype, config: Config) -> float:
    """Bytes of the frozen model."""
    total = 0.0
    module: Any = base.module
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    inside = {
        id(layer.weight)
        for layer in module.modules()
        if config.model.quantize is not None and isinstance(layer, nn.Linear) and layer is not output
    }
    for parameter in module.parameters():
        each = float(dtype.itemsize)
        if id(parameter) in inside:
            each = 1.0 if config.model.quantize == "int8" else 0.5 + 4 / 64
        total += parameter.numel() * each
    return total


def _vocabulary(module: Any) -> int:
    return int(getattr(module.config.get_text_config(), "vocab_size", 0))


def _widest(module: nn.Module) -> int:
    """Outputs of the widest linear layer inside the model."""
    output: Any = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # type: ignore[operator]
    kinds = [layer for layer in module.modules() if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"]
    return max((max(quantised.shape(layer)) for layer in kinds if layer is not output), default=0)


def _moments(optimizer: OptimizerConfig) -> int:
    name = optimizer.name.lower()
    if name == "sgd":
        return int(bool(optimizer.args.get("momentum", 0)))
    return MOMENTS.get(name, 2)


def warm(dtype: torch.dtype) -> float:
    """Bytes this process holds once it has trained the embedded model a little: libraries only show what they take when
    they compute.
    """
    base = load_model(ModelConfig(dtype="bfloat16" if dtype == torch.bfloat16 else "float32", device="cpu"))
    adapted = adapt(base, LoraConfig(), 0)
    choose(EngineConfig(), adapted, load_tokenizer(ModelConfig()), (), optimizer=OptimizerConfig(), dtype=base.dtype,
           parameters=base.parameters, attention=base.attention)  # fmt: skip
    return resident()


def resident() -> float:
    """Bytes this process holds now."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 550e6  # where there is no /proc: what these libraries take on Linux


def _free(device: torch.device) -> float:
    """Bytes there are for this process."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024 + resident()
    except OSError:
        pass
    return math.inf
