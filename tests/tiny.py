"""Tiny random models in folders of their own, examples, and one-call engines; small enough for loops by hand."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported: nothing here may reach for a network

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from data.tiny_tokenizers import byte_tokenizer
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.build import adapt
from fedloom.adapters.config import AdapterConfig, LoraConfig
from fedloom.adapters.lora import Ranks
from fedloom.contracts import Call
from fedloom.data.encode import Encoded
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend
from fedloom.models.config import ModelConfig
from fedloom.models.load import Base, load_model, load_tokenizer
from fedloom.params import Layout, Leaf, Params

transformers.utils.logging.disable_progress_bar()

VOCAB, END, POSITIONS = 261, 1, 128
_SIZE = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS, "bos_token_id": END, "eos_token_id": END, "pad_token_id": 0,
}  # fmt: skip
_GQA = {**_SIZE, "intermediate_size": 48, "num_key_value_heads": 2, "attention_dropout": 0.1}
_GPT = {"vocab_size": VOCAB, "n_layer": 2, "n_head": 4, "bos_token_id": END, "eos_token_id": END}

FAMILIES: Mapping[str, Callable[[], Any]] = {  # with dropout wherever a family has some: fedloom must switch it off
    "llama": lambda: transformers.LlamaConfig(**_GQA),
    "tied": lambda: transformers.LlamaConfig(**_GQA, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**_GQA),
    "gemma": lambda: transformers.GemmaConfig(**_GQA, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GQA, head_dim=8, sliding_window=6),
    "phi": lambda: transformers.PhiConfig(
        **_SIZE, intermediate_size=48, resid_pdrop=0.1, embd_pdrop=0.1, attention_dropout=0.1
    ),
    "gpt2": lambda: transformers.GPT2Config(**_GPT, n_embd=32, n_positions=POSITIONS),  # 0.1 three times by default
    "opt": lambda: transformers.OPTConfig(
        **_SIZE, ffn_dim=48, word_embed_proj_dim=32, dropout=0.1, attention_dropout=0.1, layerdrop=0.5
    ),
    "bloom": lambda: transformers.BloomConfig(**_GPT, hidden_size=32, hidden_dropout=0.1, attention_dropout=0.1),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **_SIZE, intermediate_size=48, hidden_dropout=0.1, attention_dropout=0.1
    ),
}


def saved(folder: Path, family: str, **changes: Any) -> Path:
    """A random model of the family with its tokenizer, as a Hugging Face folder."""
    settings = FAMILIES[family]()
    settings.update(changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(settings)
        for parameter in model.parameters():  # wide enough that logits and gradients are no rounding noise
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def config(folder: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": str(folder), "dtype": "float32", "device": "cpu", **changes})


def loaded(folder: Path, trained_whole: bool = False, **changes: Any) -> Base:
    return load_model(config(folder, **changes), trained_whole)


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The folder's model as transformers gives it, without a line of fedloom."""
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype).eval()


class Rig:
    """An adapted model with its engine, asked one thing at a time."""

    def __init__(
        self,
        folder: Path,
        adapter: AdapterConfig | None = None,
        *,
        checkpointing: bool = False,
        ranks: Ranks | None = None,
        **model: Any,
    ) -> None:
        self.adapter = adapter or LoraConfig(rank=4, targets="all-linear")
        self.base = loaded(folder, self.adapter.kind == "full", **model)
        self.adapted: Adapted = adapt(self.base, self.adapter, 7, ranks, tokenizer=byte_tokenizer())
        self.layout: Layout = self.adapted.layout
        self.tokenizer = load_tokenizer(config(folder))
        self.engine = Reference(self.adapted, self.tokenizer, (END,), checkpointing)

    def ask(self, request: Any) -> Any:
        self.engine.admit(Call(0, request))
        try:
            ((client, result),) = self.engine.advance()
        finally:
            self.engine.abandon()  # as the driver does; a call that broke would otherwise be served again
        assert client == 0
        return result

    def descend(self, start: Params, **changes: Any) -> Descend:
        """Four steps of plain SGD without clipping, unless told otherwise."""
        request = Descend(
            start, self.layout, BATCHES, LRS, OptimizerConfig(name="sgd"), None, 1, 11, "client 0, round 1"
        )
        return replace(request, **changes)

    def somewhere(self, seed: int = 0, size: float = 0.05) -> Params:
        """A point where no factor is zero."""
        return self.adapted.start + size * torch.randn(self.layout.size, generator=torch.Generator().manual_seed(seed))


