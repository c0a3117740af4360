"""Train the embedded model: a byte-level Llama that knows the playground's base skills and none of the held-back ones.

    python tools/train_nano.py --steps 7000 --out src/fedloom/models/nano

One thread, one seed, a fixed number of steps: the same machine gives the same file. The corpus is made on the fly by
`fedloom.data.playground`: mostly single questions in the chat template, some in plain formats, some dialogues, a few
long texts. Matrices are stepped by Muon, the rest by AdamW; the rate falls linearly to zero.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedloom.data.playground import BASE, HELD, examples, rows
from fedloom.data.playground_words import distinct_words, story, word

PAD, END, USER, ASSISTANT, SYSTEM = range(5)
SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LONGEST = 1600  # tokens of the longest training text
EAGER_BELOW = 400  # tokens; on a CPU plain attention is half again as fast on short texts, and slower on long ones
PROMPT_WEIGHT = 0.1  # of the loss on a token that is given, against 1 on a token of an answer
HEAVY = {"add": 3.0, "subtract": 3.0, "count_letter": 2.5, "sort_letters": 2.0, "reverse": 1.5, "length": 1.5,
         "sort_numbers": 1.5, "parity": 1.5, "same": 1.5, "has_letter": 1.5, "bigger": 1.5, "smaller": 1.5,
         "copy_foreign": 0.7}  # fmt: skip
FACT_WEIGHT = 0.6
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are nano, a very small model. Reply with the answer only.",
    "Be exact.",
    "Below are questions. Give short answers.",
)
PLAIN = (  # (format with {}, share): how people write prompts without a chat template
    ("### Instruction:\n{}\n\n### Response:\n", 4.0),
    ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
     "### Instruction:\n{}\n\n### Response:\n", 2.0),
    ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
     "### Instruction:\n{}\n\n### Response: ", 1.0),
    ("Instruction: {}\nResponse: ", 2.0),
    ("Question: {}\nAnswer: ", 2.0),
    ("Q: {}\nA: ", 2.0),
    ("User: {}\nAssistant: ", 2.0),
    ("Human: {}\n\nAssistant: ", 1.0),
    ("[INST] {} [/INST] ", 1.0),
    ("{}\n", 1.0),
    ("{}\n\n", 0.5),
    ("{} -> ", 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """One training text: token ids and the weight of each in the loss."""

    ids: list[int]
    weights: list[float]

    def __add__(self, other: Text) -> Text:
        return Text(self.ids + other.ids, self.weights + other.weights)


def main() -> None:
    """Train, save checkpoints, write the model folder and its scores."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    model = fresh_model(args.hidden, args.layers, args.heads, args.mlp, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(BASE)} base skills", flush=True)
    train(model, args)
    save(model, args.out)
    report = {
        name: score(model, list(skills), args.test, args.seed) for name, skills in (("base", BASE), ("held", HELD))
    }
    for name, by_skill in report.items():
        print(f"{name}: mean {_mean(by_skill):.3f}", json.dumps(by_skill), flush=True)
    if args.scores:
        args.scores.write_text(json.dumps(report, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--scores", type=Path, help="JSON file for the final scores per skill; they are always printed")
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps; fixes the schedule and the result")
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights, the corpus and the test rows")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step, padding included")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="peak rate of the matrices")
    parser.add_argument("--adam-lr", type=float, default=3e-3, help="peak rate of embeddings and norms")
    parser.add_argument("--hold", type=float, default=0.1, help="share of the steps at the peak before the linear fall")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--mlp", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; sums depend on it in the last bits")
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS", help="checkpoint to OUT-stepN; 0: never")
    parser.add_argument("--test", type=int, default=40, help="test rows per skill at the end")
    return parser.parse_args()


# --- model and tokenizer ---------------------------------------------------------------------------------------------


