"""The seams everything hangs on: what an algorithm, a federation, a client, a rule, an engine and a stage promise.

An algorithm is one page with both halves: `round` is the server's, straight-line; `local` is one client's, written for
one client. Simulation and deployment differ only behind `Federation.collect`. Messages and states are frozen
dataclasses of tensors and scalars; everything a checkpoint needs is in the state.
"""

from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, overload

from torch import Tensor

from fedloom.params import Layout, Params

ClientId: TypeAlias = int
HOME: ClientId = -1
"""The server's own worker: public data, pooled data, a teacher. It is asked like a client."""

State = TypeVar("State")
Up = TypeVar("Up", bound="Message")
Down = TypeVar("Down", bound="Message")
Result = TypeVar("Result")


# -- messages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """Base of everything that travels: a frozen dataclass of tensors, scalars, text and tuples or dicts of them."""


@dataclass(frozen=True, kw_only=True)
class Weighted(Message):
    """A reply that says how much it counts in a weighted rule."""

    weight: float
    """Not normalised; the sum of all that counted is known only at the end."""


Reason: TypeAlias = Literal["silent", "late", "failed", "nonfinite", "refused"]


@dataclass(frozen=True)
class Missing:
    """Why a reply did not count."""

    reason: Reason
    detail: str


class ClientFailed(Exception):
    """This client's reply must not count; the round goes on without it. Anything else raised is a bug."""

    def __init__(self, detail: str, reason: Reason = "failed") -> None:
        super().__init__(detail)
        self.missing = Missing(reason, detail)


class TooFewReplies(Exception):
    """A collect got fewer replies than the run or a rule needs; the round is tried again with a new cohort."""

    def __init__(self, counted: int, wanted: int, missing: Mapping[ClientId, Missing]) -> None:
        reasons = "; ".join(f"client {i}: {m.reason}, {m.detail}" for i, m in list(missing.items())[:3])
        super().__init__(f"{counted} replies counted, {wanted} are needed" + (f" ({reasons})" if reasons else ""))
        self.missing = dict(missing)


class NobodyReplied(LookupError):
    """A page asked for the value of a collect nobody replied to; the round loop lets such a round change nothing."""


# -- what is trained ------------------------------------------------------------------------------------------------

Carry: TypeAlias = tuple[Tensor, ...]
"""What has left the adapter for the base, as frozen factors: (L_1, R_1, L_2, R_2, ...), one pair for each adapted
module in the order of the layout, L [out, k] and R [k, in], scale within; L R is added to what the module computes. ()
is nothing. The shared base itself is never changed."""


@dataclass(frozen=True)
class Model(Message):
    """A model on its way to be used: the base, what is carried on top of it, and the trained numbers."""

    x: Params
    """[P]"""
    carry: Carry = ()
    whole: bool = True
    """False: only the part that is shared; nobody uses it as it stands."""


# -- rules --------------------------------------------------------------------------------------------------------


class Rule(Protocol):
    """How one field of the replies becomes one value. Replies are added in the order of client indices."""

    @property
    def linear(self) -> bool:
        """Whether the result is a weighted sum of the values."""

    @property
    def reveals(self) -> Literal["sum", "each"]:
        """Whether it needs to see single replies."""

    @property
    def holds(self) -> Literal["one", "all"]:
        """Whether its memory is independent of the number of replies."""

    def start(self) -> Any:
        """An empty accumulator."""

    def add(self, acc: Any, value: Any, weight: float | None) -> Any:
        """The accumulator with one more value; `weight` is None for messages without one."""

    def merge(self, left: Any, right: Any) -> Any:
        """Two accumulators of disjoint clients, as one."""

    def finish(self, acc: Any) -> Any:
        """The value; called only when something was added.

        Raises:
            TooFewReplies: it needs more than were added.
        """


Rules: TypeAlias = Rule | Mapping[str, Rule]
"""One rule for every field (but `weight`), or one for each."""


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
class Trained:
    """What one local training gives its client."""

    y: Params
    """[P], weights after training."""
    steps: int
    """Optimiser steps taken."""
    lr_sum: float
    """Sum of the learning rates of those steps."""
    examples: int
    """Examples of those steps."""
    tokens: int
    """Labelled tokens of those steps."""
    loss: float | None
    """Mean over steps of the token-mean loss; None without a step."""
    skipped: int = 0
    """Steps left out: loss or gradient not finite, or nothing labelled."""
    gradient: Params | None = None
    """[P], mean of the raw gradients of the steps, when it was asked for."""
    inner: Mapping[str, Tensor] | None = None
    """The optimiser's state after the last step, when one was handed in."""


@dataclass(frozen=True)
class Summary:
    """The numbers of a client's trainings in one task, for logs; no algorithm reads it."""

    steps: int = 0
    skipped: int = 0
    examples: int = 0
    tokens: int = 0
    loss: float | None = None


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


# -- one client's side --------------------------------------------------------------------------------------------

Correct: TypeAlias = Callable[..., Tensor]
"""(gradient, weights, *with_) -> gradient to apply; element by element, so that an engine may call it on parts."""
Penalty: TypeAlias = Callable[..., Tensor]
"""(trainable tensors by leaf name, *with_) -> a scalar added to the loss; differentiable."""


@dataclass(frozen=True)
class Call(Generic[Result]):
    """What a client's coroutine hands to the driver when it awaits the engine or its peers."""

    client: ClientId
    request: Any

    def __await__(self) -> Generator["Call[Result]", Result, Result]:
        return (yield self)


