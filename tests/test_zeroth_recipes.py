"""Recipes of the published experiments without gradients: their numbers, and that they run on the embedded model."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedloom import load, recipes, run
from fedloom.config import Config
from fedloom.events import Event, RoundFinished

MEZO = ["fedmezo-alpaca", "fedmezo-gsm8k", "fedmezo-dolly", "fedmezo-code"]
WHOLE = ["fedkseed-dolly", "fedkseed-natural-instructions", "ferret-natural-instructions"]
SMALL = [
    "model.name=nano", "federation.rounds=1", "local.steps=2", "evaluate.metrics=[loss]", "evaluate.every=1",
    "evaluate.rows_per_client=2", "evaluate.clients=all", "data.max_length=256", "data.test=0.2",
]  # fmt: skip
LORA, POOL = ["adapter.rank=2", "adapter.alpha=4"], ["partition.clients=4", "federation.cohort=2"]
OWN = {"fedkseed-dolly": POOL, "ferret-natural-instructions": ["algorithm.bases=64"]}


def rows(root: Path, count: int = 80) -> Path:
    """Local copies of all five sets, a few rows each, in the columns they are published in."""
    kinds = ("add", "copy", "sort", "name", "list", "sum", "ask", "tell")
    made: dict[str, list[dict[str, Any]]] = {
        "alpaca": [{"instruction": f"say {i}", "input": "", "output": str(i)} for i in range(count)],
        "gsm8k": [{"question": f"{i} and 1?", "answer": f"it is {i + 1}\n#### {i + 1}"} for i in range(count)],
        "dolly": [
            {"instruction": f"say {i}", "context": "", "response": str(i), "category": kinds[i % 8]}
            for i in range(count)
        ],
        "rosetta_alpaca": [
            {"instruction": f"print {i}", "input": ("C", "Go", "Ruby")[i % 3], "output": f"p({i})"}
            for i in range(count)
        ],
        "natural_instructions": [
            {"instruction": "say it", "input": str(i), "output": str(i), "category": "say", "client_id": f"task{i % 4}"}
            for i in range(count)
        ],
    }
    for name, found in made.items():
        (root / name).mkdir(parents=True)
        (root / name / "train.jsonl").write_text("\n".join(map(json.dumps, found)) + "\n")
    return root


def ran(tmp_path: Path, recipe: str, *overrides: str) -> RoundFinished:
    """The one round of a recipe."""
    place = [f"data.root={rows(tmp_path / 'data')}", f"run.folder={tmp_path / 'runs'}"]
    events: list[Event] = []
    ended = run(
        load(recipe, [*SMALL, *(LORA if recipe in MEZO else OWN.get(recipe, [])), *place, *overrides]), [events.append]
    )
    assert ended.status == "finished"
    (done,) = [event for event in events if isinstance(event, RoundFinished)]
    assert done.missing == 0 and done.skipped == 0 and done.steps == 2 * done.clients
    return done


@pytest.mark.parametrize("recipe", [*MEZO, *WHOLE])
def test_a_recipe_runs_on_the_embedded_model(recipe: str, tmp_path: Path) -> None:
    done = ran(tmp_path, recipe)
    assert done.clients == (3 if recipe in MEZO else 2 if recipe in OWN and POOL is OWN[recipe] else 1)


@pytest.mark.parametrize("rate", ["random", "round_wise", "five_round", "model_diff"])
def test_rates_that_differ_run_too(rate: str, tmp_path: Path) -> None:
    ran(tmp_path, "fedmezo-dolly", f"algorithm.rate={rate}", "local.lr=1e-4")


@pytest.mark.parametrize("recipe", ["fedmezo-code", "ferret-natural-instructions"])
def test_gradients_run_beside_them(recipe: str, tmp_path: Path) -> None:
    """As the recipe's own comment says."""
    assert "algorithm=fedavg" in recipes.text(recipe)
    overrides = ["algorithm=fedavg", "local.lr=1e-4"]
    place = [f"data.root={rows(tmp_path / 'data')}", f"run.folder={tmp_path / 'runs'}"]
    config = load(recipe, [*SMALL, *(LORA if recipe in MEZO else []), *place, *overrides])
    assert run(config).status == "finished"


def test_fedmezos_numbers_are_the_published_ones() -> None:
    """T = 500, 30 steps of batch 1, three clients; rates by data set; LoRA of rank 128; epsilon 1e-3, C 5e-6."""
    found: dict[str, Config] = {name: load(name) for name in MEZO}
    rates = [config.local.lr for config in found.values()]
    assert rates == [1e-5, 2.5e-5, 1e-5, 2e-5]
    assert [config.partition.method for config in found.values()] == ["iid", "iid", "category", "dirichlet"]
    for config in found.values():
        assert (config.federation.rounds, config.local.steps, config.local.batch_size) == (500, 30, 1)
        assert (config.adapter.rank, config.adapter.alpha) == (128, 256)  # type: ignore[union-attr]
        assert (config.algorithm.epsilon, config.algorithm.spread) == (1e-3, 5e-6)  # type: ignore[union-attr]
    assert found["fedmezo-code"].partition.alpha == 0.5  # type: ignore[union-attr]


def test_fedkseeds_numbers_are_the_published_ones() -> None:
    """40 rounds of 5 %, 200 steps of batch 1, K = 4096, epsilon 5e-4, rate 3e-7; dolly: 200 clients."""
    dolly, tasks = (load(name) for name in WHOLE[:2])
    for config in (dolly, tasks):
        assert (config.federation.rounds, config.local.steps, config.local.batch_size) == (40, 200, 1)
        assert (config.local.lr, config.algorithm.pool, config.algorithm.epsilon) == (3e-7, 4096, 5e-4)  # type: ignore[union-attr]
        assert config.adapter.kind == "full"
    assert (dolly.partition.clients, dolly.partition.alpha) == (200, 0.5)  # type: ignore[union-attr]


def test_ferrets_numbers_are_the_published_ones() -> None:
    """12 rounds of 5 %, 10 steps of 4 rows at 1e-4, clients alike; server rate 10 of updates without 1 / rho = 3."""
    config = load(WHOLE[2])
    assert (config.federation.rounds, config.local.steps, config.local.batch_size) == (12, 10, 4)
    assert (config.local.lr, config.local.optimizer.name, config.aggregate.weighting) == (1e-4, "sgd", "uniform")
    assert config.algorithm.server_lr == pytest.approx(10 / 3, abs=0.05)  # type: ignore[union-attr]
