"""A step of preference tuning (DPO) against TRL's DPOTrainer: the same pairs, the same process, taking turns.

`python benchmarks/dpo.py [--only MODEL DATA]`; `--try` does a few steps and writes nothing. Needs TRL
(`pip install fedloom[trl]`); hh-rlhf needs FEDLOOM_DATA. TRL makes its own tokens of the texts, batches and pads as it
does for everybody; ours are made of its tokens, so both see the same numbers. Both begin at the same factors, with the
same rate, clipping and AdamW, without dropout, checkpointing or logging; the reference is the base with its adapter
off. After each of TRL's steps comes the same step of one client here, and after every eight of them the same eight by
eight clients side by side. Times are CPU seconds of one thread; TRL's reach from one step's end to the next one's.
"""

import argparse
import gzip
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from machine import median, say, table
from peft import LoraConfig as PeftConfig
from plain import ALPHA, CLIP, LR, short
from timing import judged, merge, middle, ratios, spread, targets_table
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)  # fmt: skip
from transformers.utils import logging
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from fedloom.adapters.build import adapt
from fedloom.adapters.config import LoraConfig
from fedloom.contracts import Call, Trained
from fedloom.data.encode import IGNORED, Encoded
from fedloom.data.pairs import Pair
from fedloom.data.playground import QUICKSTART
from fedloom.data.playground_preferences import pairs as playground_pairs
from fedloom.engine.choice import default_tokens
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.requests import Descend
from fedloom.engine.slots import Slots
from fedloom.models.config import ModelConfig
from fedloom.models.load import NANO, load_model, load_tokenizer
from fedloom.objectives.config import DpoConfig
from fedloom.objectives.preference import Preference
from models import LINEAR

CLIENTS, RANK, BETA, AIM = 8, 8, 0.1, 0.6
STEPS = {"nano": 16, "wide": 8}
"""Timed ones; a round of eight before them warms up."""
LONGEST = {"nano": 512, "wide": 96}
"""Tokens of the longer text of a pair, bytes for nano: longer pairs are left out, so that this takes minutes."""
VOCABULARY = 32_000

Texts = list[dict[str, str]]
"""Pairs as TRL takes them: prompt, chosen, rejected."""


@dataclass(frozen=True)
class Case:
    """A model, whose pairs, and how many a step."""

    model: str
    data: str
    batch: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "DATA"), help="nano or wide, hh_rlhf or playground")
    parser.add_argument("--try", dest="toy", action="store_true", help="a few steps, nothing written")
    asked = parser.parse_args()
    quiet()
    cases = [Case(m, d, b) for m in STEPS for d in ("playground", "hh_rlhf") for b in (4, 8)]
    if "FEDLOOM_DATA" not in os.environ:
        say("dpo: without hh-rlhf; set FEDLOOM_DATA to the folder of data sets")
        cases = [case for case in cases if case.data != "hh_rlhf"]
    rows, targets = [], []
    for case in cases:
        if asked.only and [case.model, case.data] != asked.only:
            continue
        row, found = compare(case, 8 if asked.toy else STEPS[case.model])
        rows.append(row)
        targets += found
        say(str(row))
    say(f"\n## dpo\n\n{table(rows)}\n\n{targets_table(targets)}\n")
    if not asked.toy and not asked.only:
        command = "FEDLOOM_DATA=... python benchmarks/run.py dpo"
        merge("dpo", "step", command, {"trl": version("trl"), "rows": rows, "targets": targets})
    return 0


