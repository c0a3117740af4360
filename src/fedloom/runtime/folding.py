"""What the hub does with replies: into the rules field by field, their sizes, and the tally of a round."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.channel.codec import decode, encode, size
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
        self.clients: list[ClientId] = []
        self.weight = 0.0

    @property
    def mergeable(self) -> bool:
        """Whether parts of the replies may be added up apart: no rule keeps single ones, no stage hides them."""
        given = self._given.values() if isinstance(self._given, Mapping) else [self._given]
        return all(rule.holds == "one" for rule in given) and not any(stage.hides for stage in self._stages)

    def add(self, client: ClientId, up: Message) -> None:
        """One more reply, in the order of client indices."""
        apart = {"weight"} if isinstance(up, Weighted) else set[str]()
        fields = {name: value for name, value in vars(up).items() if name not in apart}
        self._begin(list(fields), type(up).__name__)
        weight = up.weight if isinstance(up, Weighted) else None
        if self._weigh is not None:
            weight = (1.0 if weight is None else weight) * self._weigh(up)
        for name, rule in self._rules.items():
            self._accs[name] = rule.add(self._accs[name], fields[name], weight)
        self.clients.append(client)
        self.weight += 1.0 if weight is None else weight

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
        fields = {name: rule.finish(self._accs[name]) for name, rule in self._rules.items()}
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
