"""FedBuff. Nguyen et al. 2022, Federated Learning with Buffered Asynchronous Aggregation,
https://arxiv.org/abs/2106.06639, algorithm 1.

Notation: x shared weights, t their version, y a client's weights after training from the version it was sent, D = y - x
of that version, age the versions made since, K the buffer's size; x, y, D are [P]. Nobody waits for the slowest: as
soon as K differences are there, x becomes x + eta (1/K) sum (1 + age)^-a D. It is divided by K, not by the sum of the
factors, so that a buffer of old differences moves x less.
"""

from dataclasses import dataclass

from torch import Tensor

from fedloom.aggregate.rules import Gather, Mean
from fedloom.algorithms.fitting import vectors
from fedloom.contracts import Client, ClientFailed, ClientId, Federation, Fits, Message, Model, Needs, Rule
from fedloom.params import Params


@dataclass(frozen=True)
class Start(Message):
    """Downlink: weights and their version."""

    x: Params
    t: int


@dataclass(frozen=True)
class Update(Message):
    """Uplink: how far the client went from the version it was sent, and how often it counts."""

    dy: Tensor
    t: int
    n: float


@dataclass(frozen=True)
class State:
    """Shared weights and how often they changed."""

    x: Params
    t: int


@dataclass(frozen=True)
class FedBuff:
    """Asynchronous averaging: one round is one full buffer.

    Whoever fails or comes too late takes no place in the buffer. Where it stays short because nobody else is at work,
    the divisor is the number of updates in it.
    """

    buffer: int = 10
    """Updates for one change of x; 1 is fully asynchronous."""
    concurrency: int = 10
    """Clients at work when a round begins; no more than `buffer` and all wait for each other."""
    exponent: float = 0.5
    """How fast an update loses its force with age."""
    server_lr: float = 1.0
    max_staleness: int | None = None
    """Updates older than this do not count at all."""
    weighted: bool = False
    """Updates also count by `aggregate.weighting`, relative to the mean of their buffer; not in the paper."""
    needs: Needs = Needs(single_replies=True)

    def init(self, start: Params) -> State:
        """Version 0."""
        return State(start, 0)

    def round(self, s: State, fed: Federation) -> State:
        """Put idle clients to work, take what comes first, move."""
        busy = fed.busy()
        idle = fed.cohort(max(0, self.concurrency - len(busy)), busy)
        fed.send(self.local, lambda _: Start(s.x, s.t), idle)

        def weigh(up: Update) -> float:
            age = s.t - up.t
            return 0.0 if self.too_old(age) else up.n * (1 + age) ** -self.exponent

        rules: dict[str, Rule] = {"dy": Mean(over=1.0), "t": Gather(), "n": Gather()}
        total: Tensor | float = 0.0
        ages: list[int] = []
        counted, wanted = 0.0, self.buffer
        while wanted:
            got = fed.receive(wanted, rules, weigh, self.fits(s))
            if got.clients:
                came = [(s.t - t, n) for (t, _), (n, _) in zip(got.value.t, got.value.n, strict=True)]
                total = total + got.value.dy
                counted += sum(n for age, n in came if not self.too_old(age))
                ages += [age for age, _ in came]
            # who failed or came too late takes no place in the buffer; others may still be on their way
            wanted = self.buffer - sum(not self.too_old(age) for age in ages) if fed.busy() else 0
        if ages:
            fed.note(staleness=sum(ages) / len(ages), too_old=sum(map(self.too_old, ages)))
        if counted == 0:
            return s
        return State(s.x + self.server_lr / counted * total, s.t + 1)

    def fits(self, s: State) -> Fits:
        """Whether an update is of a version there was, and counts for something."""
        shape = vectors(dy=s.x)

        def fits(client: ClientId, up: Update) -> str | None:
            if not 0 <= up.t <= s.t or up.n <= 0:
                return f"it is of version {up.t} with weight {up.n:g}; versions so far are 0 to {s.t}"
            if not self.weighted and up.n != 1:
                return f"it counts itself {up.n:g} times; without weights every update counts once"
            return shape(client, up)

        return fits

    def too_old(self, age: int) -> bool:
        """Whether an update of this age is left out."""
        return self.max_staleness is not None and age > self.max_staleness

    def model(self, s: State) -> Model:
        """The shared weights."""
        return Model(s.x)

    async def local(self, down: Start, client: Client) -> Update:
        """One client: train from x, send the way gone."""
        run = await client.descend(down.x)
        if not run.steps:
            raise ClientFailed("it took no step, so it has no way to tell of")
        return Update(run.y - down.x, down.t, client.weight(run) if self.weighted else 1.0)

    async def personal(self, down: Model, client: Client) -> Model:
        """Every client uses the shared model."""
        return down
