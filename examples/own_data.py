"""Three sites with data of their own tune one model: a small JSONL file, one client for each value of its column.

    python examples/own_data.py
    python examples/own_data.py federation.rounds=2        # any setting can be changed

It writes the file and the run into a temporary folder and prints every site's scores before and after.
"""

import json
import sys
import tempfile
from pathlib import Path

import fedloom
from fedloom.events import Evaluated, Event

THINGS = """
lamp soup rope drum kite boat ring vase comb bell sock fork coat belt lens pipe tent sled gate harp
book shoe hat mug jar map net oar pen cup rug saw tie urn van wig axe bag can fan
"""

RECIPE = """
run: {name: own-data}
model: {name: nano}             # embedded; a Hugging Face id or a folder for a real model
adapter: {kind: lora, rank: 8, alpha: 16, targets: all-linear}
data: {max_length: 64, test: 0.2}
partition: {method: natural}    # a client for each value of the column `site`
local: {steps: 6, batch_size: 8, lr: 6e-3}
federation: {rounds: 8}
evaluate: {every: 0, metrics: [loss, exact_match], max_new_tokens: 16}
"""


def rows() -> list[dict[str, str]]:
    """Every site labels things in a way of its own; `site` says whose row it is."""
    habits = {
        "berlin": ("ticket for", "#{}#"),
        "lima": ("invoice for", "{0}/{0}"),
        "osaka": ("parcel with", "[{}]"),
    }
    return [
        {"instruction": f"{question} {thing}", "output": answer.format(thing), "site": site}
        for site, (question, answer) in habits.items()
        for thing in THINGS.split()
    ]


def show(event: Event) -> None:
    """Print every site's score on its own test rows."""
    if isinstance(event, Evaluated):
        scores = ", ".join(f"{name} {one['exact_match']:.2f}" for name, one in event.clients.items())
        print(f"after round {event.round}: exact match {scores}")


def main(overrides: list[str]) -> None:
    """Write the file and the recipe, then train."""
    place = Path(tempfile.mkdtemp(prefix="own-data-"))
    data = place / "sites.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    recipe = place / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    config = fedloom.load(str(recipe), [f"data.source={data}", f"run.folder={place / 'runs'}", *overrides])
    run = fedloom.run(config, sinks=[show])
    print(f"all sites: exact match {run.metrics['exact_match']:.2f}, loss {run.metrics['loss']:.3f}")
    print(f"run folder: {run.folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
