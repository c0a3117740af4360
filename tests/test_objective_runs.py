"""Whole runs of every objective: in memory as over the wire, on two processes as on one, resumed as never stopped."""

import json
import random
from pathlib import Path

import pytest

from fedloom import experiment
from fedloom.config import Config, load
from fedloom.events import Event, RoundFinished
from test_experiment import same, table

COMMON = [
    "partition={method: iid, clients: 4}", "local.steps=2", "local.batch_size=4", "adapter.rank=2",
    "adapter.dropout=0.1", "adapter.targets=auto", "federation.rounds=3", "federation.cohort=3", "evaluate.every=1",
    "evaluate.forgetting=false", "evaluate.metrics=null", "local.lr=0.01", "model.dtype=float32", "data.max_length=96",
]  # fmt: skip
PLAYGROUND = ["data.playground.skills=[shout, quote]", "data.playground.rows=16", "data.playground.test_rows=4"]


def moods(folder: Path) -> Path:
    """Made-up sentences whose class is a word's, in a file of our own."""
    source = random.Random(5)
    words = {"glad": ["fine", "sunny", "kind"], "sad": ["grey", "cold", "lost"], "so-so": ["plain", "usual", "even"]}
    rows = [
        {"sentence": f"the {source.choice(['day', 'walk', 'film'])} was {source.choice(words[label])}", "label": label}
        for label in source.choices(list(words), k=60)
    ]
    path = folder / "moods.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(case: str, folder: Path) -> list[str]:
    classes = ["objective=classify", f"data.source={moods(folder)}", "data.test=0.2"]
    dpo = ["objective=dpo", *PLAYGROUND]
    return {
        "classify": classes,
        "classify, all tuned": [*classes, "adapter=full", "local.lr=0.001"],
        "dpo": dpo,
        "dpo from the start, smoothed": [*dpo, "objective.reference=start", "objective.label_smoothing=0.1"],
        "simpo": [*dpo, "objective.loss=simpo", "objective.beta=2"],
        "kto": ["objective=kto", *PLAYGROUND],
        "all tokens": [*PLAYGROUND, "data.loss_on=all"],
    }[case]


CASES = (
    "classify", "classify, all tuned", "dpo", "dpo from the start, smoothed", "simpo", "kto", "all tokens",
)  # fmt: skip


def config(case: str, folder: Path, *more: str) -> Config:
    changes = settings(case, folder)
    common = [one for one in COMMON if not (case == "classify, all tuned" and one.startswith("adapter."))]
    return load("quickstart", [*common, *changes, f"run.folder={folder / 'runs'}", *more])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_memory_is_wire_and_resumed_is_unbroken(case: str, tmp_path: Path) -> None:
    whole = experiment.run(config(case, tmp_path)).folder
    same(experiment.run(config(case, tmp_path, "runtime.name=loopback")).folder, whole)

    seen: list[Event] = []

    def stop(event: Event) -> None:
        seen.append(event)
        if sum(isinstance(one, RoundFinished) for one in seen) == 2:
            raise KeyboardInterrupt

    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config(case, tmp_path, f"run.folder={other}"), [stop])
    (broken,) = other.iterdir()
    same(experiment.resume(broken).folder, whole)


@pytest.mark.parametrize("case", CASES)
def test_what_is_measured_is_the_objectives_own(case: str, tmp_path: Path) -> None:
    run = experiment.run(config(case, tmp_path, "federation.rounds=1"))
    own = {
        "classify": {"loss", "accuracy", "f1", "matthews"},
        "dpo": {"loss", "preference_accuracy", "margin"},
        "simpo": {"loss", "preference_accuracy", "margin"},
        "kto": {"loss", "margin"},
        "all": {"loss", "perplexity", "exact_match"},
    }[case.replace(",", "").split()[0]]
    assert own <= set(run.metrics)
    first = table(run.folder, "metrics.csv")[0]
    if case.startswith("dpo"):  # nothing was trained yet: all rewards are zero
        assert float(first["preference_accuracy"]) == 0.5
        assert float(first["loss"]) == pytest.approx(0.693147, abs=1e-5)
