"""A new algorithm as one page, run on the embedded model: FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127).

    python examples/new_algorithm.py
    python examples/new_algorithm.py federation.rounds=2        # any setting can be changed

Notation: x shared weights, y a client's weights during local training, both [P]. Each client minimises its own loss
plus mu / 2 |y - x|^2, that is, mu (y - x) is added to every gradient; the server takes the weighted mean, as in FedAvg.

A page of your own is handed to `fedloom.run` in place of the one the recipe names; model, data, run folder and
checkpoints are the same. To make it a name for recipes, with all contract tests: see CONTRIBUTING.md.
"""

import sys
import tempfile
from dataclasses import dataclass

from torch import Tensor

import fedloom
from fedloom.aggregate.rules import Mean
from fedloom.contracts import Client, Federation, Message, Model, Needs, Weighted
from fedloom.events import Evaluated, Event, RoundFinished
from fedloom.params import Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params


@dataclass(frozen=True)
class Result(Weighted):
    """Uplink; `weight` says how much it counts."""

    y: Params


@dataclass(frozen=True)
class State:
    """All that a checkpoint needs."""

    x: Params


@dataclass(frozen=True)
class FedProx:
    """FedAvg with a pull towards the round's start; mu = 0 is FedAvg."""

    mu: float
    needs: Needs = Needs()

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start)

    def round(self, s: State, fed: Federation) -> State:
        """The server's half."""
        got = fed.collect(self.local, lambda _: Start(s.x), fed.cohort(), Mean())
        return State(got.value.y)

    def model(self, s: State) -> Model:
        """The shared model."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """One client's half."""

        def pulled(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
            return g + self.mu * (y - x)

        run = await client.descend(down.x, correct=pulled, with_=(down.x,))
        return Result(y=run.y, weight=client.weight(run))

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down


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
    """Print losses and scores."""
    if isinstance(event, RoundFinished):
        print(f"round {event.round}: {event.clients} clients, training loss {event.loss:.3f}")
    elif isinstance(event, Evaluated):
        print("after round {}: loss {loss:.3f}, exact match {exact_match:.2f}".format(event.round, **event.metrics))


def main(overrides: list[str]) -> None:
    """Train with the page; the recipe says everything else."""
    place = tempfile.mkdtemp(prefix="new-algorithm-")
    config = fedloom.load("quickstart", [*SMALL, f"run.folder={place}", *overrides])
    run = fedloom.run(config, sinks=[show], algorithm=FedProx(mu=0.1))
    print(f"{run.status}: {run.folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
