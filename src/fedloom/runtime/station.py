"""A client's side of a deployment: reads letters, does what they ask, answers; on a machine of its own.

Its folder holds, for each run, the recipe, its memory in numbered versions (`runtime/remote.py` says whose numbers),
and its last answer. A task that comes again is answered with that; so neither a lost letter nor a crash of either side
makes a client train twice on what counts once. Text never leaves: messages are what the algorithm's page sends, and
what went wrong here is told the server as a kind of error, its words stay in this terminal.
"""

import random
import re
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fedloom.channel.codec import CodecError
from fedloom.contracts import ClientId, Missing, Summary
from fedloom.errors import UserError
from fedloom.runtime import letters
from fedloom.runtime.kept import Kept
from fedloom.runtime.letters import Answer, Declined, End, Ready, Recipe, Refused, Seen, TaskLetter, Wants
from fedloom.runtime.site import Dispatch, Reply, Site
from fedloom.runtime.versions import Versions
from fedloom.runtime.wire import Marshal

QUICK, SLOW = 0.1, 5.0
"""Seconds between two looks into the mailbox: after a letter, and after a while without one."""
RESTLESS = 30.0
"""Seconds after which a client with nothing to do announces itself again: a letter may have been lost."""
JITTER = random.SystemRandom()
"""Many clients that lost the same server do not come back at the same moment."""
STRANGE = 120.0
"""Seconds a server may not know this client before it gives up; one that was just started knows it a little later."""


class Lost(Exception):
    """The server does not answer; it may be tried again."""


class Stranger(Exception):
    """The server does not let this client in."""


class Envelope(Protocol):
    """A letter in the mailbox, its body not yet fetched."""

    @property
    def head(self) -> dict[str, Any]:
        """What it says."""


class Mailbox(Protocol):
    """What a station needs of the mailroom; every call may raise `Lost` or `Stranger`."""

    def announce(self) -> None:
        """This client is here and has nothing to do."""

    def letter(self) -> Any | None:
        """The next letter; CodecError: it is none."""

    def body(self, letter: Any) -> memoryview:
        """A letter's body."""

    def done(self, letter: Any) -> None:
        """The letter may be forgotten."""

    def answer(self, letter: Any, head: dict[str, Any], body: bytes) -> None:
        """Answer it."""

    def leave(self) -> None:
        """Say goodbye."""


@dataclass(frozen=True)
class Built:
    """What a client makes of a recipe."""

    site: Site
    marshal: Marshal
    ready: Callable[[str], Ready]
    """What it says of itself, given a ticket."""
    end: Callable[[End, ClientId, memoryview, Path], str]
    """Takes the final model to itself, into a folder; what it says to a person."""


