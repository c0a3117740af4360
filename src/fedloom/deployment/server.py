"""A deployment's server: opens the mailroom, waits for clients, leads the run, and goes on with it after any crash.

Everything that must last is in two folders: the server's own (keys, invitations, which run it is in) and the run's
(checkpoints). The mailroom is made anew with every start.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedloom import atomic, checkpoint, starting
from fedloom.assembly import Parts
from fedloom.assembly import fingerprint as config_fingerprint
from fedloom.channel.codec import encode
from fedloom.checkpoint import Checkpoint
from fedloom.config import Config
from fedloom.config.checks import require
from fedloom.data.deal import natural_order
from fedloom.deployment import agreed, page
from fedloom.deployment.board import Board
from fedloom.deployment.home import CurrentRun, Home
from fedloom.deployment.picture import STOP, State
from fedloom.errors import AskedToStop, RunStopped, UserError
from fedloom.events import Event, Sink
from fedloom.experiment import Run, Session
from fedloom.folder import RunFolder
from fedloom.runtime.flower.mailroom import Settings
from fedloom.runtime.flower.post import Post
from fedloom.runtime.flower.process import Mailroom
from fedloom.runtime.group import Alone
from fedloom.runtime.letters import Recipe
from fedloom.runtime.remote import Remote
from fedloom.sides import Leading
from fedloom.version import __version__

M_MMAP_THRESHOLD = -3
"""As in malloc.h."""
MEMBERS = "members.json"
"""In the run folder: the clients' names, in the order of their numbers."""
WRITTEN = ("events.jsonl", "metrics.csv", "clients.csv", "rounds.csv")
GOODBYE = 20.0
"""Seconds given to clients to take the final model."""
LEAST, SHARE = 64 << 20, 8
"""Bytes an answer may have at least, and how many times the adapter: pages send two or three vectors."""
STATES: Mapping[str, State] = {
    "joined": "joined", "idle": "idle", "working": "working", "away": "away", "refused": "refused", "late": "working",
    "silent": "away",
}  # fmt: skip
"""How the board shows what the link tells of a client."""


