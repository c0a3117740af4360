"""One adapted model asked through several engines: what a client gets must not depend on who serves it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import tiny
from fedloom.adapters.build import adapt
from fedloom.adapters.config import AdapterConfig, LoraConfig
from fedloom.adapters.lora import Ranks, resized
from fedloom.adapters.lora import scale as scale_of
from fedloom.contracts import Call, ClientFailed, Trained
from fedloom.data.encode import Encoded
from fedloom.engine.attention import Way
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend
from fedloom.engine.slots import Slots
from fedloom.models.heads import HeadSpec
from fedloom.models.load import load_model, load_tokenizer
from fedloom.objectives.base import Objective
from fedloom.params import Layout, Params
from tiny import END

ALL = LoraConfig(rank=4, targets="all-linear")
QV = LoraConfig(rank=4, targets=["q_proj", "v_proj"])
SGD = OptimizerConfig(name="sgd")
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.1, args={"eps": 1e-5})  # does not magnify rounding noise
SILENT = replace(tiny.example(8, 900), labels=(-100,) * 8)
"""No token of it is learned."""

_SIZE = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": tiny.POSITIONS, "head_dim": 8,
    "bos_token_id": END, "eos_token_id": END, "pad_token_id": 0, "attention_dropout": 0.1,
}  # fmt: skip
MORE: Mapping[str, Callable[[], Any]] = {  # besides `tiny.FAMILIES`
    "mistral": lambda: transformers.MistralConfig(**_SIZE, sliding_window=6),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZE),
    "gemma2": lambda: transformers.Gemma2Config(
        **_SIZE, sliding_window=6, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=8
    ),
}


def saved(folder: Path, family: str, **changes: Any) -> Path:
    """A random model of one of all the families."""
    if family in tiny.FAMILIES:
        return tiny.saved(folder, family, **changes)
    return written(folder, MORE[family]())


def written(folder: Path, settings: Any) -> Path:
    """A random model of this configuration with a tokenizer, as a Hugging Face folder."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(settings)
        for parameter in model.parameters():  # wide enough that logits and gradients are no rounding noise
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


class Pair:
    """An adapted model with its plain engine, and as many shared ones as are asked for."""

    def __init__(
        self,
        folder: Path,
        adapter: AdapterConfig = ALL,
        *,
        double: bool = False,
        attention: str = "eager",
        plain: bool | None = None,
        ranks: Ranks | None = None,
        objective: Objective | None = None,
        head: HeadSpec | None = None,
        **model: Any,
    ) -> None:
        self.adapter, self.plain = adapter, attention == "eager" if plain is None else plain
        self.objective = objective
        self.base = load_model(tiny.config(folder, attention=attention, **model), head=head)
        if double:
            self.base.module.double()
        self.adapted = adapt(self.base, adapter, 7, ranks)
        self.layout: Layout = self.adapted.layout
        self.tokenizer = load_tokenizer(tiny.config(folder))
        self.dtype = torch.float64 if double else torch.float32

    def reference(self, checkpointing: bool = False) -> Reference:
        return Reference(self.adapted, self.tokenizer, (END,), checkpointing, self.objective)

    def slots(self, slots: int = 8, tokens: int = 1024, checkpointing: bool = False) -> Slots:
        way: Way = "plain" if self.plain else "fused"
        return Slots(self.adapted, self.tokenizer, (END,), slots, tokens, checkpointing, way, self.objective)

    def of_rank(self, rank: int) -> Layout:
        """The layout of a client with this rank everywhere."""
        modules = {leaf.module for leaf in self.layout.leaves}
        return resized(self.layout, dict.fromkeys(modules, rank), lambda r: scale_of(self.adapter, r))

    def somewhere(self, seed: int = 0, layout: Layout | None = None, size: float = 0.05) -> Params:
        """A point where no factor is zero, of any layout."""
        layout = layout or self.layout
        source = torch.Generator().manual_seed(1000 + seed)
        start = self.layout.views(self.adapted.start)
        parts = {leaf.name: start[leaf.name][tuple(slice(n) for n in leaf.shape)] for leaf in layout.leaves}
        noise = torch.randn(layout.size, generator=source, dtype=torch.float64)
        return (layout.gather(parts, torch.float64) + size * noise).to(self.dtype)

    def descend(self, seed: int = 0, **changes: Any) -> Descend:
        """Four steps of plain SGD without clipping, unless told otherwise, from a point of its own."""
        layout = changes.get("layout", self.layout)
        start = changes.pop("start", None)
        request = Descend(
            self.somewhere(seed, layout) if start is None else start, layout, tiny.BATCHES, tiny.LRS, SGD, None, 1,
            11 + seed, f"client {seed}, round 1",
        )  # fmt: skip
        return replace(request, **changes)


