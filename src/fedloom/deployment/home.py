"""The server's own folder: its keys, who is invited, where its run lies. Nobody but its owner may look inside.

- home.json: {"format", "addresses", "host", "port", "tls"}, see fedloom.deployment.whereabouts
- ca.pem, ca.key: the authority; no ca.key where the certificate was given; none of these four without TLS
- server.pem, server.key: what the server shows
- invited.json: fedloom.deployment.invitations
- token: lets the server's own processes speak to Flower's part of it; new on each start
- run: the run folder that a restarted server goes on with
- status.json, server.log: what people read
- server.lock: which process is the server
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from fedloom import atomic
from fedloom.deployment import identities, whereabouts
from fedloom.deployment.given import Given
from fedloom.deployment.invitations import Invitations, Invited
from fedloom.deployment.joining import JoinFile
from fedloom.deployment.locking import Busy, held, holder
from fedloom.deployment.whereabouts import Whereabouts
from fedloom.errors import UserError

_PRIVATE: Final = 0o600
_LEFT: Final = ("server.lock", "ca.pem", "ca.key", "server.pem", "server.key")
_OWN: Final = frozenset({*_LEFT, *(f".{name}.partial" for name in (*_LEFT, "home.json")), "lost+found"})
"""What an interrupted `create` leaves behind, and what an empty file system holds."""
_OVERLAP: Final = 0.5
"""Seconds: somebody who only looks whether a server runs has its lock for a moment."""


@dataclass(frozen=True)
class CurrentRun:
    """The run a server is in, or was in when it ended."""

    path: Path
    """Its folder."""
    fingerprint: str
    """Of its configuration."""


class Home:
    """One server's folder; every property is read anew from disk.

    Args:
        path: the folder; `open` checks that it is one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca, self.certificate, self.key = path / "ca.pem", path / "server.pem", path / "server.key"
        self.log = path / "server.log"
        self.status, self.token = path / "status.json", path / "token"
        self.invitations = Invitations(path / "invited.json")

    @classmethod
    def create(
        cls,
        path: Path,
        addresses: Sequence[str],
        host: str,
        port: int,
        certificate: Given | None = None,
        *,
        insecure: bool = False,
        now: datetime | None = None,
    ) -> "Home":
        """Make the folder; until all is in it, it is not one that `open` takes.

        Args:
            path: new, or an empty folder, perhaps a mounted one; or one where this was begun and interrupted.
            addresses: where clients reach the server; those without a port get `port`.
            host: where it listens.
            port: where it listens.
            certificate: one's own; None: an authority and a certificate are made.
            insecure: without TLS, on loopback only.
            now: with a time zone; None: the clock's.

        Raises:
            UserError: the folder is not empty, an address is none, the certificate does not fit.
        """
        where = whereabouts.checked(addresses, host, port, identities.kind(certificate, insecure))
        found = identities.first(where.tls, where.addresses, host, certificate, now or _now())
        home = cls(path)
        try:
            _check_new(path)
            _make_private(path)
            with home.lock():
                _check_new(path)  # another process may have been quicker
                for name, text in found.items():
                    home._write(name, text)
                whereabouts.write(path, where)
        except OSError as error:
            raise UserError(f"the server's folder {path} cannot be made: {error.strerror or error}") from error
        return home

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether `open` is meant for this folder, not `create`."""
        return (path / whereabouts.NAME).exists()

    @classmethod
    def open(cls, path: Path) -> "Home":
        """A folder that `create` made.

        Raises:
            UserError: it is none, or of another version.
        """
        home = cls(path)
        _ = home.settings
        return home

    @property
    def settings(self) -> Whereabouts:
        """What home.json says."""
        return whereabouts.read(self.path)

    @property
    def secure(self) -> bool:
        """Whether clients speak TLS to this server."""
        return self.settings.tls != "none"

    def update(
        self, addresses: Sequence[str] = (), certificate: Given | None = None, now: datetime | None = None
    ) -> tuple[str, ...]:
        """Before each start: take over what was given anew, and see that clients will accept the certificate.

        Args:
            addresses: instead of those known; the certificate goes on to hold the old ones too. Empty: no change.
            certificate: instead of the one in the folder.
            now: with a time zone; None: the clock's.

        Returns:
            What was changed, a sentence each.

        Raises:
            UserError: clients would not accept the server as it would be.
        """
        old = self.settings
        tls = old.tls if certificate is None else "given"
        new = whereabouts.checked(addresses or old.addresses, old.host, old.port, tls)
        active = [name for name, entry in self.invited().items() if not entry.revoked]
        files, words = identities.renewed(self.path, old.tls, new.addresses, certificate, active, now or _now())
        for name, text in files.items():
            self._write(name, text)
        if new != old:
            whereabouts.write(self.path, new)
        if new.addresses != old.addresses:
            words += (f"join files made from now on name {', '.join(new.addresses)}",)
        return words

    def invite(self, name: str, now: datetime | None = None) -> JoinFile:
        """Let a client take part; its private key is in the returned join file and nowhere else."""
        settings = self.settings
        ca = self.ca.read_text(encoding="ascii") if settings.tls != "none" else ""
        return JoinFile(name, settings.addresses, ca, self.invitations.add(name, now or _now()))

    def revoke(self, name: str) -> None:
        """Let a client take part no longer; a running server notices by itself."""
        self.invitations.revoke(name)

    def invited(self) -> dict[str, Invited]:
        """Everybody ever invited, also those revoked since."""
        return self.invitations.read()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one server process of this folder during the block.

        Raises:
            UserError: another process is.
        """
        try:
            with held(self._lock, _OVERLAP):
                yield
        except Busy as busy:
            who = f"process {busy.pid}" if busy.pid else "another process"
            raise UserError(
                f"a server runs with the folder {self.path} already ({who}). Stop that one first: fedloom stop; or "
                "give this one another folder: --home"
            ) from None

    def holder(self) -> int | None:
        """The process that has the lock, 0 if it cannot be said which; None: no server runs."""
        return holder(self._lock)

    def new_token(self) -> str:
        """A secret for this start of the server: 64 hexadecimal digits, also in the file `token`."""
        token = secrets.token_hex(32)
        self._write("token", token)
        return token

    @property
    def run(self) -> CurrentRun | None:
        """The run to go on with; None: there is none."""
        path = self.path / "run"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return CurrentRun(Path(found["path"]), found["fingerprint"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete it to begin a new run") from error

    def begin(self, run: CurrentRun) -> None:
        """Remember the run, for a server that is started after this one ended early."""
        self._write("run", json.dumps({"path": str(run.path.resolve()), "fingerprint": run.fingerprint}))

    def end(self) -> None:
        """The run is over; the next start begins another."""
        (self.path / "run").unlink(missing_ok=True)

    @property
    def _lock(self) -> Path:
        return self.path / "server.lock"

    def _write(self, name: str, text: str) -> None:
        atomic.write_text(self.path / name, text, _PRIVATE)


def _now() -> datetime:
    return datetime.now().astimezone()


def _check_new(path: Path) -> None:
    if Home.exists(path):
        raise UserError(f"{path} is a server's folder already; start the server with it, or name another: --home")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder that does not exist yet: --home")
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _OWN) if path.exists() else []
    if foreign:
        raise UserError(f"{path} holds other files ({foreign[0]}); name a folder that does not exist yet: --home")


def _make_private(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(OSError):  # some file systems know no modes; where they do, every file in it is private by itself
        path.chmod(0o700)
