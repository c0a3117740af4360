"""A certificate of one's own instead of one that fedloom makes: whether its three files fit together."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from fedloom.deployment import certificates
from fedloom.errors import UserError

_TURNS: Final = 6
"""A handshake takes two turns of each side; more means that it does not end."""


@dataclass(frozen=True)
class Given:
    """Paths of PEM files."""

    certificate: Path
    """The server's, followed by those between it and the authority, if there are any."""
    key: Path
    """Its private key, without a password."""
    ca: Path
    """The authority that clients are to trust."""


@dataclass(frozen=True)
class Identity:
    """What a server shows, as PEM text."""

    ca: str
    certificate: str
    key: str
    ca_key: str = ""
    """Empty where the authority is not ours."""


def take(given: Given, hosts: Iterable[str], now: datetime) -> Identity:
    """Read the files and check that clients will accept them.

    Args:
        given: where they lie.
        hosts: names and IP addresses the clients connect to.
        now: with a time zone.

    Raises:
        UserError: they do not fit together, are not good now, or are for other hosts.
    """
    certificate = certificates.read_certificates(_text(given.certificate, "certificate"), str(given.certificate))
    ca = certificates.read_certificates(_text(given.ca, "CA"), str(given.ca))
    key = _text(given.key, "private key")
    _check_key(certificate, key, given)
    for path, pem in ((given.certificate, certificate), (given.ca, ca)):
        _check_dates(path, pem, now)
    problem = refusal(ca, given.certificate, given.key)
    if problem:
        raise UserError(
            f"clients that trust {given.ca} refuse {given.certificate}: {problem}. The file of the certificate must "
            "also hold those between it and the CA, its own first"
        )
    check_hosts(certificate, hosts, str(given.certificate))
    return Identity(ca, certificate, key)


def check_hosts(certificate: str, hosts: Iterable[str], where: str) -> None:
    """Raise a UserError unless a certificate is for all these hosts."""
    for host in hosts:
        if not certificates.covers(certificate, host):
            names = ", ".join(certificates.names_of(certificate)) or "no host at all (it has no subjectAltName)"
            raise UserError(
                f"clients that connect to {host} would refuse the certificate in {where}: it is for {names}. "
                "Have one made for that name, or give clients a name it is for"
            )


def refusal(ca: str, certificate: Path, key: Path) -> str:
    """Why a client that trusts `ca` would not talk to a server with these files; empty: it would.

    A TLS handshake without a network says it best: the same library decides when a client really connects.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # said in better words by check_hosts
    try:
        client.load_verify_locations(cadata=ca)
        server.load_cert_chain(certificate, key, password="")  # without one it would ask the terminal
        _handshake(client, server)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason.replace("_", " ").lower() if error.reason else str(error)
    return ""


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    waiting = set(ends)
    for _ in range(_TURNS):
        for end in ends:
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                pass
    if waiting:
        raise ssl.SSLError("the handshake did not end")


def _check_key(certificate: str, key: str, given: Given) -> None:
    public = certificates.public_pem(certificates.read_key(key, str(given.key)))
    if public != certificates.certified_key(certificate):
        raise UserError(
            f"{given.key} is not the private key of {given.certificate}; give the two that were made together. In a "
            "file of several certificates the server's own comes first"
        )


def _check_dates(path: Path, pem: str, now: datetime) -> None:
    end, start = certificates.expires(pem), certificates.begins(pem)
    if now > end:
        raise UserError(f"{path} expired on {end:%Y-%m-%d}; have a new certificate made")
    if now < start:
        raise UserError(f"{path} is good from {start:%Y-%m-%d %H:%M} UTC on only; check this machine's clock")


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no PEM text but probably DER; openssl can change that: openssl x509 -inform der -in FILE"
        ) from error
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
