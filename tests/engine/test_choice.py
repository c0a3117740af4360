"""Which engine a recipe gets for which model, and that the reason is said."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tiny
from engine import pair
from engine.pair import SGD, Pair
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.engine import choice
from fedloom.engine.choice import Chosen, choose, default_tokens, difference, row_invariant
from fedloom.engine.config import EngineConfig, OptimizerConfig
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Evaluate
from fedloom.engine.slots import Slots
from fedloom.errors import UserError

FAMILIES = {**tiny.FAMILIES, **pair.MORE}
PLAIN_LOOP = {"bloom"}
"""Families that clients cannot share a pass of: its attention is its own. Any other fallback is a defect."""
NO_SDPA = {"gemma2"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: pair.saved(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


def chosen(p: Pair, optimizer: OptimizerConfig = SGD, **settings: Any) -> Chosen:
    return choose(
        EngineConfig(**settings), p.adapted, p.tokenizer, (tiny.END,), optimizer=optimizer, dtype=p.base.dtype,
        parameters=p.base.parameters, attention="eager" if p.plain else "sdpa",
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(folders, family, attention):
    """Slots wherever they are right, which the first training shows again."""
    if family in PLAIN_LOOP | NO_SDPA and attention == "sdpa":
        attention = None
    p = Pair(folders[family], LoraConfig(rank=2, targets="all-linear"), attention=attention or "auto")
    found = chosen(p)
    assert isinstance(found.engine, Reference if family in PLAIN_LOOP else Slots), found.words
    assert found.config.name == ("reference" if family in PLAIN_LOOP else "slots")
    assert found.why
    asked = [p.descend(i, optimizer=pair.ADAMW) for i in range(3)]
    pair.all_close(pair.serve(found.engine, asked), pair.serve(p.reference(), asked), 1e-5)


def test_what_is_demanded_but_wrong_is_refused(folders):
    p = Pair(folders["bloom"], attention="auto")
    with pytest.raises(UserError, match=r"engine\.name=slots"):
        chosen(p, name="slots")
    assert isinstance(chosen(p, name="reference").engine, Reference)


def test_what_is_demanded_and_right_is_given(folders):
    p = Pair(folders["llama"])
    for name, kind in (("slots", Slots), ("reference", Reference)):
        found = chosen(p, name=name)
        assert type(found.engine) is kind
        assert found.config.name == name
        assert name in found.words


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_optimisers_that_look_at_a_whole_tensor(folders, name):
    p = Pair(folders["llama"])
    found = chosen(p, OptimizerConfig(name=name))
    assert isinstance(found.engine, Reference)
    assert name in found.words.lower()
    with pytest.raises(UserError, match=rf"(?is)slots.*{name}|{name}.*slots"):
        chosen(p, OptimizerConfig(name=name), name="slots")


@pytest.mark.parametrize("name", ["sgd", "adam", "AdamW", "adagrad", "rmsprop"])
def test_optimisers_that_look_at_numbers(folders, name):
    assert isinstance(chosen(Pair(folders["llama"]), OptimizerConfig(name=name)).engine, Slots)


def test_a_model_trained_whole(folders):
    p = Pair(folders["llama"], attention="auto")
    base = tiny.loaded(folders["llama"], True)
    p.adapted = pair.adapt(base, FullConfig(), 7)
    found = chosen(p)
    assert isinstance(found.engine, Reference)
    assert "reference" in found.words
    assert found.why
    with pytest.raises(UserError, match=r"engine\.name=slots"):
        chosen(p, name="slots")


@pytest.mark.parametrize("adapter", [LoraConfig(rank=2, dropout=0.5), LoraConfig(freeze="A"), LoraConfig(sparse=0.1)],
                         ids=["dropout", "frozen", "sparse"])  # fmt: skip
@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_adapters_and_settings(folders, adapter, checkpointing):
    p = Pair(folders["qwen2"], adapter)
    found = choose(
        EngineConfig(), p.adapted, p.tokenizer, (tiny.END,), optimizer=SGD, dtype=torch.float32,
        parameters=p.base.parameters, checkpointing=checkpointing, attention="eager",
    )  # fmt: skip
    assert isinstance(found.engine, Slots), found.words


def test_a_base_in_bfloat16_passes_the_check(folders):
    for family in ("llama", "gpt2"):
        p = Pair(folders[family], dtype="bfloat16")
        assert isinstance(chosen(p).engine, Slots)


# -- models that are not what they seem


def across_texts(p: Pair) -> None:
    """A layer adds the mean over everything in its row, whoever's text it is."""
    layer = p.base.module.transformer.h[0].mlp
    layer.register_forward_hook(lambda m, x, y: y + x[0].mean(1, keepdim=True))


def counts_for_itself(p: Pair) -> None:
    """The model does not heed where it is told that tokens stand; its positions are absolute."""
    p.base.module.transformer.wpe.register_forward_pre_hook(lambda m, args: (torch.arange(args[0].shape[-1])[None],))


