"""The recipes of offsite-tuning run for a round: with an emulator built as their comments say, and cut in memory."""

import json
from pathlib import Path

import pytest

import tiny
from fedloom import load, run
from fedloom.emulating import build
from fedloom.folder import RunFolder

SMALL = [
    "local.steps=1", "local.batch_size=2", "federation.rounds=1", "evaluate.metrics=[loss]", "partition.clients=3",
    "data.source=playground", "data.playground.rows=6", "data.playground.test_rows=2", "data.max_length=96",
    "data.test=0.1", "engine.threads=1",
]  # fmt: skip


def splits(folder: Path) -> set[str]:
    return {str(row["split"]) for row in RunFolder(folder).metrics()}


BIOT = ["algorithm={name: fedbiot, prealign_steps: 1, align_steps: 1, batch_size: 2}", "data.public=0.1"]


@pytest.mark.parametrize("more", [[], ["adapter=full", "local.lr=1e-3"], BIOT], ids=["lora", "full", "fedbiot"])
def test_nano_in_memory_and_as_a_folder(tmp_path: Path, more: list[str]) -> None:
    config = load("offsite-nano", [*SMALL, f"run.folder={tmp_path / 'runs'}", *more])
    assert splits(run(config).folder) == {"test", "emulator"}
    built = build(config, tmp_path / "emulator")
    assert built.facts.plan.layers == (0, 1, 3)
    there = [f"run.folder={tmp_path / 'again'}", f"offsite.emulator={built.folder}"]
    assert run(load("offsite-nano", [*SMALL, *there, *more])).status == "finished"


def test_dolly_with_an_aligned_emulator(tmp_path: Path) -> None:
    """A tiny LLaMA of eight blocks; alpaca's place is taken by a few rows of nobody."""
    owner = tiny.saved(tmp_path / "owner", "llama", num_hidden_layers=8)
    lines = [json.dumps({"instruction": f"say {i}", "output": f"it is {i}"}) for i in range(30)]
    (tmp_path / "public.jsonl").write_text("\n".join(lines))
    place = [
        f"model.name={owner}", f"offsite.align.source={tmp_path / 'public.jsonl'}", "offsite.align.steps=2",
        f"run.folder={tmp_path / 'runs'}", "offsite.drop_ratio=0.5",
    ]  # fmt: skip
    built = build(load("offsite-dolly", [*SMALL, *place]), tmp_path / "emulator")
    assert built.facts.plan.layers == (0, 1, 2, 5, 6, 7)
    ended = run(load("offsite-dolly", [*SMALL, *place, f"offsite.emulator={built.folder}"]))
    assert ended.status == "finished"
    assert splits(ended.folder) == {"test", "emulator"}


def test_dolly_s_blocks_are_the_published_ones() -> None:
    from fedloom.models.offsite import plan

    config = load("offsite-dolly")
    assert config.offsite is not None
    found = plan(config.offsite, 32)
    assert (found.head, 32 - found.tail, len(found.kept)) == (2, 30, 22)
    assert set(range(28)) - {i - 2 for i in found.kept} == {4, 8, 13, 17, 22, 26}
