"""What the server and a client of a deployment say to each other: heads of letters; bodies are encoded messages.

Every letter of the server carries a ticket, a random word that its answer must repeat. So an answer is to this letter
of this server, not to one before a crash, and nobody can answer in the name of another. A letter may come twice; what
a client answers to the second is what it answered to the first.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedloom.channel.codec import CodecError, joined, plain
from fedloom.contracts import Missing, Summary


@dataclass(frozen=True)
class Recipe:
    """Server: what will be done. The client builds it, or says why it cannot."""

    run: str
    ticket: str
    version: str
    """Of fedloom."""
    text: str
    """The recipe, resolved, with numbers in place of the others' names."""
    client: int
    """The number of the client that reads this."""
    clients: int
    """How many there are."""
    name: str
    """The client's name, as it was invited."""


@dataclass(frozen=True)
class TaskLetter:
    """Server: a task; the body is its message."""

    run: str
    ticket: str
    number: int
    """The dispatch: the same number is the same task, asked again."""
    round: int
    client: int
    task: str
    digest: str
    """Of the body."""
    memory: int
    """The dispatch whose writing is this client's memory; 0: it has none yet."""
    keep: tuple[int, ...]
    """Further dispatches whose writing may be asked for again."""


@dataclass(frozen=True)
class Refused:
    """Server: this client cannot take part."""

    run: str
    ticket: str
    words: str


@dataclass(frozen=True)
class End:
    """Server: the run is over; the body is the shared model, or nothing."""

    run: str
    ticket: str
    status: str
    round: int
    memory: int
    """As in a task."""


@dataclass(frozen=True)
class Ready:
    """Client, to a recipe: it is built."""

    ticket: str
    traits: dict[str, str]
    """What must be equal everywhere, such as the layout's fingerprint."""
    rows: dict[str, int]
    """How many rows there are, by split."""


@dataclass(frozen=True)
class Answer:
    """Client, to a task: what came out; the body is the message, or nothing where it is missing."""

    ticket: str
    summary: Summary
    missing: Missing | None
    wrote: bool
    """Whether the task changed the client's memory."""


@dataclass(frozen=True)
class Wants:
    """Client, to a task: it does not know this run's recipe any more."""

    ticket: str


@dataclass(frozen=True)
class Declined:
    """Client, to a recipe: why it cannot take part."""

    ticket: str
    words: str


@dataclass(frozen=True)
class Seen:
    """Client, to a refusal or an end."""

    ticket: str


Letter: TypeAlias = Recipe | TaskLetter | Refused | End
Reply: TypeAlias = Ready | Answer | Wants | Declined | Seen
_LETTERS: dict[str, type[Letter]] = {kind.__name__: kind for kind in (Recipe, TaskLetter, Refused, End)}
_REPLIES: dict[str, type[Reply]] = {kind.__name__: kind for kind in (Ready, Answer, Wants, Declined, Seen)}


def head(letter: Letter | Reply) -> dict[str, Any]:
    """The letter as JSON."""
    return {"what": type(letter).__name__, **plain(letter)}


def read_letter(head: dict[str, Any]) -> Letter:
    """What the server says.

    Raises:
        CodecError: nothing that this version knows.
    """
    return _read(_LETTERS, head)


def read_reply(head: dict[str, Any]) -> Reply:
    """What a client answers.

    Raises:
        CodecError: nothing that this version knows.
    """
    return _read(_REPLIES, head)


def digest(data: bytes | memoryview) -> str:
    """A fingerprint of a body."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _read(kinds: dict[str, Any], head: dict[str, Any]) -> Any:
    what = head.get("what")
    kind = kinds.get(what) if isinstance(what, str) else None
    if kind is None:
        found = repr(what[:40]) if isinstance(what, str) else type(what).__name__
        raise CodecError(f"a letter of kind {found} means nothing here")
    return joined(kind, {name: value for name, value in head.items() if name != "what"})
