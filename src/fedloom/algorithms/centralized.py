"""Baseline: all rows in one place. Each round trains as many examples as the cohort would see together.

The optimiser starts anew each round, as it does on clients, so that what differs from FedAvg is the averaging alone.
"""

from dataclasses import dataclass

from fedloom.aggregate.rules import Mean
from fedloom.algorithms.fitting import vectors
from fedloom.contracts import Client, Federation, Message, Model, Needs, Weighted
from fedloom.params import Params


@dataclass(frozen=True)
class Start(Message):
    """To the worker that holds all rows."""

    x: Params


@dataclass(frozen=True)
class Result(Weighted):
    """From the worker."""

    y: Params


@dataclass(frozen=True)
class State:
    """The weights."""

    x: Params


@dataclass(frozen=True)
class Centralized:
    """What the same training reaches when the text may move."""

    needs: Needs = Needs(home=True, pooled_data=True)

    def init(self, start: Params) -> State:
        """Begin at `start`."""
        return State(start)

    def round(self, s: State, fed: Federation) -> State:
        """Train on the pooled rows."""
        assert fed.home is not None  # declared in `needs`
        got = fed.collect(self.local, lambda _: Start(s.x), [fed.home], Mean(), vectors(y=s.x))
        return State(got.value.y)

    def model(self, s: State) -> Model:
        """The weights."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Result:
        """The worker that holds all rows; the recipe's steps are multiplied by the cohort for it."""
        run = await client.descend(down.x)
        return Result(y=run.y, weight=client.weight(run))

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the one model."""
        return down
