"""Emulators made from recipes: the same bytes for the same seed, rows that are nobody's, and mistakes said at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedloom import atomic, emulating
from fedloom.cli.main import app
from fedloom.config import Config, load
from fedloom.errors import RunStopped, UserError
from fedloom.models import emulator
from fedloom.models.identity import kin
from fedloom.models.load import NANO, load_model, load_tokenizer
from fedloom.objectives.sft import Sft

NANO_RECIPE = ["data.playground.rows=40", "data.playground.test_rows=4", "data.public=0.2", "data.max_length=96"]
DISTILL = ["offsite.method=distill", "offsite.align={steps: 4, batch_size: 4}"]


def config(*overrides: str) -> Config:
    return load("quickstart", [*NANO_RECIPE, "offsite.drop_ratio=0.5", *overrides])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_dropping_blocks(tmp_path: Path) -> None:
    made = emulating.build(config(), tmp_path / "out")
    facts = emulator.read(tmp_path / "out")
    assert made.facts == facts
    assert (facts.base, facts.method, facts.align) == ("nano", "drop", None)
    assert facts.base_kin == kin(load_model(config().model).module)
    stored, own = load_file(NANO / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for new, old in enumerate(facts.plan.layers):
        for name, tensor in own.items():
            if f"layers.{new}." in name:
                assert torch.equal(tensor, stored[name.replace(f"layers.{new}.", f"layers.{old}.")])
    assert made.bytes == 2 * facts.parameters < made.base_bytes == 2 * facts.base_parameters
    assert {tensor.dtype for tensor in own.values()} == {torch.bfloat16}  # as the owner's files


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_asked_format(tmp_path: Path, dtype: str) -> None:
    emulating.build(config(f"model.dtype={dtype}", *DISTILL), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in found.values()} == {f"torch.{dtype}"}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, more in (("one", []), ("two", []), ("three", ["seed=5"])):
        emulating.build(config(*DISTILL, *more), tmp_path / name)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one["model.safetensors"] != three["model.safetensors"]


def test_alignment_brings_the_outputs_closer(tmp_path: Path) -> None:
    steps = "offsite.align={steps: 60, batch_size: 8, lm_weight: 0.0, kd_weight: 1.0}"
    made = emulating.build(config("offsite.method=distill", steps), tmp_path / "out")
    align = made.facts.align
    assert align is not None
    assert align.kd_after < 0.9 * align.kd_before
    assert align.loss_last < align.loss_first
    assert (align.steps, align.rows, align.held) == (60, 72, 8)
    dropped = emulating.build(config(), tmp_path / "dropped").facts
    assert dropped.own != made.facts.own
    own, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "dropped"))
    moved = {name for name in own if not torch.equal(own[name], plain[name])}
    assert moved
    assert all(".layers.1." in name for name in moved)


def test_an_interrupted_or_diverged_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunStopped, match="Nothing was written"):
        wild = "offsite.align={steps: 5, lr: 1.0e+30, max_grad_norm: null, optimizer: sgd}"
        emulating.build(config("offsite.method=distill", wild), tmp_path / "out")
    assert not list(tmp_path.iterdir())

    def stopped(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_sync", stopped)
    with pytest.raises(KeyboardInterrupt):
        emulating.build(config(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# -- rows


def rows(path: Path, word: str, count: int = 12) -> Path:
    lines = [{"instruction": f"{word} {i}?", "output": f"{word} {i}."} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every text that any model is asked about."""
    found: list[tuple[int, ...]] = []
    asked = Sft.texts

    def texts(self: Sft, part: Any) -> Any:
        found.extend(tuple(one.ids) for one in part)
        return asked(self, part)

    monkeypatch.setattr(Sft, "texts", texts)
    return found