class Station:
    """One client at one server."""

    def __init__(
        self,
        mailbox: Mailbox,
        folder: Path,
        build: Callable[[Recipe, Path], Built],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is done yet.

        Args:
            mailbox: its way to the server.
            folder: its own.
            build: makes what a recipe says, with a folder for it; UserError: it cannot.
            say: tells a person.
            clock: seconds.
        """
        self.mailbox, self.kept, self._build, self._say, self._clock = mailbox, Kept(folder), build, say, clock
        self.over: str | None = None
        """How the run ended."""
        self._announced = False
        self._trouble = ""
        self._strange_since: float | None = None
        self._failures = 0
        self._last = clock()
        self._pause = QUICK
        self._run: str | None = None
        self._built: Built | None = None
        self._recipe: Recipe | None = None

    def step(self) -> float:
        """Do what there is to do; seconds until there may be more.

        Raises:
            UserError: this client cannot take part.
        """
        try:
            if not self._announced:
                self._announce()
            letter = self.mailbox.letter()
            self._well()
            if letter is None:
                if self._clock() - self._last > RESTLESS:
                    self._announce()
                self._pause = min(SLOW, self._pause * 1.1)
                return self._pause
            self._pause = QUICK
            self._read(letter)
            self._last = self._clock()
            return 0.0
        except Lost as problem:
            return self._again("the server does not answer", problem, 10.0)
        except Stranger as problem:
            now = self._clock()
            self._strange_since = now if self._strange_since is None else self._strange_since
            if now - self._strange_since > STRANGE:
                raise UserError(f"the server does not let this client in: {problem}") from None
            return self._again("the server does not let this client in", problem, 5.0)
        except CodecError as problem:
            return self._again("the server sent something that is no letter", problem, 5.0)

    # -- inside

    def _announce(self) -> None:
        self.mailbox.announce()
        self._announced, self._last = True, self._clock()

    def _well(self) -> None:
        self._failures, self._strange_since = 0, None
        if self._trouble:
            self._trouble = ""
            self._say("the server answers again")

    def _again(self, trouble: str, problem: Exception, most: float) -> float:
        """Say what is wrong, once; how long to wait before the next try."""
        self._announced = False
        self._failures += 1
        if trouble != self._trouble:
            self._trouble = trouble
            self._say(f"{trouble} ({problem}); trying again until it does")
        return min(most, 0.2 * 2.0 ** min(self._failures, 8)) * (0.5 + JITTER.random() / 2)

    def _read(self, letter: Any) -> None:
        said = letters.read_letter(letter.head)
        match said:
            case Recipe():
                self._on_recipe(letter, said)
            case TaskLetter():
                self._on_task(letter, said)
            case Refused():
                self.mailbox.done(letter)
                raise UserError(f"the server refuses this client: {said.words}")
            case End():
                self._on_end(letter, said)

    def _on_recipe(self, letter: Any, recipe: Recipe) -> None:
        self.kept.place(recipe.run)
        if not 0 <= recipe.client < recipe.clients:
            raise CodecError(f"client {recipe.client} of {recipe.clients} cannot be")
        try:
            built = self._open(recipe)
        except Exception as error:
            with suppress(Lost, Stranger):  # what is wrong is said here in any case
                self.mailbox.answer(letter, letters.head(Declined(recipe.ticket, _hint(error))), b"")
                self.mailbox.done(letter)
            raise
        ready = built.ready(recipe.ticket)
        self.kept.keep_recipe(recipe, ready)
        self.mailbox.answer(letter, letters.head(ready), b"")
        self.mailbox.done(letter)

    def _open(self, recipe: Recipe) -> Built:
        known = self._recipe
        same = known is not None and (known.run, known.text, known.client) == (recipe.run, recipe.text, recipe.client)
        if self._built is None or not same:
            place = self.kept.place(recipe.run)
            place.mkdir(parents=True, exist_ok=True)
            self._say(f"run {recipe.run}: preparing the model and the data")
            self._built = self._build(recipe, place)
        self._recipe, self._run = recipe, recipe.run
        return self._built

    def _on_task(self, letter: Any, task: TaskLetter) -> None:
        built = self._remembered(task.run)
        if built is None:
            self.mailbox.answer(letter, letters.head(Wants(task.ticket)), b"")
            self.mailbox.done(letter)
            return
        if self._recipe is None or task.client != self._recipe.client:
            raise CodecError("it is for another client")
        said = self._said_before(built, task)
        if said is None:
            data = self.mailbox.body(letter)
            if letters.digest(data) != task.digest:
                raise CodecError("a task's message is not what its head says")
            said = self._do(built, task, bytes(data))
            self.kept.keep_answer(task, *said)
        answer, body = said
        self.mailbox.answer(letter, letters.head(replace(answer, ticket=task.ticket)), body)
        self.mailbox.done(letter)

    def _remembered(self, run: str) -> Built | None:
        """What was built for this run, before a restart too; None: nothing, or by a version that wrote otherwise."""
        if self._built is not None and self._run == run:
            return self._built
        kept = self.kept.recipe(run)
        if kept is None:
            return None
        recipe, traits = kept
        built = self._open(recipe)
        changed = [name for name, value in built.ready("").traits.items() if traits.get(name) != value]
        if changed:
            raise UserError(
                f"{' and '.join(changed)} of this machine changed since it joined the run {run}; put back what was "
                "there, the others still use it"
            )
        return built

    def _do(self, built: Built, task: TaskLetter, data: bytes) -> tuple[Answer, bytes]:
        """Train, score, or whatever it is."""
        versions = _versions(built)
        begun = self._clock()
        try:
            down = built.marshal.read_down(task.task, task.round, data)
            try:
                versions.hold(task.client, task.memory, (*task.keep, task.number))
            except LookupError as gone:
                return self._failed(f"{gone} is not in its folder; it was removed or is another machine's"), b""
            reply = next(iter(built.site.run([Dispatch(task.number, task.round, task.client, task.task, down)])))
            built.site.settle(task.client, task.number, reply.up is not None)
            body = built.marshal.up(reply)
        except Exception as error:  # whatever it is, the server learns its kind, and this client goes on
            self._say(traceback.format_exc().rstrip())
            return self._failed(_kind(error)), b""
        self._say(_done(task, reply, self._clock() - begun))
        wrote = versions.wrote.pop(task.client, False)
        return Answer("", reply.summary, reply.missing, wrote), body

    def _failed(self, words: str) -> Answer:
        self._say(words)
        return Answer("", Summary(), Missing("failed", words), False)

    def _said_before(self, built: Built, task: TaskLetter) -> tuple[Answer, bytes] | None:
        """The last answer, if it is to this task and what it wrote is still here."""
        kept = self.kept.answer(task)
        if kept is None or (kept[0].wrote and not _versions(built).has(task.client, task.number)):
            return None
        return kept

    def _on_end(self, letter: Any, end: End) -> None:
        words = f"the run is {end.status.replace('_', ' ')} after {end.round} rounds"
        data = self.mailbox.body(letter)
        if data:
            words += "; " + self._taken(end, data)
        self.over = words
        with suppress(Lost, Stranger):  # the server need not hear it, and may have ended already
            self.mailbox.answer(letter, letters.head(Seen(end.ticket)), b"")
            self.mailbox.done(letter)

    def _taken(self, end: End, data: memoryview) -> str:
        """Take the final model home, or say why it cannot be."""
        try:
            built = self._remembered(end.run)
            if built is None or self._recipe is None:
                return "this client took no part in it"
            return built.end(end, self._recipe.client, data, self.kept.place(end.run))
        except Exception as error:  # the run is over all the same
            self._say(traceback.format_exc().rstrip())
            return f"its model could not be taken ({type(error).__name__}, see above)"


def serve(stations: Sequence[Station], sleep: Callable[[float], None] = time.sleep) -> None:
    """Let all of them work until their runs are over.

    Raises:
        UserError: one of them cannot take part; raised when the others are done.
    """
    due, problem = dict.fromkeys(range(len(stations)), 0.0), None
    while due:
        for i, when in list(due.items()):
            if time.monotonic() < when:
                continue
            try:
                due[i] = time.monotonic() + stations[i].step()
            except UserError as error:
                problem, stations[i].over = error, f"cannot take part: {error}"
            if stations[i].over is not None:
                del due[i]
        if due:
            sleep(max(0.0, min(due.values()) - time.monotonic()))
    if problem is not None:
        raise problem


def _versions(built: Built) -> Versions:
    versions = built.site.store
    assert isinstance(versions, Versions)
    return versions


PATHS = re.compile(r"(?:[A-Za-z]:)?[\\/~][^\s:;,()]*[\\/][^\s:;,()]*")
QUOTED = re.compile(r"""(?<!\w)(['"])(?:\\.|[^\\])*?\1(?!\w)""")
"""What stands in quotes in an error was read from a row, such as a label that is none, or was typed by the user."""


def _hint(error: Exception) -> str:
    """What the server may know of a mistake here: our own words, without this machine's paths and its rows' words."""
    if not isinstance(error, UserError):
        return _kind(error)
    return PATHS.sub("(a path)", QUOTED.sub("(...)", " ".join(str(error).split())))[:300]


def _kind(error: Exception) -> str:
    """What the server may know of anything else that went wrong here."""
    return f"{type(error).__name__}; its words are in the client's terminal"


def _done(task: TaskLetter, reply: Reply, seconds: float) -> str:
    if reply.missing is not None:
        return f"round {task.round + 1}, {task.task}: {reply.missing.reason}, {reply.missing.detail}"
    trained, loss = reply.summary.steps, reply.summary.loss
    if not trained:
        return f"after round {task.round}, {task.task}: {seconds:.1f} s"
    return f"round {task.round + 1}, {task.task}: {trained} steps" + (
        f", loss {loss:.3f}, {seconds:.1f} s" if loss is not None else f", {seconds:.1f} s"
    )
