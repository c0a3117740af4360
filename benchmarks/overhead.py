"""What federation costs over a plain PyTorch loop: same wrapped model, same batches, interleaved, CPU time.

Every fedloom round is measured from one checkpoint to the next: cohort, messages, training, folding, server step,
events, CSV, checkpoint. Then the plain loop trains the same clients on the same batches from the same start.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import median, say, table, write
from transformers import LlamaConfig, LlamaForCausalLM

from fedloom import load
from fedloom.assembly import Parts
from fedloom.contracts import Call
from fedloom.engine.requests import Descend
from fedloom.events import CheckpointSaved, Event
from fedloom.experiment import Session
from fedloom.models.load import NANO, load_tokenizer
from fedloom.runtime.group import Alone

ROUNDS, STEPS, COHORT = 9, 10, 4


def main() -> None:
    rows = [measure(batch, targets) for batch in (4, 1) for targets in ("auto", "all-linear")]
    say(table(rows))
    shape = {"rounds": ROUNDS, "steps": STEPS, "cohort": COHORT}
    write("overhead", "python benchmarks/run.py overhead", {**shape, "rows": rows})


def measure(batch: int, targets: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = load(
            "quickstart",
            [
                f"model.name={tiny_model(root / 'model')}", "model.dtype=float32",
                f"data.source={texts(root / 'd.jsonl')}",
                "data.template=plain", "partition={method: iid, clients: 16}", f"federation.cohort={COHORT}",
                f"federation.rounds={ROUNDS}", f"local.steps={STEPS}", f"local.batch_size={batch}", "local.lr=1e-3",
                "evaluate.every=0", "evaluate.forgetting=false", "evaluate.clients=1", "evaluate.rows_per_client=1",
                "evaluate.metrics=[loss]", "engine.name=reference", f"adapter.targets={targets}", "adapter.rank=8",
                f"run.folder={root / 'runs'}",
            ],
        )  # fmt: skip
        return compare(Parts(config), root, batch, targets)


def compare(parts: Parts, root: Path, batch: int, targets: str) -> dict[str, Any]:
    asked: list[Descend] = []
    ours, plain = list[float](), list[float]()
    clock = [0.0]

    def sink(event: Event) -> None:
        if not isinstance(event, CheckpointSaved):
            return
        if event.round:
            ours.append(time.process_time() - clock[0])
            begun = time.process_time()
            plain_round(parts, list(asked))
            plain.append(time.process_time() - begun)
        asked.clear()
        clock[0] = time.process_time()

    path = root / "run"
    path.mkdir()
    session = Session(parts, path, [sink], None, Alone())
    engine = session.hub.link.site.engine  # type: ignore[attr-defined]
    admit = engine.admit

    def admitting(call: Call[Any]) -> None:
        if isinstance(call.request, Descend):
            asked.append(call.request)
        admit(call)

    engine.admit = admitting
    session.go()
    a, b = median(ours[1:-1]), median(plain[1:-1])  # the first warms up, the last evaluates
    ratios = sorted(x / y for x, y in zip(ours[1:-1], plain[1:-1], strict=True))
    return {
        "batch": batch, "targets": targets, "trainable": parts.adapted.layout.size,
        "plain ms / client-round": round(b / COHORT * 1e3, 1), "fedloom ms / client-round": round(a / COHORT * 1e3, 1),
        "overhead %": round((median(ratios) - 1) * 100, 1),
        "range %": f"{(ratios[0] - 1) * 100:.1f} .. {(ratios[-1] - 1) * 100:.1f}",
    }  # fmt: skip


def plain_round(parts: Parts, clients: list[Descend]) -> None:
    """Local training and averaging as one would write it by hand, on the same module."""
    module, tensors = parts.adapted.module, list(parts.adapted.tensors)
    total, seen = None, 0
    for client in clients:
        with torch.no_grad():
            for leaf, tensor in zip(parts.adapted.layout.leaves, tensors, strict=True):
                tensor.copy_(client.start[leaf.offset : leaf.offset + leaf.size].view(leaf.shape))
        optimizer = torch.optim.AdamW(tensors, lr=client.lrs[0], weight_decay=0.0, fused=True)
        module.train()
        count = 0
        for examples in client.batches:
            width = max(len(e.ids) for e in examples)
            ids = torch.tensor([[*e.ids, *[0] * (width - len(e.ids))] for e in examples])
            labels = torch.tensor([[*e.labels, *[-100] * (width - len(e.labels))] for e in examples])
            logits = module(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tensors, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            loss.item()
            count += len(examples)
        with torch.no_grad():
            result = [tensor.detach().clone().mul_(count) for tensor in tensors]
        total = result if total is None else [t.add_(r) for t, r in zip(total, result, strict=True)]
        seen += count
    assert total is not None
    for tensor in total:
        tensor.div_(seen)


def tiny_model(path: Path) -> Path:
    """A random Llama of 4 layers x 256, 4.2 M parameters, with the embedded model's tokenizer."""
    shape = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(shape).save_pretrained(path)
    from fedloom.models.config import ModelConfig

    load_tokenizer(ModelConfig(name=str(NANO))).save_pretrained(path)
    return path


def texts(path: Path) -> Path:
    """Random letters: lengths lognormal with mean 60 and at most 256 tokens, two fifths of them the prompt."""
    source = random.Random(0)
    with path.open("w") as file:
        for _ in range(1600):
            n = int(min(250, max(8, source.lognormvariate(3.9, 0.6))))
            text = "".join(source.choices("abcdefghij ", k=n))
            file.write(json.dumps({"instruction": "q" + text[: 2 * n // 5], "output": "a" + text[2 * n // 5 :]}) + "\n")
    return path


if __name__ == "__main__":
    main()
