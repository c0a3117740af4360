"""What the hub does with replies: into the rules field by field, their sizes, and the tally of a round."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from torch import Tensor

from fedloom.channel.codec import decode, encode, size
from fedloom.channel.encoding import rebuilt
from fedloom.contracts import ClientId, Got, Message, Missing, Rule, Rules, Stage, Weighted
from fedloom.runtime.accumulators import Piece, packed, unpacked


@dataclass
class Traffic:
    """What one round cost and gave, for its event; bytes and missing replies of failed attempts are in the cost."""

    bytes_down: int = 0
    bytes_up: int = 0
    counted: int = 0
    missing: int = 0
    steps: int = 0
    skipped: int = 0
    examples: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    """Training losses times examples."""
    loss_examples: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """What the algorithm noted about the round."""

    def again(self) -> "Traffic":
        """For the next attempt: what was spent stays, what was trained is void."""
        return Traffic(bytes_down=self.bytes_down, bytes_up=self.bytes_up, missing=self.missing)


@dataclass(frozen=True)
class Sums:
    """A fold on its way to another process."""

    clients: tuple[ClientId, ...]
    weight: float
    fields: Mapping[str, tuple[Piece, ...]]


class Fold:
    """Replies on their way into the rules, field by field."""

    def __init__(self, rule: Rules, weigh: Callable[[Any], float] | None, stages: Sequence[Stage]) -> None:
        self._given, self._weigh, self._stages = rule, weigh, stages
        self._rules: dict[str, Rule] = {}
        self._accs: dict[str, Any] = {}
        self._first: dict[str, Any] | None = None
        """A likeness of the first reply."""
        self._kinds: set[str] = set()
        """Outlines of the replies so far."""
        self.clients: list[ClientId] = []
        self.weight = 0.0

    @property
    def mergeable(self) -> bool:
        """Whether parts of the replies may be added up apart: no rule keeps single ones, no stage hides them."""
        given = self._given.values() if isinstance(self._given, Mapping) else [self._given]
        return all(rule.holds == "one" for rule in given) and not any(stage.hides for stage in self._stages)

    def begin(self, up: Message) -> None:
        """With the first reply it is known which fields there are.

        Raises:
            ValueError: the rules are not those of its fields, or cannot work under these stages.
        """
        self._begin(list(fields_of(up)), type(up).__name__)

    def misfit(self, up: Message) -> str | None:
        """Why the rules cannot take this reply beside those they hold, or None; nothing is added.

        What can go wrong with finite numbers lies in their shapes and formats. So each rule is tried on a likeness of
        the reply, zeros that take no memory, in an accumulator of its own; once for every kind of reply.
        """
        kind = outline(up)
        if kind in self._kinds:
            return None
        mine, name = likeness(fields_of(up)), "its weight"
        try:
            weight = self.weight_of(up)
            for name, rule in self._rules.items():
                acc = rule.start()
                if self._first is not None:
                    acc = rule.add(acc, self._first[name], weight)
                rule.add(acc, mine[name], weight)
        except Exception as error:  # whatever the rules make of what a client sent
            return f"{name} cannot be combined: {str(error) or type(error).__name__}"
        return None

    def weight_of(self, up: Message) -> float | None:
        """The weight its values have in the rules; None: the message carries none."""
        weight = up.weight if isinstance(up, Weighted) else None
        return weight if self._weigh is None else (1.0 if weight is None else weight) * self._weigh(up)

    def add(self, client: ClientId, up: Message) -> None:
        """One more reply, in the order of client indices."""
        fields = fields_of(up)
        self.begin(up)
        weight = self.weight_of(up)
        for name, rule in self._rules.items():
            self._accs[name] = rule.add(self._accs[name], fields[name], weight)
        self.clients.append(client)
        self.weight += 1.0 if weight is None else weight
        self._first = self._first or likeness(fields)
        self._kinds.add(outline(up))

    def packed(self) -> bytes:
        """All of it so far as bytes, for the fold of another process with the same rules.

        Raises:
            TypeError: a rule's accumulator holds something that cannot travel.
        """
        return encode(Sums(tuple(self.clients), self.weight, {name: packed(acc) for name, acc in self._accs.items()}))

    def merge(self, parts: Iterable[bytes]) -> None:
        """Begin anew with what `packed` gave in every process, one part after the other."""
        self._accs, self._rules, self.clients, self.weight = {}, {}, [], 0.0
        for part in parts:
            sums = decode(Sums, part)
            if sums.clients:
                self._begin(list(sums.fields), "the reply")
            for name, rule in self._rules.items() if sums.clients else ():
                self._accs[name] = rule.merge(self._accs[name], unpacked(rule.start(), sums.fields[name]))
            self.clients += sums.clients
            self.weight += sums.weight
        self.clients.sort()

    def got(self, missing: Mapping[ClientId, Missing]) -> Got:
        """All of it, combined."""
        rules = self._rules if self.clients else {}
        fields = {name: rule.finish(self._accs[name]) for name, rule in rules.items()}
        return Got(fields, tuple(self.clients), missing, self.weight)

    def _begin(self, fields: Sequence[str], message: str) -> None:
        """With the first reply it is known which fields there are."""
        if not self._rules:
            self._rules = self._match(fields, message)
            self._accs = {name: rule.start() for name, rule in self._rules.items()}

    def _match(self, fields: Sequence[str], message: str) -> dict[str, Rule]:
        given = self._given if isinstance(self._given, Mapping) else dict.fromkeys(fields, self._given)
        if set(given) != set(fields):
            raise ValueError(
                f"rules are given for {sorted(given)}, but {message} has the fields {sorted(fields)}; "
                "each field needs its rule"
            )
        return {name: self._staged(name, rule) for name, rule in given.items()}

    def _staged(self, name: str, rule: Rule) -> Rule:
        for stage in self._stages:
            if stage.hides and rule.reveals == "each":
                raise ValueError(f"field {name}: its rule looks at single replies, but a stage hides them")
            rule = stage.combine(rule)
        return rule


def fields_of(up: Message) -> dict[str, Any]:
    """What the rules combine: every field but the weight."""
    return {name: value for name, value in vars(up).items() if name != "weight" or not isinstance(up, Weighted)}


def likeness(value: Any) -> Any:
    """The same value with zeros in place of a tensor's numbers; a single zero is all they take."""
    return rebuilt(value, lambda _, tensor: tensor.new_zeros(()).expand(tensor.shape))


def outline(value: Any) -> str:
    """What must agree for two replies to be combined in the same way: types, shapes and formats, not numbers."""
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {outline(item)}' for name, item in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(outline, value))})"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}{outline(vars(value))}"
    return type(value).__name__


class Sizes:
    """Bytes of messages; one message sent to many is measured once."""

    def __init__(self) -> None:
        self._last: tuple[Message, int] | None = None

    def __call__(self, message: Message) -> int:
        """The encoded size."""
        if self._last is None or not same(self._last[0], message):
            self._last = message, size(message)
        return self._last[1]


def same(left: Message, right: Message) -> bool:
    """Whether two messages hold the very same objects, as those of one cohort mostly do."""
    if left is right:
        return True
    ours, theirs = vars(left), vars(right)
    return type(left) is type(right) and all(ours[name] is theirs[name] for name in ours)