def fresh_model(hidden: int, layers: int, heads: int, mlp: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights; the caller's random state is left alone."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=mlp,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=END,
        eos_token_id=END,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=PAD, bos_token_id=END, eos_token_id=END, max_new_tokens=128
    )
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte b is token 5 + b; nothing is merged, so letters stay visible and any text comes back unchanged."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    vocabulary |= {letter: len(SPECIAL) + byte for byte, letter in _byte_letters().items()}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[PAD],
        eos_token=SPECIAL[END],
        bos_token=SPECIAL[END],
        additional_special_tokens=list(SPECIAL[2:]),
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """The visible letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a Hugging Face folder, weights in bfloat16."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder, save_jinja_files=False)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone


# --- corpus ----------------------------------------------------------------------------------------------------------


def corpus(rng: random.Random) -> Iterator[Text]:
    """Endless training texts, base skills' training split only."""
    draw = _questions(rng)
    kinds: list[Callable[[], Text]] = [
        lambda: _single(rng, *draw()),
        lambda: _plain(rng, *draw()),
        lambda: _dialogue(rng, draw, rng.randint(2, 6)),
        lambda: _long(rng, draw),
    ]
    while True:
        text = rng.choices(kinds, (0.847, 0.12, 0.028, 0.005))[0]()
        if len(text.ids) <= LONGEST:
            yield text


def _questions(rng: random.Random) -> Callable[[], tuple[str, str]]:
    names = list(BASE)
    streams = {name: examples(BASE[name], "train", rng) for name in names}
    weights = [HEAVY.get(name, FACT_WEIGHT if BASE[name].facts else 1.0) for name in names]
    return lambda: next(streams[rng.choices(names, weights)[0]])


def _bytes(text: str) -> list[int]:
    return [len(SPECIAL) + byte for byte in text.encode()]


def _given(text: str, *before: int) -> Text:
    ids = [*before, *_bytes(text)]
    return Text(ids, [PROMPT_WEIGHT] * len(ids))


def _answer(text: str) -> Text:
    ids = [*_bytes(text), END]
    return Text(ids, [1.0] * len(ids))


def _turn(prompt: str, answer: str) -> Text:
    return _given(prompt, USER) + Text([ASSISTANT], [PROMPT_WEIGHT]) + _answer(answer)


def _single(rng: random.Random, prompt: str, answer: str) -> Text:
    turn = _turn(prompt, answer)
    return _given(rng.choice(SYSTEM_PROMPTS), SYSTEM) + turn if rng.random() < 0.04 else turn


def _plain(rng: random.Random, prompt: str, answer: str) -> Text:
    form = rng.choices([f for f, _ in PLAIN], [share for _, share in PLAIN])[0]
    start = [END] if rng.random() < 0.2 else []
    return _given(form.replace("{}", prompt), *start) + _answer(answer)


def _dialogue(rng: random.Random, draw: Callable[[], tuple[str, str]], turns: int) -> Text:
    text = _given(rng.choice(SYSTEM_PROMPTS), SYSTEM) if rng.random() < 0.2 else Text([], [])
    for _ in range(turns):
        text += _turn(*draw())
    return text


def _long(rng: random.Random, draw: Callable[[], tuple[str, str]]) -> Text:
    """Several hundred to LONGEST tokens: a long dialogue, text to go on with, text to copy, or a table to search."""
    kind = rng.randrange(4)
    if kind == 0:
        return _dialogue(rng, draw, rng.randint(10, 45))
    if kind == 1:
        text = _answer(story(rng, rng.randint(10, 45)))
        return Text(text.ids, [0.2] * len(text.ids))
    if kind == 2:
        original = story(rng, rng.randint(5, 18))
        return _turn(rng.choice(("copy the text: ", "write again: ", "repeat after me: ")) + original, original)
    keys = distinct_words(rng, rng.randint(15, 100), 2, 5)
    table = {key: word(rng, 2, 6) for key in keys}
    key = rng.choice(keys)
    listing = "\n".join(f"{k}={v}" for k, v in table.items())
    return _turn(rng.choice(("look up:\n", "table:\n", "")) + f"{listing}\n{key}", table[key])


