r"""Join files: all that one client needs to take part, handed over once, by a safe way.

    {
     "note": "private key: hand over by a safe way, one machine only",
     "format": 1,
     "name": "site-a",
     "addresses": ["fl.example.org:9092"],
     "ca": "-----BEGIN CERTIFICATE-----\n...",
     "key": "-----BEGIN PRIVATE KEY-----\n..."
    }

A server without TLS has an empty `ca` and is reached on loopback only.
"""

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedloom import atomic
from fedloom.deployment.addresses import Address, parse_address
from fedloom.deployment.certificates import public_of, read_certificates
from fedloom.errors import UserError, nearest

FORMAT: Final = 1
NOTE: Final = "private key: hand over by a safe way, one machine only"
_FIELDS: Final = {"name": str, "addresses": list, "ca": str, "key": str}
_KINDS: Final = {str: "text", list: "a list of texts"}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_AGAIN: Final = "Copy the file again, whole, or ask for a new one"


@dataclass(frozen=True)
class JoinFile:
    """What one client is given."""

    name: str
    """The client's, as the server calls it."""
    addresses: tuple[str, ...]
    """`host:port`, to be tried in this order."""
    ca: str
    """PEM of the authority that the server's certificate is signed by; empty: no TLS."""
    key: str
    """PEM of the client's private key; nobody else has it."""

    def __repr__(self) -> str:
        return f"JoinFile({self.name!r}, {self.addresses!r})"  # a log must not hold the key

    @property
    def text(self) -> str:
        """The file's text, which `parse` reads."""
        fields = {"name": self.name, "addresses": self.addresses, "ca": self.ca, "key": self.key}
        lines = (
            f" {json.dumps(key)}: {json.dumps(value)}"
            for key, value in {"note": NOTE, "format": FORMAT, **fields}.items()
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @property
    def public(self) -> str:
        """PEM of the public half of the key, as the server knows it."""
        return public_of(self.key, "the key of the join file")


def check_name(name: str) -> None:
    """Raise a UserError unless a client can be called so."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be the name of a client: use 1 to 64 of the letters a-z and A-Z, digits, dots, hyphens "
            "and underscores, not a dot or hyphen first"
        )


def check_loopback(addresses: Sequence[Address]) -> None:
    """Raise a UserError unless all are the machine itself: without TLS nothing else is safe."""
    for address in addresses:
        if not address.loopback:
            raise UserError(
                f"{address} is another machine's address, and without TLS everybody between can read and change what "
                "is sent. Use TLS, or 127.0.0.1 with a tunnel of your own"
            )


def read(path: Path) -> JoinFile:
    """Read a join file.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"the join file {path} cannot be read: {error.strerror or error}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what `>` writes in Windows' PowerShell
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no join file: it is no text. {_AGAIN}") from error
    return parse(text, str(path))


def write(path: Path, join: JoinFile) -> None:
    """Write a join file that only its owner can read."""
    try:
        atomic.write_text(path, join.text, mode=0o600)
    except OSError as error:
        raise UserError(f"the join file {path} cannot be written: {error.strerror or error}") from error


def parse(text: str, where: str) -> JoinFile:
    """Read a join file's text.

    Args:
        text: all of it.
        where: begins every error.

    Raises:
        UserError: it is not a join file, or not a whole one.
    """
    fields = _fields(_decoded(text, where), where)
    join = JoinFile(fields["name"], tuple(fields["addresses"]), fields["ca"], fields["key"])
    try:
        check_name(join.name)
        addresses = [parse_address(address) for address in join.addresses]
        if not join.ca:
            check_loopback(addresses)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    public_of(join.key, f"the private key in {where}")
    if join.ca:
        read_certificates(join.ca, f"the CA in {where}")
    return join


def _decoded(text: str, where: str) -> dict[str, Any]:
    if not text.strip():
        raise UserError(f"{where} is empty. {_AGAIN}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        begun = text.lstrip().startswith("{") and '"note"' in text[:100]
        what = "is a join file that was cut off or changed" if begun else "is no join file"
        raise UserError(f"{where} {what} ({error}). {_AGAIN}") from error
    if not isinstance(found, dict) or not {"format", *_FIELDS} & set(found):
        raise UserError(f"{where} is no join file, though it is JSON. One is made on the server: fedloom invite NAME")
    return found


def _fields(found: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields that matter, all there and of the right kind."""
    if found.get("format") != FORMAT or isinstance(found["format"], bool):
        raise UserError(
            f"{where} is a join file of format {found.get('format')!r}; this version of fedloom reads format {FORMAT}. "
            "Use the same version of fedloom as the server"
        )
    known = {"note", "format", *_FIELDS}
    for name in found:
        if name not in known:
            raise UserError(f"{where}: {name!r} is no field of a join file.{nearest(name, known)} {_AGAIN}")
    missing = [name for name in _FIELDS if name not in found]
    if missing:
        raise UserError(f"{where} lacks {' and '.join(missing)}. {_AGAIN}")
    for name, kind in _FIELDS.items():
        value = found[name]
        if not isinstance(value, kind) or (kind is list and not all(isinstance(one, str) for one in value)):
            raise UserError(f"{where}: {name} is not {_KINDS[kind]}. {_AGAIN}")
    if not found["addresses"]:
        raise UserError(f"{where} names no address of the server. {_AGAIN}")
    return found