def example(length: int, seed: int, learned: int | None = None, category: str | None = None) -> Encoded:
    """Random bytes of which the last `learned` (half, where not said) are the answer."""
    source = random.Random(seed)
    ids = tuple(source.randrange(5, VOCAB) for _ in range(length))
    prompt = length - (length // 2 if learned is None else learned)
    return Encoded(ids, (-100,) * prompt + ids[prompt:], ids[:prompt], "?", category)


def batch(*lengths: int, seed: int = 0) -> list[Encoded]:
    return [example(length, 100 * seed + place) for place, length in enumerate(lengths)]


BATCHES = (batch(9, 14, 5, seed=1), batch(12, 3, seed=2), batch(7, 16, 8, 4, seed=3), batch(6, seed=4))
"""Batches of different sizes and lengths."""
LRS = (0.004, 0.008, 0.012, 0.012)


# -- what must come out, written without fedloom


def right_padded(examples: Sequence[Encoded]) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels as transformers wants them; another filling than fedloom's."""
    width = max(len(one.ids) for one in examples)
    rows = [(list(e.ids), [1] * len(e.ids), list(e.labels), width - len(e.ids)) for e in examples]
    return {
        "input_ids": torch.tensor([ids + [17] * more for ids, _, _, more in rows]),
        "attention_mask": torch.tensor([real + [0] * more for _, real, _, more in rows]),
        "labels": torch.tensor([labels + [-100] * more for _, _, labels, more in rows]),
    }


def batch_loss(model: nn.Module, examples: Sequence[Encoded]) -> Tensor:
    """Token mean, by the model's own loss."""
    return model(**right_padded(examples)).loss


def nll_alone(model: nn.Module, one: Encoded) -> tuple[float, int]:
    """Summed negative log-likelihood of one example's labels, fed by itself; and how many there are."""
    with torch.no_grad():
        log = F.log_softmax(model(input_ids=torch.tensor([one.ids])).logits[0].double(), dim=-1)
    pairs = [(t - 1, label) for t, label in enumerate(one.labels) if t > 0 and label != -100]
    return -sum(float(log[t, label]) for t, label in pairs), len(pairs)


def peft_model(folder: Path, layout: Layout, x: Params, **settings: Any) -> Any:
    """Plain peft over the plain model, holding the vector; `settings` are peft's."""
    model = plain(folder)
    gpt2 = type(model).__name__.startswith("GPT2")
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=gpt2, **settings)).eval()
    with torch.no_grad():
        for leaf in layout.leaves:
            factor = made.get_submodule(f"base_model.model.{leaf.module}.lora_{leaf.factor}.default")
            assert tuple(factor.weight.shape) == leaf.shape
            factor.weight.copy_(x[leaf.offset : leaf.offset + leaf.size].reshape(leaf.shape))
    return made


def carried(adapted: Adapted, width: int, seed: int = 0, size: float = 0.1) -> tuple[Tensor, ...]:
    """A product of this width for every adapted module."""
    source, found = torch.Generator().manual_seed(seed), []
    for extra in adapted.extras.values():
        found.append(size * torch.randn(extra.outputs, width, generator=source))
        found.append(size * torch.randn(width, extra.inputs, generator=source))
    return tuple(found)


def widened(folder: Path, layout: Layout, x: Params, carry: Sequence[Tensor]) -> Any:
    """Plain peft whose one adapter holds both, A over R and B beside L; all modules with the same ranks."""
    rank, width, scale = layout.leaves[0].shape[0], carry[1].shape[0], layout.leaves[0].scale
    views = layout.views(x)
    a, b = ([leaf for leaf in layout.leaves if leaf.factor == factor] for factor in "AB")
    leaves, tensors = list[Leaf](), dict[str, Tensor]()
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        tensors[one.name] = torch.cat([views[one.name], carry[2 * i + 1]])
        tensors[other.name] = torch.cat([views[other.name], carry[2 * i] / scale], dim=1)
        leaves += [replace(leaf, shape=tuple(tensors[leaf.name].shape)) for leaf in (one, other)]
    wide = Layout.of(leaves)
    modules = sorted({leaf.module for leaf in leaves})
    return peft_model(
        folder, wide, wide.gather(tensors), r=rank + width, lora_alpha=scale * (rank + width), target_modules=modules
    )


def vector_of(model: nn.Module, layout: Layout) -> Params:
    """A plain peft model's factors in the order of the layout."""
    names = [f"base_model.model.{leaf.module}.lora_{leaf.factor}.default.weight" for leaf in layout.leaves]
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(names) == sorted(trainable)
    return torch.cat([trainable[name].detach().reshape(-1) for name in names])


def plain_descent(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Sequence[Encoded]],
    lrs: Sequence[float],
    clip: float | None,
) -> list[float]:
    """The loop everybody writes: loss, backward, clip, step. Losses of the steps; the model is trained in place."""
    losses = []
    trainable = [p for p in model.parameters() if p.requires_grad]
    for examples, lr in zip(batches, lrs, strict=True):
        optimizer.zero_grad()
        loss = batch_loss(model, examples)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(trainable, clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.item())
    return losses


def randomness() -> tuple[Any, ...]:
    """The state of every global generator."""
    name, keys, *rest = numpy.random.get_state()  # noqa: NPY002  # the global one is the one to be left alone
    return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), tuple(rest)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def sft_losses(module: torch.nn.Module, examples: Sequence[Any]) -> torch.Tensor:
    """Loss of every labelled token of some examples, in one padded pass."""
    from fedloom.engine.padded import collate, said
    from fedloom.objectives.sft import Sft

    return -torch.cat(said(module, collate(Sft().texts(examples), 0, torch.device("cpu")), "logprob"))