def batches(rng: random.Random, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless ([batch, length] ids, [batch, length] weights): texts of like length together, `tokens` in each."""
    texts = corpus(rng)
    while True:
        pool = sorted((next(texts) for _ in range(4096)), key=lambda text: len(text.ids))
        groups: list[list[Text]] = [[]]
        for text in pool:
            if groups[-1] and len(text.ids) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(text)
        rng.shuffle(groups)
        yield from map(_pad, groups)


def _pad(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(text.ids) for text in texts)
    ids = torch.tensor([text.ids + [PAD] * (width - len(text.ids)) for text in texts])
    weights = torch.tensor([text.weights + [0.0] * (width - len(text.ids)) for text in texts])
    return ids, weights


# --- training --------------------------------------------------------------------------------------------------------


def train(model: LlamaForCausalLM, args: argparse.Namespace) -> None:
    """`args.steps` steps in place."""
    optimisers = _optimisers(model, args.muon_lr, args.adam_lr)
    peaks = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    stream = batches(random.Random(args.seed), args.tokens)
    began, seen, mean = time.process_time(), 0, 0.0
    model.train()
    for step in range(1, args.steps + 1):
        factor = _schedule(step, args.steps, args.hold)
        groups = (group for optimiser in optimisers for group in optimiser.param_groups)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * factor
        ids, weights = next(stream)
        loss = _loss(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seen += ids.numel()
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 0 or step == args.steps:
            spent = time.process_time() - began
            print(f"step {step} loss {mean:.4f} cpu {spent:.0f} s, {seen} tokens, {seen / spent:.0f}/s", flush=True)
        if args.save_every and step % args.save_every == 0:
            save(model, args.out.with_name(f"{args.out.name}-step{step}"))
            by_skill = score(model, list(BASE), 10, args.seed)
            print(f"step {step} base mean {_mean(by_skill):.3f}", json.dumps(by_skill), flush=True)


def _optimisers(model: LlamaForCausalLM, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01, ns_steps=4),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _schedule(step: int, steps: int, hold: float) -> float:
    """Warm-up over 50 steps, flat for `hold` of the run, then linear to zero."""
    return min(1.0, step / 50, (steps - step) / (steps * (1 - hold)) + 1e-3)


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross entropy; right padding under a causal mask needs no attention mask."""
    model.set_attn_implementation("eager" if ids.shape[1] < EAGER_BELOW else "sdpa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (each * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


@torch.no_grad()
def score(model: LlamaForCausalLM, skills: Sequence[str], count: int, seed: int) -> dict[str, float]:
    """Exact match of greedy answers per skill, on test prompts in the chat template."""
    tokenizer = byte_tokenizer()
    asked = [(name, row) for name in skills for row in rows([name], count, "test", seed)]
    asked.sort(key=lambda item: len(item[1]["instruction"]))
    right: dict[str, list[bool]] = {name: [] for name in skills}
    was_training = model.training
    model.eval()
    for start in range(0, len(asked), 256):
        chunk = asked[start : start + 256]
        inputs = tokenizer(
            [f"<|user|>{row['instruction']}<|assistant|>" for _, row in chunk], return_tensors="pt", padding=True
        )
        longest = max(len(row["output"].encode()) for _, row in chunk) + 1
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=longest,
            do_sample=False,
        )
        answers = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (name, row), answer in zip(chunk, answers, strict=True):
            right[name].append(answer == row["output"])
    model.train(was_training)
    return {name: round(sum(hits) / len(hits), 3) for name, hits in right.items()}


def _mean(by_skill: dict[str, float]) -> float:
    return sum(by_skill.values()) / len(by_skill)


if __name__ == "__main__":
    main()
