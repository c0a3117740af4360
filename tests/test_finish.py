"""What is handed on is what was trained: exports and answers, against plain transformers and peft."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import tiny
from fedloom import experiment
from fedloom.config import load
from fedloom.errors import UserError
from fedloom.finish import Chat, export
from fedloom.models.load import NANO

SMALL = [
    "data.playground.rows=4", "data.playground.test_rows=1", "partition.clients=2", "partition.per_client=1",
    "local.steps=1", "local.batch_size=4", "local.lr=0.02", "federation.rounds=1", "evaluate.every=0",
    "evaluate.metrics=[loss]", "evaluate.forgetting=false", "model.dtype=float32",
    "model.device=cpu",
]  # fmt: skip
KINDS = {
    "lora": ["adapter.rank=4"],
    "rslora": ["adapter.rank=4", "adapter.rslora=true", "adapter.targets=auto", "adapter.alpha=4"],
    "head": [
        "adapter.rank=4",
        "adapter.targets=[q_proj, lm_head]",
    ],  # the embedded model's head and embedding are one tensor
    "full": ["adapter={kind: full}", "local.lr=0.002"],
}
IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])


def ran(parent: Path, *overrides: str) -> Path:
    return experiment.run(load("quickstart", [*SMALL, f"run.folder={parent}", *overrides])).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of every kind, made when first asked for."""
    made: dict[str, Path] = {}

    def run(kind):
        if kind not in made:
            made[kind] = ran(tmp_path_factory.mktemp(kind), *KINDS[kind])
        return made[kind]

    return run


def base():
    return tiny.plain(NANO)


def tuned(folder):
    """The run's final model by plain peft or transformers."""
    final = folder / "adapters" / "final"
    if (final / "adapter_config.json").exists():
        return peft.PeftModel.from_pretrained(base(), str(final)).eval()
    return tiny.plain(final)


def logits(module):
    with torch.no_grad():
        return module(input_ids=IDS).logits


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- export


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_the_base_with_its_adapter(runs, kind, tmp_path):
    out = export(runs(kind), tmp_path / "deep" / "merged", merge=True)
    assert out == tmp_path / "deep" / "merged"
    wanted = logits(tuned(runs(kind)))
    assert (wanted - logits(base())).abs().max() > 0.01  # something was trained
    assert torch.allclose(logits(tiny.plain(out)), wanted, rtol=1e-5, atol=1e-4)
    assert not (out / "adapter_config.json").exists()
    assert len(transformers.AutoTokenizer.from_pretrained(str(out))) == tiny.VOCAB


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_unmerged_is_the_final_folder_with_a_tokenizer(runs, kind, tmp_path):
    out = export(runs(kind), tmp_path / "out", merge=False)
    final = snapshot(runs(kind) / "adapters" / "final")
    assert {name: content for name, content in snapshot(out).items() if name in final} == final
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(out))
    assert (
        tokenizer("Hello.")["input_ids"] == transformers.AutoTokenizer.from_pretrained(str(NANO))("Hello.")["input_ids"]
    )
    assert tokenizer.chat_template
    loader = peft.AutoPeftModelForCausalLM if kind == "lora" else transformers.AutoModelForCausalLM
    found = loader.from_pretrained(str(out), dtype=torch.float32).eval()
    assert torch.allclose(logits(found), logits(tuned(runs(kind))), atol=1e-6)


@pytest.mark.parametrize("merge", [True, False])
def test_nothing_is_overwritten(runs, tmp_path, merge):
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    empty.mkdir()
    for taken in (full, file):
        with pytest.raises(UserError, match="exists and is not empty"):
            export(runs("lora"), taken, merge)
    assert snapshot(full) == {Path("mine.txt"): b"mine"}
    assert file.read_text() == "mine"
    export(runs("lora"), empty, merge)
    assert (empty / ("model.safetensors" if merge else "adapter_model.safetensors")).exists()


def test_an_export_changes_nothing_in_the_run(runs, tmp_path):
    before = snapshot(runs("lora"))
    export(runs("lora"), tmp_path / "merged", merge=True)
    export(runs("lora"), tmp_path / "copied", merge=False)
    assert snapshot(runs("lora")) == before


