"""FedPer. Arivazhagan et al. 2019, Federated Learning with Personalization Layers, https://arxiv.org/abs/1912.00818,
algorithms 1 and 2. With the B factors private it is FedSA-LoRA: Guo et al. 2024, Selective Aggregation for Low-Rank
Adaptation in Federated Learning, https://arxiv.org/abs/2410.01463.

Notation: x shared weights [P]; some of their leaves are private, the rest is shared. A client trains both together,
sends the shared leaves and keeps the private ones. The server's x holds the private leaves as they were at the start.
It travels whole: a client that never trained takes its private leaves from it, and the server need not remember who
has. Nobody uses x as it stands.
"""

from dataclasses import dataclass

from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.aggregate.server import Momenta, ServerOptimizer, ServerSgd
from fedloom.algorithms.fitting import vectors
from fedloom.algorithms.watching import Watch
from fedloom.contracts import Client, Federation, Message, Model, Needs, Weighted
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink: shared leaves, and the private ones as they were at the start."""

    x: Params


@dataclass(frozen=True)
class Result(Weighted):
    """Uplink."""

    shared: Tensor
    """Numbers of the shared leaves, in the order of the layout."""


@dataclass(frozen=True)
class State:
    """Shared leaves beside private ones as they were at the start, and the server optimiser's memory."""

    x: Params
    memory: Momenta


@dataclass(frozen=True)
class FedPer:
    """Both parts are trained together. All clients have one layout."""

    layout: Layout
    private: tuple[str, ...]
    """Shell patterns of the leaves that stay with the clients: `*.B`."""
    server: ServerOptimizer = ServerSgd()
    needs: Needs = Needs(personal=True)

    def __post_init__(self) -> None:
        try:
            private = self.layout.named(self.private)
        except ValueError as error:
            raise ValueError(f"private: {error}") from None
        if not private:
            raise ValueError("no trained tensor is private; name at least one, or use fedavg, which shares all")
        if not self.shared(self.layout):
            raise ValueError(
                f"{', '.join(self.private)} makes every trained tensor private, so nothing is left to share; leave one "
                "out, or use local, which shares nothing"
            )

    def shared(self, layout: Layout) -> tuple[str, ...]:
        """Names of the leaves that are sent."""
        private = set(layout.named(self.private))
        return tuple(name for name in layout.names if name not in private)

    def init(self, start: Params) -> State:
        """Everybody begins at `start`."""
        return State(start, self.server.start(self.layout.take(start, self.shared(self.layout))))

    def round(self, s: State, fed: Federation) -> State:
        """One round of the server: the shared leaves follow their mean."""
        names = self.shared(self.layout)
        shared = self.layout.take(s.x, names)
        watch = Watch()
        rules = {"shared": watch.rule(Mean())}
        got = fed.collect(self.local, lambda _: Start(s.x), fed.cohort(), rules, vectors(shared=shared))
        watch.note(fed, shared)
        term, memory = self.server.step(shared, got.value.shared, s.memory)
        assert isinstance(term, Tensor)  # a vector goes in
        return State(self.layout.put(s.x, names, term), memory)

    def model(self, s: State) -> Model:
        """The shared part only."""
        return Model(s.x, whole=False)

    async def local(self, down: Start, client: Client) -> Result:
        """One client: train all of its model, send the shared part."""
        run = await client.descend(self.own(down.x, client))
        return Result(shared=self.keep(run.y, client), weight=client.weight(run))

    async def personal(self, down: Model, client: Client) -> Model:
        """The shared leaves beside its private ones; those of the start for a client that never trained."""
        return Model(self.own(down.x, client), down.carry)

    def own(self, x: Params, client: Client) -> Params:
        """[P]: x with the client's private leaves."""
        private = client.state.get("private")
        return x if private is None else client.layout.put(x, client.layout.named(self.private), private)

    def keep(self, y: Params, client: Client) -> Tensor:
        """Remember the private leaves of y; the shared ones, to be sent."""
        client.state["private"] = client.layout.take(y, client.layout.named(self.private))
        return client.layout.take(y, self.shared(client.layout))
