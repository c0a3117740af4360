"""Who may take part: `invited.json`, {name: {"public": PEM, "since": ISO time, "revoked": bool}}.

The command line changes it while the server runs and looks at it again and again, so every change is made under a lock
and the file is replaced whole. A private key is never kept.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fedloom import atomic
from fedloom.deployment.certificates import node_keys
from fedloom.deployment.joining import check_name
from fedloom.deployment.locking import Busy, held
from fedloom.errors import UserError, nearest

_PATIENCE: Final = 10.0
"""Seconds to wait for others that change the file; each takes a few milliseconds."""


@dataclass(frozen=True)
class Invited:
    """One client."""

    public: str
    """PEM of its public key."""
    since: str
    """When it was invited: ISO 8601 with a time zone."""
    revoked: bool = False


class Invitations:
    """The file and its lock beside it.

    Args:
        path: of the file; a missing one means that nobody was invited.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Invited]:
        """Everybody ever invited, in the order of first invitation.

        Raises:
            UserError: the file was changed by hand or is damaged.
        """
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {name: _invited(entry) for name, entry in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} cannot be read ({error}); it was changed by hand or is damaged. Put a copy back, or "
                "delete it and invite every client anew"
            ) from error

    def add(self, name: str, now: datetime) -> str:
        """Invite a client, or one that was revoked anew, and return its new private key.

        Raises:
            UserError: it cannot be called so, or is invited already.
        """
        check_name(name)
        private, public = node_keys()
        with self._changed() as known:
            _check_free(name, known)
            known[name] = Invited(public, now.isoformat(timespec="seconds"))
        return private

    def revoke(self, name: str) -> None:
        """Let a client take part no longer; twice is as good as once.

        Raises:
            UserError: nobody is called so.
        """
        with self._changed() as known:
            if name not in known:
                raise UserError(f"{name!r} was never invited.{nearest(name, known)}")
            known[name] = Invited(known[name].public, known[name].since, revoked=True)

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Invited]]:
        """What is in the file, to be changed; written when the block ends well."""
        try:
            with held(self.path.with_suffix(".lock"), _PATIENCE):
                known = self.read()
                yield known
                text = json.dumps({name: asdict(entry) for name, entry in known.items()}, indent=1)
                atomic.write_text(self.path, text + "\n", mode=0o600)
        except Busy as busy:
            raise UserError(
                f"{self.path} is being changed by process {busy.pid}; try again when that is done"
            ) from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be changed: {error.strerror or error}") from error


def _check_free(name: str, known: dict[str, Invited]) -> None:
    entry = known.get(name)
    if entry and not entry.revoked:
        raise UserError(
            f"{name} was invited already, on {entry.since[:10]}, and its key is not kept. If the join file is lost: "
            f"fedloom revoke {name}, then invite it again"
        )
    alike = [other for other in known if other != name and other.lower() == name.lower()]
    if alike:
        raise UserError(
            f"{name} differs from {alike[0]} only in capitals, which some file systems ignore; choose another name"
        )


def _invited(entry: Any) -> Invited:
    found = Invited(**entry)
    if not (isinstance(found.public, str) and isinstance(found.since, str) and isinstance(found.revoked, bool)):
        raise TypeError("an entry holds something else than text")
    return found