def compare(case: Case, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One line of the table."""
    folder = saved(case.model)
    with tempfile.TemporaryDirectory() as out:
        count = (CLIENTS + steps) * case.batch
        trainer = made(folder, case.batch, CLIENTS + steps, out, fitting(case, folder, count))
        held = batches(trainer.train_dataset, case.batch)
        ours = Ours(folder, held)
        ours.begin_as(trainer.model)
        turns = Turns(trainer, ours)
        trainer.add_callback(turns)
        trainer.train()
    alone = ratios(turns.ours, turns.trl)
    together = ratios(turns.together, [sum(turns.trl[i : i + CLIENTS]) for i in range(0, steps, CLIENTS)])
    differences = [abs(a - b) for a, b in zip(turns.losses, ours.alone.objective.heard, strict=True)]
    apart = max(differences)
    if max(differences[:CLIENTS]) > 1e-5:  # later, AdamW has made more of rounding
        raise SystemExit(f"dpo: losses differ by {apart:.1e} in {case}: these are not the same steps")
    pairs = [pair for batch in held[CLIENTS:] for pair in batch]
    lengths = [[len(text.ids) for text in (pair.chosen, pair.rejected)] for pair in pairs]
    padded = sum(2 * len(b) * max(max(len(p.chosen.ids), len(p.rejected.ids)) for p in b) for b in held[CLIENTS:])
    row = {
        "model": case.model, "data": case.data, "pairs": case.batch, "steps": steps,
        "tokens of a text": round(sum(map(sum, lengths)) / len(pairs) / 2),
        "text of TRL's batches": round(sum(map(sum, lengths)) / padded, 2),
        "prompts' share": round(sum(2 * len(pair.prompt) for pair in pairs) / sum(map(sum, lengths)), 2),
        "TRL ms": middle([1e3 * t for t in turns.trl], 1),
        "one client / TRL": middle(alone), "range": spread(alone),
        "8 clients / TRL": middle(together), "range of 8": spread(together),
        "losses differ by": f"{apart:.0e}",
    }  # fmt: skip
    where = f"{case.model}, {case.data}, {case.batch} pairs"
    return row, [
        judged(f"DPO step of one client, {where}: share of TRL's time", median(alone), "<=", AIM),
        judged(f"DPO step, 8 clients together, {where}: share of TRL's time", median(together), "<=", AIM),
    ]


# -- TRL


def made(folder: Path, batch: int, steps: int, out: str, texts: Texts) -> DPOTrainer:
    """TRL's trainer as its users make it."""
    settings = TrlConfig(
        output_dir=out, per_device_train_batch_size=batch, max_steps=steps, learning_rate=LR, weight_decay=0.0,
        max_grad_norm=CLIP, lr_scheduler_type="constant", gradient_checkpointing=False, bf16=False, use_cpu=True,
        report_to="none", save_strategy="no", logging_strategy="no", eval_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", max_length=LONGEST["nano"], beta=BETA,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=settings,
        train_dataset=Dataset.from_list(texts),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=PeftConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LINEAR), task_type="CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Turns(TrainerCallback):  # type: ignore[misc]
    """Takes the time of TRL's steps, and lets ours follow each of them."""

    def __init__(self, trainer: DPOTrainer, ours: "Ours") -> None:
        self.work, self.trl, self.ours, self.together = ours, list[float](), list[float](), list[float]()
        self.losses = list[float]()
        self._own = trainer.compute_loss
        trainer.compute_loss = self._watched
        self._ended = 0.0

    def _watched(self, *args: Any, **more: Any) -> Any:
        loss = self._own(*args, **more)
        self._loss = loss.detach()
        return loss

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._ended = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        step = state.global_step - 1
        times = [time.process_time() - self._ended, timed(self.work.step)]
        self.losses.append(float(self._loss))
        if step >= CLIENTS:
            self.trl.append(times[0])
            self.ours.append(times[1])
        if state.global_step % CLIENTS == 0:
            spent = timed(lambda: self.work.round(state.global_step - CLIENTS))
            self.together += [spent] if step >= CLIENTS else []
        self._ended = time.process_time()


def timed(work: Any) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


# -- ours


class Ours:
    """Slots over the same model: one client's training step by step, and rounds of eight clients with a step each."""

    def __init__(self, folder: Path, held: Sequence[Sequence[Pair]]) -> None:
        model = ModelConfig(name="nano" if folder == NANO else str(folder), dtype="float32")
        self.base, self.held = load_model(model, longest=max(LONGEST.values())), held
        self.adapted = adapt(self.base, LoraConfig(rank=RANK, alpha=ALPHA, targets=list(LINEAR)), 7)
        self.tokenizer, self.start = load_tokenizer(model), self.adapted.start
        self.alone, self.shared = self._engine(1), self._engine(CLIENTS)

    def _engine(self, slots: int) -> Slots:
        budget = default_tokens(self.base.device, self.base.parameters)
        way: Any = "plain" if self.base.attention == "eager" else "fused"
        objective: Any = Heard(Preference(DpoConfig(beta=BETA))) if slots == 1 else Preference(DpoConfig(beta=BETA))
        return Slots(self.adapted, self.tokenizer, (1,), slots, budget, False, way, objective)

    def begin_as(self, model: Any) -> None:
        """Take the start from TRL's model, and seat the client that trains by itself."""
        named = {short(name).replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
        self.start = self.adapted.layout.gather({name: p.detach().clone() for name, p in named.items()})
        self.alone.admit(Call(0, self._asked(self.held)))

    def _asked(self, held: Sequence[Sequence[Pair]]) -> Descend:
        rates = [LR] * len(held)
        optimizer = OptimizerConfig()
        return Descend(self.start, self.adapted.layout, held, rates, optimizer, CLIP, 1, 11, "client")

    def step(self) -> None:
        """The next one of the client that trains alone."""
        for _, result in self.alone.advance():
            assert isinstance(result, Trained)

    def round(self, first: int) -> None:
        """One step of each of eight clients, from the start, messages and results included."""
        for client in range(CLIENTS):
            self.shared.admit(Call(client, self._asked([self.held[first + client]])))
        done = 0
        while done < CLIENTS:
            done += len(self.shared.advance())


class Heard:
    """An objective that writes down its batches' losses."""

    def __init__(self, objective: Preference) -> None:
        self.objective, self.heard = objective, list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def losses(self, *args: Any) -> Any:
        found = self.objective.losses(*args)
        self.heard.append(float(found.detach().mean()))
        return found


# -- pairs and models


def batches(data: Dataset, size: int) -> list[list[Pair]]:
    """TRL's tokens as pairs."""
    pairs = [
        Pair(answered(row["prompt_ids"], row["chosen_ids"]), answered(row["prompt_ids"], row["rejected_ids"]))
        for row in data
    ]
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Encoded:
    return Encoded((*prompt, *answer), (IGNORED,) * len(prompt) + tuple(answer), tuple(prompt), "", None)


def fitting(case: Case, folder: Path, count: int) -> Texts:
    """So many pairs of the data whose longer text is short enough."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = Texts()
    for pair in transcripts() if case.data == "hh_rlhf" else skills(tokenizer, count):
        longer = max(len(tokenizer(pair["prompt"] + pair[answer]).input_ids) for answer in ("chosen", "rejected"))
        if longer < LONGEST[case.model]:  # one more will close it
            found.append(pair)
    return found[:count]


def transcripts() -> Texts:
    """hh-rlhf in a mixed order, as it stands: the prompt is all that both share, up to the last answer."""
    with gzip.open(Path(os.environ["FEDLOOM_DATA"]) / "hh_rlhf" / "harmless_base_test.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    random.Random(1).shuffle(rows)
    found = Texts()
    for row in rows:
        prompt, mark, chosen = row["chosen"].rpartition("\n\nAssistant:")
        same, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
        if prompt == same and chosen != rejected:
            found.append({"prompt": prompt + mark, "chosen": chosen, "rejected": rejected})
    return found


def skills(tokenizer: Any, count: int) -> Texts:
    """Of the quickstart's skills, in a mixed order, in the embedded model's own words for turns."""
    rows = playground_pairs(QUICKSTART, 1 + count // len(QUICKSTART), "train", 1)
    random.Random(1).shuffle(rows)
    chat = AutoTokenizer.from_pretrained(NANO)
    return [
        {
            "prompt": chat.apply_chat_template(
                [{"role": "user", "content": row["instruction"]}], tokenize=False, add_generation_prompt=True
            ),
            "chosen": row["chosen"], "rejected": row["rejected"],
        }
        for row in rows
    ]  # fmt: skip


def saved(kind: str) -> Path:
    """The folder of a model; the wide one is written once for this user and machine."""
    if kind == "nano":
        return NANO
    folder = Path(tempfile.gettempdir()) / "fedloom-benchmarks" / "dpo-wide"
    if not (folder / "done").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(wide()).save_pretrained(folder)
        words().save_pretrained(folder)
        (folder / "done").touch()
    return folder


def wide() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1,
        bos_token_id=1,
    )  # fmt: skip


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of words of English: byte pairs of the hh-rlhf texts, or of the playground's without them."""
    core = Tokenizer(BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    learned = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    texts = transcripts() if "FEDLOOM_DATA" in os.environ else playground_pairs(QUICKSTART, 400, "train", 1)
    core.train_from_iterator((text for pair in texts for text in pair.values()), learned)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def quiet() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
