"""The recipes of SST-2 and CoLA run on a small encoder and a few rows, and those of a table differ in one thing."""

import random
from pathlib import Path
from typing import Any

import pytest

from fedloom import load, run
from fedloom.events import Evaluated, Event, RoundFinished
from models import tiny_classifiers as small

RECIPES = ["sst2-fedlora", "sst2-fedavg", "sst2-fedkd", "cola-fedkd"]
SMALL = [
    "data.limit=null", "data.public=0.3", "local.steps=2", "local.batch_size=4", "federation.rounds=2",
    "evaluate.every=1",
]  # fmt: skip


def rows(root: Path, count: int = 60) -> Path:
    """Local copies of both sets, as they are published: one with a header, one without."""
    source = random.Random(4)
    for folder, train, dev in (
        ("sst2", "train.tsv", "dev.tsv"),
        ("cola", "in_domain_train.tsv", "in_domain_dev.tsv"),
    ):
        (root / folder).mkdir(parents=True)
        for name in (train, dev):
            found = [(source.choice("abcdefgh") * source.randint(1, 6), source.randint(0, 1)) for _ in range(count)]
            if folder == "sst2":
                lines = ["sentence\tlabel", *(f"{text} \t{label}" for text, label in found)]
            else:
                lines = [f"gj04\t{label}\t{'' if label else '*'}\t{text}." for text, label in found]
            (root / folder / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_on_a_small_encoder(recipe: str, tmp_path: Path) -> None:
    model = small.saved(tmp_path / "bert", "bert")
    place = [f"model.name={model}", f"data.root={rows(tmp_path / 'data')}", f"run.folder={tmp_path / 'runs'}"]
    if recipe.endswith("fedkd"):
        place += ["model.layers=[0, 2]", f"algorithm.teacher.name={model}"]
    events: list[Event] = []
    ended = run(load(recipe, [*SMALL, *place]), [events.append])
    assert ended.status == "finished"
    assert [event.round for event in events if isinstance(event, Evaluated)] == [0, 1, 2]
    assert ended.metrics["accuracy"] == pytest.approx(0.5, abs=0.35)
    assert all(event.missing == 0 for event in events if isinstance(event, RoundFinished))


def test_recipes_of_a_table_differ_in_one_thing() -> None:
    lora, whole, taught, cola = (load(name).model_dump() for name in RECIPES)
    _differ(lora, whole, {"adapter", "local.lr"})
    _differ(lora, taught, {"algorithm", "model.layers"})
    _differ(taught, cola, {"data.source", "data.limit", "evaluate", "objective.head", "local", "algorithm"})


def _differ(ours: dict[str, Any], theirs: dict[str, Any], expected: set[str]) -> None:
    for key in ours.keys() - {"run"} - expected:
        one, other = ours[key], theirs[key]
        if isinstance(one, dict):
            hidden = {inner for section, _, inner in (name.partition(".") for name in expected) if section == key}
            one, other = ({k: v for k, v in part.items() if k not in hidden} for part in (one, other))
        assert one == other, key


def test_fedkd_teaches_a_part_of_its_teacher() -> None:
    config = load("sst2-fedkd")
    assert config.model.layers == [0, 2, 4]
    assert config.algorithm.teacher.name == config.model.name  # type: ignore[union-attr]
    assert load("sst2-fedkd", ["algorithm=fedavg"]).algorithm.name == "fedavg"  # the same student without a teacher