@dataclass
class Server:
    """One start of a server."""

    config: Config
    home: Home
    say: Any
    """Tells a person."""
    sinks: Sequence[Sink] = ()
    new: bool = False
    """Begin another run even if one is unfinished."""
    page_port: int | None = 0
    """Of the status page; None: there is none."""
    nodes: dict[str, int] = field(init=False, default_factory=dict)
    """Node by name, of everybody who may come in."""
    keys: dict[str, str] = field(init=False, default_factory=dict)
    remote: Remote | None = field(init=False, default=None)
    halting: bool = field(init=False, default=False)

    def go(self) -> Run:
        """Lead the run to its end.

        Raises:
            UserError: something cannot work as asked.
            RunStopped: it ended early; the same command goes on.
        """
        agreed.check(self.config)
        require(self.config)
        _return_memory()
        with self.home.lock():
            (self.home.path / STOP).unlink(missing_ok=True)
            begun = self._unfinished()
            self.board = Board(self.home.path, [n for n, who in self.home.invited().items() if not who.revoked])
            with self.board:
                return self._open(begun)

    # -- one step after the other

    def _unfinished(self) -> Path | None:
        """The run to go on with.

        Raises:
            UserError: it is one of another recipe.
        """
        found = None if self.new else self.home.run
        if found is None or not found.path.is_dir():
            return None
        if found.fingerprint != config_fingerprint(self.config):
            raise UserError(
                f"{found.path} is unfinished and was begun with another recipe. Start the server with that recipe to "
                "go on with it, or with --new to leave it and begin another run"
            )
        return found.path

    def _open(self, begun: Path | None) -> Run:
        where = self.home.settings
        token = self.home.new_token()
        secure = self.home.secure
        os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
        settings = Settings(
            where.host, where.port, token, str(self.home.certificate) if secure else None,
            str(self.home.key) if secure else None,
        )  # fmt: skip
        self.mailroom = Mailroom(settings, self.home.log)
        try:
            ca = self.home.ca.read_bytes() if secure else None
            self.post = Post(_here(where.host), where.port, token, ca, LEAST, self.mailroom.check)
            try:
                return self._lead(begun)
            finally:
                self.post.close()
        finally:
            self.mailroom.stop()

    def _lead(self, begun: Path | None) -> Run:
        self._enrol()
        self._greet(begun)
        names = self._names(begun)
        parts, saved = self._parts(begun, names)
        self.post.largest = max(LEAST, SHARE * 4 * parts.adapted.layout.size)
        path = begun or starting.new_folder(parts, Alone())
        if begun is None:
            atomic.write_text(path / MEMBERS, json.dumps(names))
            self.home.begin(CurrentRun(path, config_fingerprint(self.config)))
        remote = self.remote = self._remote(parts, path, names)
        env = RunFolder(path).env()
        self._join(parts, remote, path, env)
        session = Session(parts, path, [self.board, *self.sinks], saved, Alone(), remote, lambda: self.halting)
        run = session.go()
        self._farewell(parts, remote, run, session)
        self.home.end()
        return run

    def _greet(self, begun: Path | None) -> None:
        """Say what a person must know, and wait until enough clients are here."""
        where, wanted = self.home.settings, self.config.deploy.clients or 1
        if self.page_port is not None:
            self.say(f"status page: {page.serve(self.board, self.page_port)}")
        self.say(
            f"clients reach this server at {', '.join(where.addresses)}" + ("" if self.home.secure else ", without TLS")
        )
        if begun is not None:
            self.say(f"going on with {begun}")
        elif not self.nodes:
            self.say("nobody is invited yet; in another terminal: fedloom invite NAME > NAME.join")
        end = time.monotonic() + self.config.deploy.join_timeout
        while begun is None:
            self.tick()
            present = self.post.present()
            here = [name for name, node in self.nodes.items() if node in present]
            for name in self.nodes:
                self.board.member(name, state="joined" if name in here else "invited")
            if len(here) >= wanted:
                break
            if time.monotonic() > end:
                raise RunStopped(
                    f"{len(here)} of {wanted} clients (deploy.clients) came within deploy.join_timeout="
                    f"{self.config.deploy.join_timeout:g} seconds; start the server again when they are ready"
                )
            self.board.waiting(wanted)
            time.sleep(0.3)
        self.board.waiting(None)

    def _names(self, begun: Path | None) -> list[str]:
        """Who takes part in this run, in the order of their numbers."""
        if begun is not None:
            found: list[str] = json.loads((begun / MEMBERS).read_text())
            return found
        return sorted(self.nodes, key=natural_order)

    def _parts(self, begun: Path | None, names: Sequence[str]) -> tuple[Parts, Checkpoint | None]:
        def make() -> Parts:
            return Parts(self.config, side=Leading(names))

        if begun is None:
            return make(), None
        if not checkpoint.found(begun / "checkpoints"):  # it ended before the first, and begins anew in its folder
            for name in WRITTEN:
                (begun / name).unlink(missing_ok=True)
            return make(), None
        written = RunFolder(begun).env().get("fedloom")
        if written != __version__:
            raise UserError(f"{begun} was begun by fedloom {written}, this is {__version__}; go on with that one")
        return starting.saved(RunFolder(begun), self.config, make, 1)

    def _remote(self, parts: Parts, path: Path, names: Sequence[str]) -> Remote:
        text = agreed.sendable(self.config, {name: i for i, name in enumerate(names)}, parts.cohort)

        def recipe(client: int, ticket: str) -> Recipe:
            return Recipe(path.name, ticket, __version__, text, client, len(names), names[client])

        known = agreed.traits(parts) | RunFolder(path).env().get("agreed", {})
        self.agreement = agreed.Agreement(known)
        return Remote(
            self.post, {name: self.nodes.get(name, 0) for name in names}, path.name, recipe,
            parts.marshal(path.name, agreed.fingerprint(text)), self.config.deploy,
            self.config.federation.min_replies, self.agreement, events=self._note, told=self._told, tick=self.tick,
        )  # fmt: skip

    def _join(self, parts: Parts, remote: Remote, path: Path, env: Mapping[str, Any]) -> None:
        """Wait until enough clients have built the recipe; write down what they agreed on."""
        left = sum(name in self.nodes for name in (seat.name for seat in remote.seats))  # some may be revoked since
        wanted = max(1, min(self.config.deploy.clients or 1, left))
        self.board.waiting(wanted)
        remote.gather(wanted)
        self.board.waiting(None)
        for client, seat in zip(parts.data.clients, remote.seats, strict=True):
            client.sizes = {split: int(seat.rows.get(split, 0)) for split in client.sizes}
        if "agreed" not in env:
            atomic.write_text(path / "env.json", json.dumps({**env, "agreed": self.agreement.known}, indent=1))

    def _farewell(self, parts: Parts, remote: Remote, run: Run, session: Session) -> None:
        """Give clients the model, and let them go."""
        shared = parts.algorithm.model(session.state)
        body = encode(shared) if self.config.deploy.share_model else b""
        remote.farewell(run.status, session.progress.round, body, GOODBYE)

    # -- what happens meanwhile

    def tick(self) -> None:
        """Once a second: the mailroom lives, who was invited or revoked, whether to stop.

        Raises:
            RunStopped: it is gone, or this server is to stop and waits anyway.
        """
        self.mailroom.check()
        self._enrol()
        for number, seat in enumerate(self.remote.seats if self.remote is not None else ()):
            seat.node = self.nodes.get(seat.name, 0)  # one that was revoked and invited again has a new one
            self.board.member(seat.name, number=number, bytes_down=seat.down, bytes_up=seat.up)
        self.halting = self.halting or (self.home.path / STOP).exists()
        if self.halting and (self.remote is None or self.remote.waiting):
            raise AskedToStop("stopped, as asked; the same command goes on")

    def _enrol(self) -> None:
        """Let in who was invited, and out who was revoked, since the last look."""
        invited = {name: who.public for name, who in self.home.invited().items() if not who.revoked}
        for name in [name for name, public in self.keys.items() if invited.get(name) != public]:
            self.post.expel(self.nodes.pop(name))
            del self.keys[name]
            self.board.member(name, state="revoked")
        for name, public in invited.items():
            if name not in self.keys:
                self.nodes[name] = self.post.register(public.encode())
                self.keys[name] = public
                self.board.member(name, state="invited")

    def _note(self, event: Event) -> None:
        self.board(event)
        for sink in self.sinks:
            sink(event)

    def _told(self, name: str, state: str, words: str) -> None:
        shown = STATES[state]
        if shown == "refused":
            self.board.member(name, state=shown, refusal=words)
        else:
            self.board.member(name, state=shown)


def _return_memory() -> None:
    """Let large pieces of memory go back to the system as soon as they are free.

    glibc keeps freed pieces of up to 32 MB once it has seen some: a server that handles adapters layer by layer would
    hold one more adapter than it uses. From 1 MB on, the blocks of letters would be among them, and a round of 200 MB
    took half as long again (both measured).
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 8 << 20)


def _here(host: str) -> str:
    """The address at which this machine reaches itself."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
