"""FedAvg. McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data,
https://arxiv.org/abs/1602.05629, algorithm 1.

Notation: x shared weights, y a client's weights after local training, n its examples; x, y are [P].
Each round x becomes Σ n_i y_i / Σ n_i over the clients that replied. With a server learning rate and momentum it is
FedAvgM (Hsu et al. 2019). What is averaged is the space's business: products of LoRA factors, say.
"""

from dataclasses import dataclass

from fedloom.aggregate.server import ServerSgd
from fedloom.contracts import Client, Federation, Message, Model, Needs, Space, Term, Weighted
from fedloom.params import Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink."""

    x: Params


@dataclass(frozen=True)
class Result(Weighted):
    """Uplink."""

    y: Term


@dataclass(frozen=True)
class State:
    """Shared weights and the server's velocity."""

    x: Params
    v: Params


@dataclass(frozen=True)
class FedAvg:
    """Average what the clients have after local training."""

    space: Space
    server: ServerSgd = ServerSgd()
    needs: Needs = Needs()

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start, self.server.start(start))

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server."""

        def down(client: int) -> Start:
            return Start(self.space.lower(s.x, fed.profile(client).layout))

        got = fed.collect(self.local, down, fed.cohort(), self.space.rule)
        mean = self.space.close(s.x, got.value.y)
        return State(*self.server.step(s.x, mean, s.v))

    def model(self, s: State) -> Params:
        """The shared weights."""
        return s.x

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train from x, send what came out."""
        run = await client.descend(down.x)
        return Result(y=self.space.lift(run.y, client.layout), weight=client.weight(run))

    async def personal(self, down: Model, client: Client) -> Params:
        """Every client uses the shared model."""
        return self.space.lower(down.x, client.layout)
