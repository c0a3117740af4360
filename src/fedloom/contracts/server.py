"""The server's side: a federation as a page sees it, the page itself, and the engine behind the clients."""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

from fedloom.contracts.client import Call, Client
from fedloom.contracts.geometry import Rules
from fedloom.contracts.messages import ClientId, Message, Missing, Model, NobodyReplied
from fedloom.params import Layout, Params

State = TypeVar("State")
Up = TypeVar("Up", bound=Message)
Down = TypeVar("Down", bound=Message)


class Combined:
    """The fields of a message, each combined by its rule, read as attributes."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"no field {name} was combined; there are {', '.join(fields) or 'none'}")


@dataclass(frozen=True)
class Got:
    """What a collect brought home."""

    fields: Mapping[str, Any]
    clients: tuple[ClientId, ...] = ()
    """Those whose replies counted, in order."""
    missing: Mapping[ClientId, Missing] = field(default_factory=dict)
    weight: float = 0.0
    """Sum of the weights of the replies that counted (of ones, where messages carry no weight)."""

    @property
    def value(self) -> Combined:
        """The combined message.

        Raises:
            NobodyReplied: there is none. The round loop catches it and keeps the state; a page that has something to
                do in an empty round looks at `clients` first.
        """
        if not self.clients:
            raise NobodyReplied("nobody was asked, or no reply counted")
        return Combined(self.fields)


Fits: TypeAlias = Callable[[ClientId, Any], str | None]
"""(client, reply) -> why the reply cannot be combined with the others, such as the shape of a tensor; None: it can."""
Task: TypeAlias = Callable[[Down, Client], Coroutine[Any, Any, Up]]


@dataclass(frozen=True)
class Profile:
    """What the server knows of a client: from the recipe, or announced when it joins."""

    id: ClientId
    name: str
    layout: Layout
    speed: float = 1.0


class Federation(Protocol):
    """The clients, seen from an algorithm's page."""

    @property
    def round(self) -> int:
        """Rounds behind us; 0 in the first."""

    @property
    def clients(self) -> Sequence[ClientId]:
        """Everybody registered who may be asked to train."""

    @property
    def home(self) -> ClientId | None:
        """The server's own worker, when the run has one."""

    def cohort(self, count: int | None = None, without: Collection[ClientId] = ()) -> list[ClientId]:
        """This round's clients by the sampling policy, sorted; may be empty.

        Args:
            count: how many; default: as the recipe says.
            without: nobody of these.
        """

    def profile(self, client: ClientId) -> Profile:
        """What is known of a client."""

    def collect(
        self,
        task: Task[Down, Up],
        down: Callable[[ClientId], Down],
        to: Sequence[ClientId],
        rule: Rules,
        fits: Fits | None = None,
    ) -> Got:
        """Send `down` to each, run `task` there, combine the replies. The same as `send` then `receive` of all.

        A reply that does not fit is refused and counted as missing.
        """

    def send(self, task: Task[Down, Up], down: Callable[[ClientId], Down], to: Sequence[ClientId]) -> None:
        """Begin tasks without waiting; work in flight belongs to the federation and its checkpoint."""

    def receive(
        self, count: int, rule: Rules, weigh: Callable[[Any], float] | None = None, fits: Fits | None = None
    ) -> Got:
        """Wait for the next `count` replies; `weigh` (of a message) multiplies their weights.

        Unlike `collect` it wants no least number of replies: look at `clients` before `value`.
        """

    def busy(self) -> frozenset[ClientId]:
        """Clients with work in flight."""

    def note(self, **numbers: float) -> None:
        """Numbers about this round for logs and the report; nothing reads them back."""


@dataclass(frozen=True)
class Needs:
    """What an algorithm cannot do without; checked before the first round."""

    single_replies: bool = False
    """It looks at single replies, so nothing may hide them."""
    home: bool = False
    """It asks the server's own worker."""
    public_rows: bool = False
    """The server's own worker learns from rows that are nobody's (`data.public`, `data.public_source`)."""
    pooled_data: bool = False
    """It needs all rows in one place: a simulation's baseline, impossible between organisations."""
    sgd_only: bool = False
    """Its client half is right only for plain SGD."""
    personal: bool = False
    """Clients end with models of their own, which are evaluated and exported."""


class Algorithm(Protocol[State]):
    """One file, both halves and their messages, explicit state."""

    @property
    def needs(self) -> Needs:
        """Declared, so that what cannot work is refused at the start."""

    def init(self, start: Params) -> State:
        """The state before the first round; all that a checkpoint needs, nothing hidden in self."""

    def round(self, state: State, fed: Federation) -> State:
        """The server's half."""

    def model(self, state: State) -> Model:
        """The shared model: evaluated, best, exported (if it is `whole`), and what `personal` begins from."""

    async def local(self, down: Any, client: Client) -> Any:
        """One client's half; more coroutines may stand beside it."""

    async def personal(self, down: Model, client: Client) -> Model:
        """What this client itself would use, in its own layout."""


class Engine(Protocol):
    """Does the mathematics clients wait for: admits calls, advances all of them, returns the finished."""

    def room(self) -> int:
        """How many more calls could be admitted now."""

    def admit(self, call: Call[Any]) -> None:
        """Take a call on."""

    def advance(self) -> list[tuple[ClientId, Any]]:
        """Do some work for all admitted; results, or `ClientFailed`, of those that are done."""

    def abandon(self) -> None:
        """Forget everything admitted."""