def serve(engine: Any, requests: Sequence[Any], order: Sequence[int] | None = None) -> list[Any]:
    """Ask all, in this order as long as there is room; the results in the order of the requests."""
    waiting = list(range(len(requests)) if order is None else order)
    assert sorted(waiting) == list(range(len(requests)))
    found: dict[int, Any] = {}
    try:
        while len(found) < len(requests):
            while waiting and engine.room() > 0:
                client = waiting.pop(0)
                engine.admit(Call(client, requests[client]))
            for client, result in engine.advance():
                assert client not in found
                found[client] = result
        return [found[i] for i in range(len(requests))]
    finally:
        engine.abandon()


def one(engine: Any, request: Any) -> Any:
    return serve(engine, [request])[0]


def tensors(run: Trained) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a result by name."""
    yield "y", run.y
    if run.gradient is not None:
        yield "gradient", run.gradient
    yield from (run.inner or {}).items()


def figures(run: Trained) -> tuple[Any, ...]:
    """What is left without the tensors."""
    return run.steps, run.lr_sum, run.examples, run.tokens, run.loss, run.skipped


def same(found: Any, wanted: Any) -> None:
    """Not a bit differs, in nothing a client is given."""
    assert type(found) is type(wanted), f"{found} is not {wanted}"
    if isinstance(wanted, ClientFailed):
        assert found.missing == wanted.missing
        return
    assert figures(found) == figures(wanted), f"{figures(found)} is not {figures(wanted)}"
    ours, theirs = dict(tensors(found)), dict(tensors(wanted))
    assert list(ours) == list(theirs), "names of tensors"
    wrong = {name: int((ours[name] != theirs[name]).sum()) for name in theirs}
    assert not any(wrong.values()), f"numbers that differ: { {n: k for n, k in wrong.items() if k} }"


def all_same(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    assert len(found) == len(wanted)
    for client, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        try:
            same(ours, theirs)
        except AssertionError as error:
            raise AssertionError(f"client {client}: {error}") from None


def close(found: Any, wanted: Any, tolerance: float) -> None:
    """Equal counts; tensors to this relative difference."""
    assert type(found) is type(wanted), f"{found} is not {wanted}"
    if isinstance(wanted, ClientFailed):
        assert found.missing.reason == wanted.missing.reason
        return
    counts = ("steps", "skipped", "examples", "tokens")
    for name in counts:
        assert getattr(found, name) == getattr(wanted, name), name
    assert abs(found.lr_sum - wanted.lr_sum) <= 1e-12 * abs(wanted.lr_sum), "lr_sum"
    assert (found.loss is None) is (wanted.loss is None), "loss"
    if wanted.loss is not None:
        assert abs(found.loss - wanted.loss) <= tolerance * abs(wanted.loss), f"{found.loss} {wanted.loss}"
    ours, theirs = dict(tensors(found)), dict(tensors(wanted))
    assert sorted(ours) == sorted(theirs), "names of tensors"
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert ours[name].shape == value.shape, name
        if bool(value.any()):
            apart = tiny.distance(ours[name].double(), value.double())
            assert apart <= tolerance, f"{name}: {apart:.2e} apart"
        else:
            assert not bool(ours[name].any()), name


def all_close(found: Sequence[Any], wanted: Sequence[Any], tolerance: float) -> None:
    assert len(found) == len(wanted)
    for client, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        try:
            close(ours, theirs, tolerance)
        except AssertionError as error:
            raise AssertionError(f"client {client}: {error}") from None


@contextmanager
def norms_in_double() -> Iterator[None]:
    """RMS norms compute in float32 whatever they are given; here in the numbers' own format."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm

    def llama(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def gemma(self: Any, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)

    kept = LlamaRMSNorm.forward, MistralRMSNorm.forward, Gemma2RMSNorm.forward
    LlamaRMSNorm.forward, MistralRMSNorm.forward, Gemma2RMSNorm.forward = llama, llama, gemma
    try:
        yield
    finally:
        LlamaRMSNorm.forward, MistralRMSNorm.forward, Gemma2RMSNorm.forward = kept


def rows(seed: int, *lengths: int) -> list[Encoded]:
    return tiny.batch(*lengths, seed=seed)
