"""A deployment's client: keeps its way to the server open, builds what a recipe says, takes the final model home."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedloom import atomic
from fedloom.adapters import build as adapters
from fedloom.assembly import Parts
from fedloom.channel.codec import CodecError, decode
from fedloom.config import parse
from fedloom.contracts import ClientId, Model
from fedloom.data.federated import build_own
from fedloom.deployment import agreed
from fedloom.deployment.joining import JoinFile
from fedloom.deployment.locking import Busy, held
from fedloom.errors import UserError
from fedloom.runtime.flower.node import Letter, Node
from fedloom.runtime.flower.parcels import ParcelError
from fedloom.runtime.letters import End, Ready, Recipe
from fedloom.runtime.station import Built, Lost, Station, serve
from fedloom.runtime.store import OnDisk
from fedloom.runtime.versions import Versions
from fedloom.sides import Taking, wanted
from fedloom.version import __version__

LARGEST = 2 << 30
"""Bytes a letter may have."""
LOCAL = ("model.", "offsite.emulator", "engine.", "data.columns.", "data.root", "runtime.window")
"""Settings a client may choose for itself: where its model or emulator lies and how it computes."""


@dataclass(frozen=True)
class Place:
    """One client: its invitation, its text, its folder."""

    join: JoinFile
    data: Path
    folder: Path


class Door:
    """The way to a server that may have several addresses: whoever cannot be reached by one tries the next."""

    def __init__(self, place: Place) -> None:
        join = place.join
        ca = join.ca.encode() if join.ca else None
        self._numbers = place.folder / "node"
        self._nodes = [Node(address, ca, join.key.encode(), LARGEST) for address in join.addresses]
        self._at = 0
        if self._numbers.exists():
            for node in self._nodes:
                node.recall(int(self._numbers.read_text()))

    def announce(self) -> None:
        """This client is here and has nothing to do."""
        try:
            self._node.announce()
        except Lost as problem:
            address = self._node.address
            self._at = (self._at + 1) % len(self._nodes)
            raise Lost(f"{address}: {problem}") from None
        atomic.write_text(self._numbers, str(self._node.id))

    def letter(self) -> Letter | None:
        """The next letter."""
        with _read():
            return self._node.letter()

    def body(self, letter: Letter) -> memoryview:
        """A letter's body."""
        with _read():
            return self._node.body(letter)

    def done(self, letter: Letter) -> None:
        """The letter may be forgotten."""
        self._node.done(letter)

    def answer(self, letter: Letter, head: dict[str, Any], body: bytes) -> None:
        """Answer it."""
        self._node.answer(letter, head, body)

    def leave(self) -> None:
        """Say goodbye."""
        for node in self._nodes:
            node.leave()

    @property
    def _node(self) -> Node:
        return self._nodes[self._at]


@contextlib.contextmanager
def _read() -> Iterator[None]:
    """What is no parcel is no letter."""
    try:
        yield
    except ParcelError as error:
        raise CodecError(str(error)) from None