@pytest.mark.parametrize("way", ["share", "source of the owner", "public source"])
def test_clients_rows_are_never_seen(tmp_path: Path, seen: list[tuple[int, ...]], way: str) -> None:
    clients, own = rows(tmp_path / "clients.jsonl", "clientrow", 30), rows(tmp_path / "own.jsonl", "ownerrow")
    settings = {
        "share": [f"data.source={clients}", "data.public=0.2"],
        "source of the owner": ["data.source=/nowhere/else.jsonl", f"offsite.align.source={own}", "data.public=0"],
        "public source": ["data.source=/nowhere/else.jsonl", f"data.public_source={own}", "data.public=0"],
    }[way]
    recipe = config(*DISTILL, *settings, "partition={method: iid, clients: 3}", "evaluate.forgetting=false")
    emulating.build(recipe, tmp_path / "out")
    tokenizer = load_tokenizer(recipe.model)
    texts = {tokenizer.decode(list(ids)) for ids in seen}
    assert texts
    if way != "share":
        assert all("ownerrow" in text for text in texts)
        return
    from fedloom.sides import Both

    data = Both().data(recipe, tokenizer)
    clients_texts = {one.ids for client in data.clients for split in ("train", "test") for one in client.get(split)}
    assert clients_texts
    assert not clients_texts & set(seen)
    assert set(seen) <= {one.ids for one in data.public.get("train")}  # type: ignore[union-attr]


def test_rows_that_are_held_back_are_never_learned(tmp_path: Path) -> None:
    recipe = config(*DISTILL)
    found = emulating.own_rows(recipe, load_tokenizer(recipe.model))
    assert len(found.held) == 8
    assert len(found.train) == 72
    assert not {one.ids for one in found.held} & {one.ids for one in found.train}
    steps = emulating.course(found, recipe.offsite.align, 7, 3)  # type: ignore[union-attr]
    assert {one.ids for batch in steps.batches for one in batch} <= {one.ids for one in found.train}
    assert steps.lrs[0] == 1e-3
    assert steps.lrs[3] == pytest.approx(0.5e-3)
    assert steps.lrs[-1] == pytest.approx(0)
    again = emulating.own_rows(recipe, load_tokenizer(recipe.model))
    assert [one.ids for one in again.held] == [one.ids for one in found.held]


# -- mistakes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["offsite=null"], "offsite is not set"),
        ([*DISTILL, "data.public=0"], r"no rows to align the emulator on, .* set offsite\.align\.source"),
        ([*DISTILL, "offsite.align.source=playground"], "is data.source, which holds the clients' rows"),
        ([*DISTILL, "data.public=0", "data.public_source=playground"], "data.public_source=playground is data.source"),
        ([*DISTILL, "offsite.align.source=/nowhere/x.jsonl"], r"offsite\.align\.source=/nowhere/x\.jsonl: "),
        (["offsite.head_layers=3"], "has 4 blocks, so 0 would stay"),
        (["offsite.drop_ratio=0.1"], "keeps all of them"),
        (["data.max_length=4096"], r"data\.max_length=4096, but nano was built for 2048"),
    ],
)
def test_said_before_any_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(emulating, "load_model", loaded)
    with pytest.raises(UserError, match=words):
        emulating.build(config(*overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_row_is_not_enough(tmp_path: Path) -> None:
    own = rows(tmp_path / "own.jsonl", "owner", 1)
    with pytest.raises(UserError, match="gives 1 rows that can be used of 1, and at least 2"):
        emulating.build(config(*DISTILL, f"offsite.align.source={own}"), tmp_path / "out")


# -- commands


def said(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_the_commands(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = said("emulator", "build", "quickstart", *NANO_RECIPE, *DISTILL, "--out", str(out))
    assert code == 0, text
    assert f"use it with: offsite.emulator={out}" in text
    assert "aligned in 4 steps on 72 rows" in text
    code, text = said("emulator", "show", str(out))
    assert code == 0, text
    assert emulator.read(out).fingerprint in text
    assert [line.split()[:2] for line in text.splitlines()[-3:]] == [["0", "0"], ["1", "1"], ["2", "3"]]
    assert "fixed: with 1 in place of 1 to 2" in text
    code, text = said("emulator", "build", "quickstart", *NANO_RECIPE, "offsite={}", "--out", str(out))
    assert (code, "not empty" in text) == (2, True)
    code, text = said("emulator", "show", str(tmp_path))
    assert (code, "holds no emulator" in text) == (2, True)
    code, text = said("emulator", "build", "quickstart", "--oot", "x")
    assert (code, "Did you mean --out?" in text) == (2, True)