@dataclass(frozen=True)
class Exchange:
    """A request to the other clients of the same collect: all wait until all have spoken."""

    phase: str
    payload: Message


class ClientState(Protocol):
    """A client's private memory. Writes count only when its reply counted and the round's checkpoint is on disk."""

    @overload
    def get(self, name: str, *, like: Tensor) -> Tensor: ...
    @overload
    def get(self, name: str) -> Any: ...
    def get(self, name: str, *, like: Tensor | None = None) -> Any:
        """The value; zeros shaped `like` that, or None, when there is none yet."""

    def __setitem__(self, name: str, value: Tensor | float | int) -> None: ...
    def names(self, prefix: str = "") -> list[str]:
        """Names of all entries that begin so, sorted."""


class Client(Protocol):
    """What a client's half of an algorithm may do. One client's code is written for one client."""

    @property
    def id(self) -> ClientId:
        """Its number."""

    @property
    def layout(self) -> Layout:
        """What its vectors mean."""

    @property
    def state(self) -> ClientState:
        """Its private memory."""

    @property
    def examples(self) -> int:
        """Training rows it holds."""

    @property
    def lr(self) -> float:
        """Base learning rate of this round."""

    def weight(self, run: Trained) -> float:
        """How much a reply made of this training counts, by `aggregate.weighting`."""

    def key(self, purpose: str) -> int:
        """A seed of its own for this task and purpose."""

    def descend(
        self,
        x: Params,
        *,
        carry: Carry = (),
        steps: int | None = None,
        lr: float | None = None,
        decay: float = 1.0,
        train: Sequence[str] | None = None,
        correct: Correct | None = None,
        with_: Sequence[Tensor] = (),
        penalty: Penalty | None = None,
        batches: str | None = None,
        one_batch: bool = False,
        gradient: bool = False,
        inner: Mapping[str, Tensor] | None = None,
    ) -> Awaitable[Trained]:
        """Train from `x` [P] as the recipe's `local` says, unless told otherwise.

        Args:
            x: where to start.
            carry: what lies on top of the base meanwhile, frozen.
            steps: optimiser steps; default: the recipe's.
            lr: base learning rate; default: the round's. 0 looks at gradients without moving.
            decay: the rate falls in a line over the K steps towards this share of it: step k has
                lr (1 - k / K (1 - decay)).
            train: names of the leaves that move; default: all.
            correct: changes the gradient before clipping and the step, with the vectors of `with_` passed in.
            with_: [P] each, handed to `correct` and `penalty`.
            penalty: a further term of the loss.
            batches: name of a batch stream; two trainings of one task with the same name see the same batches.
            one_batch: every step sees the stream's first batch.
            gradient: also return the mean raw gradient.
            inner: state of the optimiser to go on from (empty: begin one), returned in `Trained.inner`; None: begin
                anew and forget.
        """

    def passes(self, count: float = 1.0) -> int:
        """Optimiser steps that see every training row `count` times."""

    def probe(
        self, points: Sequence[Params], *, carry: Carry = (), batches: str | None = None
    ) -> Awaitable[list[float]]:
        """Losses of one batch at each point, nothing saved for a backward pass."""

    def logits(self, x: Params, *, carry: Carry = ()) -> Awaitable[Tensor]:
        """The model's outputs at `x` on the public rows."""

    def exchange(self, phase: str, payload: Message) -> Awaitable[Mapping[ClientId, Message]]:
        """Speak to the other clients of this collect and hear them all."""


# -- the server's side --------------------------------------------------------------------------------------------

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


# -- geometry, channel, engine ------------------------------------------------------------------------------------


Term: TypeAlias = Tensor | tuple[Tensor, ...]
"""What a space averages: a vector, or (plain, L_1, R_1, L_2, R_2, ...), the leaves that are no factors as one vector
and, for each adapted module in the order of the layout, a product L R with L [out, k], R [k, in], the scale within."""


class Space(Protocol):
    """What is averaged, and how it becomes a client's numbers and back. LoRA geometry lives here.

    A space averages what clients have, not differences. Rounds may take turns (train B, then A): each turn is a phase,
    and only the leaves active in it are trained, sent and touched by the server's optimiser.
    """

    @property
    def phases(self) -> int:
        """How many phases there are; 1 for most."""

    def phase(self, round: int) -> int:
        """Which one this round is (0 behind us: the first)."""

    def active(self, phase: int, layout: Layout) -> Sequence[str] | None:
        """Names of the leaves that move; None: all."""

    def lower(self, shared: Params, layout: Layout) -> Params:
        """A client's start [its own P] from the shared vector [P]."""

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """A client's result [its own P] as what it sends."""

    @property
    def rule(self) -> Rule:
        """How what clients send is combined, to a term like `point`."""

    def point(self, shared: Params, phase: int) -> Term:
        """Where the shared vector stands, as a term; the server's optimiser goes on from it."""

    def form(self, term: Term, phase: int) -> Term:
        """What a client sent, free of gauge (products of factors), to measure distances in."""

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The shared vector [P] and the carry that stand for a combined term."""


class Stage(Protocol):
    """A transformation of replies between client and rule; it owns both ends."""

    @property
    def hides(self) -> bool:
        """Whether the server sees only sums."""

    async def outgoing(self, up: Any, client: Client) -> Any:
        """The reply as it leaves the client; may talk to the other clients."""

    def incoming(self, up: Any) -> Any:
        """The reply as the rule sees it."""

    def combine(self, rule: Rule) -> Rule:
        """The rule, changed so that it gives the same value from what this stage lets through."""


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
