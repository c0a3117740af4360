"""Against a new SFTTrainer for every client and round, which is how OpenFedLLM and FlowerTune train.

One peft model stays loaded (FlowerTune loads it anew each time, which is not counted here). A client-round puts the
shared factors in, makes a trainer over the client's texts, trains, and copies the factors out, through peft's state
dicts. Batches are the same and in the same order; gradient checkpointing and logging to anybody are off. Run by
`peers.py` in the peers' environment.
"""

import argparse
import copy
import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import picture
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from machine import median, say, table
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from plain import ALPHA, CLIP, LR, Plain, short
from rig import Rig, encoded
from timing import interleaved, judged, least, merge, middle, ratios, spread, targets_table
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PrinterCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from models import QUERY_VALUE, STEPS, Steps, clients, saved, text

COUNT = 8
TURNS = {("micro", 4): 1, ("tiny", 1): 7, ("tiny", 4): 5, ("small", 1): 3, ("small", 4): 3}
TARGETS = {("tiny", 1): 3.0, ("tiny", 4): 2.3}
BF16 = 4.0


class Trained:
    """A peft model that is trained by a new trainer every time."""

    def __init__(self, folder: Path, out: str, batch: int, steps: int, bf16: bool = False) -> None:
        base = LlamaForCausalLM.from_pretrained(folder)
        settings = LoraConfig(r=8, lora_alpha=ALPHA, target_modules=list(QUERY_VALUE), task_type="CAUSAL_LM")
        self.model = get_peft_model(base, settings)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.settings = SFTConfig(
            output_dir=out, per_device_train_batch_size=batch, max_steps=steps, learning_rate=LR, weight_decay=0.0,
            max_grad_norm=CLIP, lr_scheduler_type="constant", gradient_checkpointing=False, bf16=bf16, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
            max_length=512, logging_strategy="no",
        )  # fmt: skip

    def ready(self) -> "Trained":
        """Trainers of another number format went before, and accelerate remembers one for the whole process."""
        AcceleratorState._reset_state(reset_partial_state=True)
        return self

    def train(self, start: Mapping[str, Tensor], data: Dataset) -> dict[str, Tensor]:
        """`start` and the result by peft's names."""
        set_peft_model_state_dict(self.model, start)
        trainer = SFTTrainer(
            model=self.model, args=self.settings, train_dataset=data.select(range(len(data))),
            processing_class=self.tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return copy.deepcopy(get_peft_model_state_dict(self.model))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="slots")
    parser.add_argument("--try", dest="toy", action="store_true")
    asked = parser.parse_args()
    quiet()
    rows, targets = [], []
    for kind, batch in [("micro", 4)] if asked.toy else [k for k in TURNS if k[0] != "micro"]:
        row, found = compare(kind, batch, asked.engine)
        rows.append(row)
        targets += found
        say(str(row))
    say(f"\n## trl\n\n{table(rows)}\n" + targets_table(targets))
    if not asked.toy and asked.engine == "slots":
        result = {"trl": version("trl"), "rows": rows, "targets": targets}
        merge("peers", "trl", "python benchmarks/peers.py trl", result)
        picture.draw()
    return 0


def compare(kind: str, batch: int, engine: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    work, folder, turns = clients(COUNT, kind, batch), saved(kind), TURNS[kind, batch]
    held, data = [encoded(steps) for steps in work], [texts(steps) for steps in work]
    plain = Plain(folder, QUERY_VALUE)
    ours, cast = (Rig(kind, QUERY_VALUE, slots=COUNT, dtype=d, engine=engine) for d in ("float32", "bfloat16"))
    with tempfile.TemporaryDirectory() as out:
        trainer, flagged = (Trained(folder, out, batch, STEPS[kind], bf16) for bf16 in (False, True))
        start = ours.factors(ours.adapted.start)
        named = {name: start[short(name)] for name in get_peft_model_state_dict(trainer.model)}
        times = interleaved(
            {
                "plain": lambda: [plain.train(start, steps) for steps in work],
                "trl": lambda: [trainer.ready().train(named, one) for one in data],
                "trl bf16": lambda: [flagged.ready().train(named, one) for one in data],
                "ours": lambda: ours.train(held),
                "ours bf16": lambda: cast.train(held),
            },
            turns,
        )
        wanted = {short(name): value for name, value in trainer.ready().train(named, data[0]).items()}
    (run,) = ours.train(held[:1])
    whole = ours.layout.gather(wanted)
    apart = float((run.y - whole).norm() / (whole - ours.adapted.start).norm())
    exact, fast = ratios(times["trl"], times["ours"]), ratios(times["trl"], times["ours bf16"])
    row = {
        "model": kind, "batch": batch, "clients": COUNT, "turns": turns,
        "trainer ms / client-round": middle([1e3 * t / COUNT for t in times["trl"]], 1),
        "trainer / plain": middle(ratios(times["trl"], times["plain"])),
        "times faster": middle(exact), "range": spread(exact),
        "of the quickest turns": least(times["trl"], times["ours"]),
        "bf16 times faster": middle(fast), "range bf16": spread(fast),
        "than the trainer's bf16": middle(ratios(times["trl bf16"], times["ours bf16"])),
        "weights differ by": f"{apart:.1e}",
    }  # fmt: skip
    name = f"{kind}, batch {batch}: times faster than a new SFTTrainer per client"
    bar = f"than an SFTTrainer per client, {kind}, batch {batch}"
    targets = [judged(name, median(exact), ">=", TARGETS[kind, batch], bar)] if (kind, batch) in TARGETS else []
    if batch == 4 and kind != "micro":
        targets.append(judged(f"{name}, ours with a bfloat16 base", median(fast), ">=", BF16, f"{bar}, bf16 base"))
    return row, targets


def texts(steps: Steps) -> Dataset:
    """A client's rows as text."""
    rows = [row for rows in steps for row in rows]
    return Dataset.from_list(
        [{"prompt": text(row.ids[: row.prompt]), "completion": f" {text(row.ids[row.prompt :])}"} for row in rows]
    )


def quiet() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
