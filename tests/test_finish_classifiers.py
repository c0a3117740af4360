"""Runs of classifiers, and of causal models out of some layers, handed on: they say what the run's folder says."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import tiny
from fedloom import experiment
from fedloom.adapters.classifiers import load_classifier
from fedloom.config import load
from fedloom.errors import UserError
from fedloom.finish import Chat, export
from models import tiny_classifiers as small

SMALL = [
    "partition.clients=2", "local.steps=1", "local.batch_size=4", "local.lr=0.02", "federation.rounds=1",
    "evaluate.every=0", "evaluate.metrics=[loss]", "evaluate.forgetting=false", "model.dtype=float32",
    "model.device=cpu", "data.max_length=32",
]  # fmt: skip
KINDS = {
    "lora": ["adapter={kind: lora, rank: 4, targets: all-linear}"],
    "pooler": ["adapter={kind: lora, rank: 4}", "objective.pooling=cls", "objective.head=mlp"],
    "cut": ["adapter={kind: lora, rank: 4}", "model.layers=[2, 0]"],
    "full": ["adapter={kind: full}", "local.lr=0.002", "model.layers=[0, 2]"],
}
BATCH = small.batch(small.TEXTS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of every kind, made when first asked for, and its base."""
    made: dict[str, Path] = {}
    base = small.saved(tmp_path_factory.mktemp("bert"), "bert")
    rows = tmp_path_factory.mktemp("data") / "rows.jsonl"
    words = {"no": ["dull", "grey"], "yes": ["bright", "warm"]}
    lines = [{"text": f"{words[label][i % 2]} day {i}", "label": label} for i in range(20) for label in words]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(kind):
        if kind not in made:
            settings = [*SMALL, "objective={name: classify}", f"model.name={base}", f"data.source={rows}", *KINDS[kind]]
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = experiment.run(load("quickstart", [*settings, f"run.folder={folder}"])).folder
        return made[kind]

    return run


def scores(folder):
    with torch.no_grad():
        return load_classifier(folder, "cpu")(*BATCH)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_what_the_run_says(runs, kind, merge, tmp_path):
    out = export(runs(kind), tmp_path / "out", merge)
    assert torch.allclose(scores(out), scores(runs(kind) / "adapters" / "final"), rtol=1e-5, atol=1e-5)
    assert json.loads((out / "head.json").read_text())["labels"] == ["no", "yes"]
    assert (out / "adapter_config.json").exists() == (not merge and kind != "full")
    assert len(transformers.AutoTokenizer.from_pretrained(str(out))) == tiny.VOCAB
    if merge:
        layers = {"cut": 2, "full": 2}
        assert small.plain(out).config.num_hidden_layers == layers.get(kind, 3)


@pytest.mark.parametrize("base", [True, False])
def test_a_classifier_does_not_talk(runs, base):
    with pytest.raises(UserError, match=r"tuned a classifier \(objective=classify\), which scores texts"):
        Chat(runs("lora"), base=base)


@pytest.mark.parametrize("adapter", ["{kind: full}", "{kind: lora, rank: 4}"])
def test_a_cut_causal_model_talks(tmp_path, adapter):
    settings = [
        "data.playground.rows=4",
        "data.playground.test_rows=1",
        "partition.per_client=1",
        "data.max_length=512",
    ]
    overrides = [
        *SMALL,
        *settings,
        f"adapter={adapter}",
        "model.layers=[0, 1, 3]",
        f"run.folder={tmp_path}",
        "local.lr=0.002",
    ]
    folder = experiment.run(load("quickstart", overrides)).folder
    chat = Chat(folder, max_new_tokens=4)
    assert chat.module.config.num_hidden_layers == 3
    asked = [{"role": "user", "content": "Reverse the word stone."}]
    whole = export(folder, tmp_path / "whole", merge=True)
    model, tokenizer = tiny.plain(whole), transformers.AutoTokenizer.from_pretrained(str(whole))
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(ids["input_ids"], max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert chat.reply(asked) == tokenizer.decode(out, skip_special_tokens=True)
