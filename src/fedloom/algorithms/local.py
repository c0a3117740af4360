"""Baseline: every client trains alone from the common start; nothing but the news that it did travels."""

from dataclasses import dataclass

from fedloom.aggregate.rules import Sum
from fedloom.algorithms.fedavg import INNER, recalled
from fedloom.contracts import Client, Federation, Message, Model, Needs
from fedloom.params import Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink: where clients begin that have not trained yet."""

    x: Params


@dataclass(frozen=True)
class Done(Message):
    """Uplink."""

    examples: int


@dataclass(frozen=True)
class State:
    """The common start, and examples trained on by everybody together."""

    x: Params
    examples: float = 0.0


@dataclass(frozen=True)
class LocalOnly:
    """No federation: what a client reaches by itself."""

    needs: Needs = Needs(personal=True)
    keep_inner: bool = False
    """Clients keep their optimiser's state from round to round, instead of starting it anew."""

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start)

    def round(self, s: State, fed: Federation) -> State:
        """The cohort trains on."""
        got = fed.collect(self.local, lambda _: Start(s.x), fed.cohort(), Sum())
        return State(s.x, s.examples + got.value.examples)

    def model(self, s: State) -> Model:
        """There is no shared model, only where everybody began."""
        return Model(s.x, whole=False)

    async def local(self, down: Start, client: Client) -> Done:
        """One client: go on from where it was."""
        y = client.state.get("y")
        run = await client.descend(down.x if y is None else y, inner=recalled(client) if self.keep_inner else None)
        client.state["y"] = run.y
        for name, value in (run.inner or {}).items():
            client.state[f"{INNER}{name}"] = value
        return Done(run.examples)

    async def personal(self, down: Model, client: Client) -> Model:
        """Its own weights."""
        y = client.state.get("y")
        return down if y is None else Model(y)