def test_merged_weights_are_float32(runs, tmp_path):
    """The base is stored in bfloat16; the sum must not be rounded back to it."""
    out = export(runs("lora"), tmp_path / "merged", merge=True)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}


# -- runs that have nothing to hand on


def both_refuse(folder, out, words):
    with pytest.raises(UserError, match=words):
        export(folder, out, merge=False)
    with pytest.raises(UserError, match=words):
        export(folder, out, merge=True)
    with pytest.raises(UserError, match=words):
        Chat(folder)
    assert not out.exists()


def test_an_unfinished_run(runs, tmp_path):
    folder = shutil.copytree(runs("lora"), tmp_path / "run")
    shutil.rmtree(folder / "adapters")
    both_refuse(folder, tmp_path / "out", "has no final model yet; finish the run with fedloom resume")


def test_a_run_without_a_shared_model(tmp_path):
    folder = ran(tmp_path / "runs", "algorithm={name: local}", "aggregate.server_optimizer.momentum=0")
    both_refuse(folder, tmp_path / "out", "has no shared model, only the clients' own in .*clients")


def test_no_run_at_all(tmp_path):
    both_refuse(tmp_path / "nowhere", tmp_path / "out", "is not a run folder")
    (tmp_path / "some").mkdir()
    both_refuse(tmp_path / "some", tmp_path / "out", "is not a run folder")


# -- chat


def by_hand(model, messages, longest):
    """The chat template of the tokenizer, then the likeliest token again and again until the end token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(NANO))
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + longest:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                ids.pop()
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


ASKED = [{"role": "user", "content": "Write the word garden in capital letters."}]
TALK = [
    {"role": "user", "content": "Reverse the word stone."},
    {"role": "assistant", "content": "enots"},
    {"role": "user", "content": "Now the word river."},
]


@pytest.mark.parametrize("messages", [ASKED, TALK], ids=["question", "talk"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tuned_model_answers(runs, kind, messages):
    assert Chat(runs(kind), max_new_tokens=12).reply(messages) == by_hand(tuned(runs(kind)), messages, 12)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_base_answers(runs, kind):
    chat = Chat(runs(kind), base=True, max_new_tokens=12)
    assert [chat.reply(messages) for messages in (ASKED, TALK)] == [by_hand(base(), m, 12) for m in (ASKED, TALK)]


def test_base_and_tuned_model_differ_and_a_talk_is_more_than_its_last_question(runs):
    """Guards the tests above."""
    answers = {
        by_hand(model, messages, 12) for model in (base(), tuned(runs("lora"))) for messages in (TALK, TALK[-1:])
    }
    assert len(answers) >= 2


def test_no_reply_is_longer_than_asked(runs):
    assert Chat(runs("lora"), base=True, max_new_tokens=2).reply(ASKED) == by_hand(base(), ASKED, 2)


def test_a_template_without_turns_asks_the_last_question(tmp_path):
    folder = ran(tmp_path, "data.template='Q: {instruction} A: '")
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(str(NANO)), tuned(folder)
    ids = tokenizer("Q: Now the word river. A: ")["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 8 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    wanted = tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert Chat(folder, max_new_tokens=8).reply(TALK) == wanted


def test_a_question_that_is_too_long_is_cut_not_refused(runs):
    limit = load(runs("lora") / "config.yaml").data.max_length
    long = [{"role": "user", "content": "word " * limit}]
    assert isinstance(Chat(runs("lora"), max_new_tokens=2).reply(long), str)


def test_the_run_under_test_is_what_it_says(runs):
    """Guards the fixtures: kinds, targets and formats are those of the files."""
    written = {}
    for kind in ("rslora", "head"):
        written[kind] = json.loads((runs(kind) / "adapters" / "final" / "adapter_config.json").read_text())
    assert written["rslora"]["use_rslora"]
    assert sorted(written["head"]["target_modules"]) == ["lm_head", "q_proj"]
    model = base()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (runs("full") / "adapters" / "final" / "model.safetensors").exists()
