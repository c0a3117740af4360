"""What rules withstand: attacks in rows, rules in columns, the loss at the end in the cells.

`tuning`: the embedded model learns five skills of the playground, whole runs through the public interface; loss on the
clients' own test rows in nats per token. `least squares`: the toy federation of tests/test_attacks.py, median over
seeds of the loss at the end over that of the mean without attack. Both: 12 clients with rows dealt at random, all asked
in every round, 2 of them hostile and drawn by the seed.

Attacks are as strong as it takes to break the mean, and no stronger than said: with two of twelve turned round the mean
goes the wrong way beyond a scale of 5; enlarged updates add up to (10 + 2 factor) / 12 honest ones. Krum and the others
are told the right number of attackers. The norm bound is about the length of an honest update in the first round.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import say, table, write

TESTS = Path(__file__).parent.parent / "tests"
SEEDS = range(10)
RECIPE = [
    "partition={method: iid, clients: 12}", "federation.rounds=4", "local.steps=5", "local.batch_size=8",
    "local.lr=6e-3", "data.playground.skills=[capitalise, past_tense, brackets, hashtag, shout]",
    "data.playground.rows=200", "data.playground.test_rows=24",
    "aggregate.server_optimizer={name: sgd}", "evaluate.every=0", "evaluate.forgetting=false",
    "evaluate.metrics=[loss]", "checkpoint.every=4",
]  # fmt: skip
ATTACKS = {
    "none": "{name: none}",
    "sign_flip, scale 10": "{name: sign_flip, clients: 2, scale: 10}",
    "gaussian, std 1": "{name: gaussian, clients: 2, std: 1.0}",
    "scaled, factor 50": "{name: scaled, clients: 2, factor: 50}",
    "label_flip": "{name: label_flip, clients: 2}",
}
RULES = {
    "mean": "{name: mean}",
    "median": "{name: median}",
    "trimmed_mean": "{name: trimmed_mean, share: 0.2}",
    "krum": "{name: krum, f: 2}",
    "multi_krum": "{name: multi_krum, f: 2, m: 8}",
    "bulyan": "{name: bulyan, f: 2}",
    "norm_bound": "{name: norm_bound, limit: 5.0}",
    "geometric_median": "{name: geometric_median}",
}


def main() -> int:
    torch.set_num_threads(1)
    toy = least_squares()
    say(table(toy))
    tuned = tuning()
    say(table(tuned))
    setting = {"recipe": RECIPE, "attacks": ATTACKS, "rules": RULES, "toy seeds": len(SEEDS)}
    write("attacks", "python benchmarks/run.py attacks", {**setting, "tuning": tuned, "least squares": toy})
    return 0


def tuning() -> list[dict[str, Any]]:
    rows = []
    for attack, hostile in ATTACKS.items():
        losses = {rule: tuned(hostile, wanted) for rule, wanted in RULES.items()}
        rows.append({"attack": attack, **{rule: shown(after) for rule, (_, after) in losses.items()}})
        rows[-1]["at the start"] = shown(losses["mean"][0])
        say(str(rows[-1]))
    return rows


def tuned(attack: str, rule: str, *more: str) -> tuple[float, float]:
    """Test losses before and after a run."""
    import fedloom
    from fedloom.events import Evaluated, Event

    found = list[float]()

    def sink(event: Event) -> None:
        if isinstance(event, Evaluated) and event.split == "test":
            found.append(event.metrics["loss"])

    with tempfile.TemporaryDirectory() as folder:
        chosen = [*RECIPE, f"attack={attack}", f"aggregate.rule={rule}", *more, f"run.folder={folder}"]
        fedloom.run(fedloom.load("quickstart", chosen), [sink])
    return found[0], found[-1]


def least_squares() -> list[dict[str, Any]]:
    sys.path.insert(0, str(TESTS))
    import test_attacks as toy

    rows = []
    for attack in toy.ATTACKS:
        ratios = {
            rule: statistics.median(toy.final(attack, rule, s) / toy.final("none", "mean", s) for s in SEEDS)
            for rule in toy.RULES
        }
        rows.append({"attack": attack, **{rule: shown(ratio) for rule, ratio in ratios.items()}})
    start = statistics.median(toy.untrained(s) / toy.final("none", "mean", s) for s in SEEDS)
    return [{**row, "at the start": shown(start)} for row in rows]


def shown(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else f"{value:.0e}"


if __name__ == "__main__":
    sys.exit(main())
