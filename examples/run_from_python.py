"""The Python interface: load a recipe, run it, read its numbers, ask the tuned model.

    python examples/run_from_python.py
    python examples/run_from_python.py federation.rounds=2      # any setting can be changed

It is the quickstart made small (three skills, three clients), so that it ends in half a minute.
"""

import sys
import tempfile

import fedloom
from fedloom.events import Event, RoundFinished
from fedloom.finish import Chat
from fedloom.folder import RunFolder

SMALL = [
    "data.playground.skills=[quote, exclaim, capitalise]",
    "data.playground.rows=100",
    "data.playground.test_rows=10",
    "partition.clients=3",
    "partition.per_client=1",
    "federation.rounds=6",
    "evaluate.every=3",
    "evaluate.forgetting=false",
]


def show(event: Event) -> None:
    """A sink: called with every event of the run."""
    if isinstance(event, RoundFinished):
        print(f"round {event.round}: training loss {event.loss:.3f}, {event.bytes_up} bytes sent by the clients")


def main(overrides: list[str]) -> None:
    """Run, then read what the run folder holds."""
    place = tempfile.mkdtemp(prefix="run-from-python-")
    config = fedloom.load("quickstart", [*SMALL, f"run.folder={place}", *overrides])
    run = fedloom.run(config, sinks=[show])

    for row in RunFolder(run.folder).metrics():  # metrics.csv: one row for each evaluation and split
        print(f"after round {row['round']:.0f}: loss {row['loss']:.3f}, exact match {row['exact_match']:.2f}")
    print(f"{run.status}: {run.folder}")

    question = [{"role": "user", "content": "exclaim: soup"}]
    print("base: ", Chat(run.folder, base=True, max_new_tokens=16).reply(question))
    print("tuned:", Chat(run.folder, max_new_tokens=16).reply(question))


if __name__ == "__main__":
    main(sys.argv[1:])