@dataclass
class Workshop:
    """Builds recipes; several clients of one process share one model."""

    settings: Sequence[str] = ()
    """`key=value`, in place of the recipe's."""
    say: Callable[[str], None] = lambda words: None
    _text: str | None = field(init=False, default=None)
    _parts: Parts | None = field(init=False, default=None)
    _versions: Versions | None = field(init=False, default=None)

    def build(self, place: Place, recipe: Recipe, folder: Path) -> Built:
        """What a recipe says, for one client.

        Raises:
            UserError: it cannot be built here.
        """
        if recipe.version != __version__:
            raise UserError(f"this is fedloom {__version__}, the server's is {recipe.version}; install the same")
        source = (recipe.name, place.data)
        parts, versions = self._parts, self._versions
        if parts is None or versions is None or self._text != recipe.text:
            config = parse(recipe.text, self.settings, name="the server's recipe")
            if config.offsite is not None and config.offsite.emulator == agreed.OWN:
                raise UserError(
                    "this run tunes an emulator, a folder that its owner hands over; say where it lies with "
                    "--set offsite.emulator=FOLDER"
                )
            parts = Parts(config, side=Taking(recipe.clients, {recipe.client: source}))
            versions = Versions({})
            self._text, self._parts, self._versions = recipe.text, parts, versions
        else:
            data = parts.config.data.model_copy(update={"source": str(place.data)})
            parts.data.clients[recipe.client] = build_own(
                data, parts.config.seed, parts.tokenizer, recipe.name, recipe.client, wanted(parts.config)
            )
        versions.shelves[recipe.client] = OnDisk(folder / "memory")
        site = parts.site(versions)
        rows = parts.data.clients[recipe.client]
        self.say(
            f"{recipe.name}: {rows.sizes['train']} rows to train on, {rows.sizes['test']} to test; "
            f"{parts.config.algorithm.name} on {parts.config.model.name}, engine {parts.engine}"
        )
        known = agreed.traits(parts)

        def ready(ticket: str) -> Ready:
            return Ready(ticket, known, dict(rows.sizes.items()))

        def end(letter: End, client: ClientId, data: memoryview, folder: Path) -> str:
            versions.hold(client, letter.memory, ())
            shared = decode(Model, bytes(data))
            own = site.call(client, letter.round, parts.algorithm.personal, shared)
            return _saved(parts, own, client, folder / "adapter")

        return Built(site, parts.marshal(recipe.run, agreed.fingerprint(recipe.text)), ready, end)


def take_part(places: Sequence[Place], settings: Sequence[str], say: Callable[[str, str], None]) -> None:
    """Be these clients until their runs are over.

    Args:
        places: one or more, all invited by one server.
        settings: `key=value`, of this machine.
        say: hears a client's name and words.

    Raises:
        UserError: one of them cannot take part.
    """
    _check(places)
    foreign = [one for one in settings if not one.startswith(LOCAL)]
    if foreign:
        raise UserError(
            f"{foreign[0]}: a client may choose only {', '.join(LOCAL)}...; all else is the server's recipe"
        )
    workshop = Workshop(settings, lambda words: say("", words))
    with contextlib.ExitStack() as stack:
        stations = []
        for place in places:
            stack.enter_context(_locked(place))
            door = Door(place)
            stack.callback(door.leave)
            stations.append(_station(door, place, workshop, say))
        serve(stations)
        for place, station in zip(places, stations, strict=True):
            say(place.join.name, station.over or "")


def _station(door: Door, place: Place, workshop: Workshop, say: Callable[[str, str], None]) -> Station:
    def build(recipe: Recipe, folder: Path) -> Built:
        return workshop.build(place, recipe, folder)

    return Station(door, place.folder, build, lambda words: say(place.join.name, words))


def _check(places: Sequence[Place]) -> None:
    """Raise a UserError where text or names are not as they should be."""
    for place in places:
        if not place.data.exists():
            raise UserError(f"--data {place.data}: there is no such file or folder")
    names = [place.join.name for place in places]
    if len(set(names)) < len(names):
        raise UserError(f"a client is named twice: {', '.join(sorted(names))}")


@contextlib.contextmanager
def _locked(place: Place) -> Iterator[None]:
    """One process per client on this machine: two would take each other's letters."""
    place.folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(place.folder / "lock", 0.5):
            yield
    except Busy as busy:
        raise UserError(
            f"{place.join.name} runs on this machine already (process {busy.pid or '?'}, folder {place.folder})"
        ) from None


def _saved(parts: Parts, own: Model, client: ClientId, folder: Path) -> str:
    """Write the final model as an adapter that peft loads."""
    if not own.whole:
        return "it has no model that could be used as it stands"
    with atomic.folder(folder) as aside:
        base, layout = parts.base_name, parts.profile(client).layout
        adapters.save(parts.adapted, parts.config.adapter, own, layout, base, aside)
    return f"its model is in {folder}"
