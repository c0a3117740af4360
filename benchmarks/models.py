"""The random models and rows that the speed benchmarks share; everything is made from seeds.

Rows: lengths lognormal with mean 60, between 8 and 256 tokens, the first two fifths are the prompt, the last token ends
the text. Every token is a word of its own (`w17`), so that rows are the same numbers whoever tokenises their text.
"""

import math
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()

PAD, END, LONGEST = 0, 1, 256
STEPS = {"tiny": 10, "small": 4, "micro": 2}
"""Local steps of a client-round."""
SIZES = {
    "micro": (261, 32, 64, 2, 2), "tiny": (2048, 256, 688, 4, 4), "small": (8192, 512, 1376, 12, 8),
    "wide": (2048, 1024, 4096, 4, 8),
}  # fmt: skip
PARTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHAPES = {kind: dict(zip(PARTS, sizes, strict=True)) for kind, sizes in SIZES.items()}
"""micro is for trying a script; tiny has 4.2 M parameters, small 46 M; wide, 71 M, holds large adapters."""
QUERY_VALUE = ("q_proj", "v_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Row:
    """One example."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """As long; -100 where nothing is learned."""
    prompt: int
    """How many tokens are the prompt."""


Steps = list[list[Row]]
"""A client-round: the rows of each local step."""


def saved(kind: str) -> Path:
    """The folder of a model with its tokenizer, written once for this user and machine."""
    folder = Path(tempfile.gettempdir()) / "fedloom-benchmarks" / kind
    if not (folder / "done").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config(kind)).save_pretrained(folder)
        words(SHAPES[kind]["vocab_size"]).save_pretrained(folder)
        (folder / "done").touch()
    return folder


def config(kind: str) -> LlamaConfig:
    shape = SHAPES[kind]
    return LlamaConfig(
        **shape, num_key_value_heads=shape["num_attention_heads"], max_position_embeddings=512,
        tie_word_embeddings=False, pad_token_id=PAD, eos_token_id=END, bos_token_id=END,
    )  # fmt: skip


def words(size: int) -> PreTrainedTokenizerFast:
    vocab = {"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, size)}}
    core = Tokenizer(models.WordLevel(vocab, unk_token="w2"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def client(seed: int, kind: str, steps: int, batch: int) -> Steps:
    """What the client of this seed trains on in one round."""
    source = random.Random(1000 + seed)
    return [[row(source, SHAPES[kind]["vocab_size"]) for _ in range(batch)] for _ in range(steps)]


def clients(count: int, kind: str, batch: int, steps: int | None = None) -> list[Steps]:
    return [client(seed, kind, steps or STEPS[kind], batch) for seed in range(count)]


def row(source: random.Random, vocab: int) -> Row:
    length = int(min(LONGEST, max(8, source.lognormvariate(math.log(60) - 0.18, 0.6))))
    ids, prompt = (*(source.randrange(2, vocab) for _ in range(length - 1)), END), max(1, length * 2 // 5)
    return Row(ids, (-100,) * prompt + ids[prompt:], prompt)


def text(ids: tuple[int, ...]) -> str:
    """What the tokenizer reads as these tokens."""
    return " ".join("<end>" if i == END else f"w{i}" for i in ids)


def tokens(work: list[Steps]) -> int:
    """Real tokens of all rows; filling does not count."""
    return sum(len(row.ids) for steps in work for rows in steps for row in rows)