def looks_back(p: Pair) -> None:
    """A layer mixes a token with the one before, as recurrent models do."""

    def mixed(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        before = nn.functional.pad(inputs[0], (0, 0, 1, 0))[:, :-1]
        return output + 0.5 * before

    p.base.module.transformer.h[0].mlp.register_forward_hook(mixed)


LIARS = {f.__name__: f for f in (across_texts, counts_for_itself, looks_back)}


@pytest.mark.parametrize("kind", LIARS)
def test_a_model_that_looks_at_its_neighbours_is_found_out(folders, kind):
    p = Pair(folders["gpt2"])
    LIARS[kind](p)
    assert difference(p.slots(), p.reference(), torch.float32)
    found = chosen(p)
    assert isinstance(found.engine, Reference)
    assert found.why
    with pytest.raises(UserError, match=r"engine\.name=slots"):
        chosen(p, name="slots")


def test_an_honest_model_differs_in_nothing(folders):
    p = Pair(folders["llama"])
    assert difference(p.slots(), p.reference(), torch.float32) is None


_SIZE = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": tiny.POSITIONS,
    "bos_token_id": tiny.END, "eos_token_id": tiny.END, "pad_token_id": 0,
}  # fmt: skip
WIDER = 16
"""A window of tokens that the check's short texts do not fill."""
RIGHT = {  # (configuration, whether clients may share a pass; None: as it likes, but right)
    "mistral": (lambda: transformers.MistralConfig(**_SIZE, sliding_window=WIDER), True),
    "phi3": (lambda: transformers.Phi3Config(**_SIZE, sliding_window=WIDER), True),
    "starcoder2": (lambda: transformers.Starcoder2Config(**_SIZE, sliding_window=WIDER), True),
    "gemma3": (lambda: transformers.Gemma3TextConfig(**_SIZE, head_dim=8, sliding_window=WIDER), True),
    "gemma2": (lambda: transformers.Gemma2Config(**_SIZE, head_dim=8, sliding_window=WIDER), True),
    "qwen2": (
        lambda: transformers.Qwen2Config(
            **_SIZE, use_sliding_window=True, sliding_window=WIDER, max_window_layers=1
        ), True,
    ),
    "attention in chunks": (
        lambda: transformers.Llama4TextConfig(
            **_SIZE, head_dim=8, attention_chunk_size=WIDER, num_local_experts=2, intermediate_size_mlp=48
        ), None,
    ),
    "own attention with a window": (
        lambda: transformers.GPTNeoConfig(
            vocab_size=tiny.VOCAB, hidden_size=32, num_layers=2, num_heads=4, window_size=WIDER,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=tiny.POSITIONS,
        ), None,
    ),
    "sinks": (
        lambda: transformers.GptOssConfig(
            **_SIZE, head_dim=8, sliding_window=WIDER, num_local_experts=4, num_experts_per_tok=2
        ), None,
    ),
    "convolutions": (lambda: transformers.Lfm2Config(**_SIZE, layer_types=["conv", "full_attention"]), None),
    "routed experts": (
        lambda: transformers.MixtralConfig(**_SIZE, num_local_experts=4, num_experts_per_tok=2), None
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_whatever_is_chosen_is_right_for_long_texts(tmp_path, kind):
    """Windows, chunks, experts, convolutions: a run's texts are longer than those of the check."""
    config, shared = RIGHT[kind]
    targets = ["qkv_proj"] if kind == "phi3" else ["q_proj", "v_proj"]
    p = Pair(pair.written(tmp_path, config()), LoraConfig(rank=2, targets=targets), attention="auto")
    found = chosen(p)
    assert shared is None or isinstance(found.engine, Slots), found.words
    batches = (tiny.batch(40, 22, 3), tiny.batch(5, 33, seed=1))
    asked = [p.descend(i, batches=[batch], lrs=[0.01], gradient=True) for i, batch in enumerate(batches)]
    pair.all_close(pair.serve(found.engine, asked), pair.serve(p.reference(), asked), 1e-5)


# -- what the check leaves behind, and numbers


def test_the_check_leaves_nothing_behind(folders):
    p, fresh = Pair(folders["llama"]), Pair(folders["llama"])
    before = tiny.randomness()
    named = p.base.module.config._attn_implementation
    found = chosen(p)
    assert tiny.randomness() == before
    assert p.base.module.config._attn_implementation == named
    asked = [p.descend(i, optimizer=pair.ADAMW, gradient=True) for i in range(3)]
    pair.all_same(pair.serve(p.reference(), asked), pair.serve(fresh.reference(), asked))
    pair.all_same(pair.serve(found.engine, asked), pair.serve(fresh.slots(), asked))
    rows = Evaluate(p.somewhere(), p.layout, tiny.BATCHES[0], ("loss",), 2, 1)
    assert pair.one(p.reference(), rows) == pair.one(fresh.reference(), rows)
    assert not any(q.requires_grad for n, q in p.base.module.named_parameters() if "lora_" not in n)


def test_numbers_as_used(folders):
    p = Pair(folders["llama"])
    found = chosen(p)
    assert (found.config.slots, found.config.tokens_per_step) == (choice.SLOTS, choice.TOKENS["cpu"])
    asked = chosen(p, slots=3, tokens_per_step=77)
    assert (asked.config.slots, asked.config.tokens_per_step, asked.config.threads) == (3, 77, 1)
    assert default_tokens(torch.device("cpu"), 10**10) == 1024
    assert default_tokens(torch.device("cuda"), 10**9) == 8192
    assert default_tokens(torch.device("cuda"), 3 * 10**9) == 2048


def test_the_log_says_whether_bits_are_kept(folders):
    p = Pair(folders["llama"])
    assert chosen(p).invariant is row_invariant(p.base.module, torch.float32)
    assert chosen(p, name="reference").invariant is None
