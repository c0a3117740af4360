"""What a server's folder holds for TLS: made or copied once, looked at before every start."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from fedloom.deployment import certificates
from fedloom.deployment.addresses import is_loopback, parse_address
from fedloom.deployment.given import Given, Identity, refusal, take
from fedloom.deployment.joining import check_loopback
from fedloom.errors import UserError

Tls = Literal["own", "given", "none"]
"""Whose authority signed the server's certificate; none: the server speaks plain HTTP, on loopback."""

RENEWED: Final = timedelta(days=30)
"""A certificate of our own authority that has less left is made anew at the next start."""
_WARNED: Final = timedelta(days=180)
"""Everybody has to be invited anew when the authority ends; that takes organisations a while."""


def kind(given: Given | None, insecure: bool) -> Tls:
    """How a new server is to be trusted."""
    if given and insecure:
        raise UserError("a certificate and a server without TLS were both asked for; leave out one of them")
    return "given" if given else "none" if insecure else "own"


def first(tls: Tls, addresses: Sequence[str], host: str, given: Given | None, now: datetime) -> dict[str, str]:
    """The files of a new folder by name.

    Args:
        tls: which kind.
        addresses: where clients reach the server.
        host: where it listens.
        given: for `given`.
        now: with a time zone.

    Raises:
        UserError: clients would not accept these, or should not.
    """
    if tls == "none":
        _check_private(addresses, host)
        return {}
    if given:
        return _files(take(given, _hosts(addresses), now))
    ca, ca_key = certificates.make_ca(now)
    return _files(Identity(ca, *certificates.issue(ca, ca_key, _hosts(addresses), now), ca_key))


def renewed(
    home: Path, tls: Tls, addresses: Sequence[str], given: Given | None, active: Sequence[str], now: datetime
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What must change before the server starts.

    Args:
        home: the folder.
        tls: how it was made.
        addresses: where clients reach the server from now on.
        given: a certificate instead of the one in the folder.
        active: clients whose join files are out, with the authority as it was.
        now: with a time zone.

    Returns:
        Files to write by name, and why, in words.

    Raises:
        UserError: clients would not accept the server.
    """
    if given:
        return _exchanged(home, tls, take(given, _hosts(addresses), now), active)
    if tls == "own":
        return _reissued(home, _hosts(addresses), now)
    if tls == "given":
        take(Given(home / "server.pem", home / "server.key", home / "ca.pem"), _hosts(addresses), now)
    else:
        check_loopback([parse_address(address) for address in addresses])
    return {}, ()


def _exchanged(home: Path, tls: Tls, new: Identity, active: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    if tls == "none":
        raise UserError(f"{home} was made for a server without TLS; make another folder for one with a certificate")
    if new.ca != _stored(home / "ca.pem") and active:
        raise UserError(
            f"{len(active)} clients ({', '.join(active[:3])}{', ...' if len(active) > 3 else ''}) were invited with "
            "another CA and would refuse this server. Revoke them first and invite them anew, or make another folder"
        )
    files = {name: text for name, text in _files(new).items() if text != _stored(home / name)}
    return files, ("the certificate that was given is used from now on",) if files else ()


def _reissued(home: Path, hosts: Sequence[str], now: datetime) -> tuple[dict[str, str], tuple[str, ...]]:
    ca, ca_key, old, key = (_stored(home / name) for name in ("ca.pem", "ca.key", "server.pem", "server.key"))
    end = certificates.expires(ca)
    words: tuple[str, ...] = ()
    if now > end:
        raise UserError(f"the CA in {home} ended on {end:%Y-%m-%d}; make a new folder and invite every client anew")
    if now > end - _WARNED:
        words = (f"the CA ends on {end:%Y-%m-%d}; make a new folder before that and invite every client anew",)
    why = _stale(old, end, hosts, now) or refusal(ca, home / "server.pem", home / "server.key")
    if not why:
        return {}, words
    names = (*hosts, *certificates.names_of(old))  # clients invited earlier go on using the older ones
    certificate, _ = certificates.issue(ca, ca_key, names, now, key)
    return {"server.pem": certificate}, (*words, f"the server's certificate was made anew: {why}")


def _stale(certificate: str, end: datetime, hosts: Sequence[str], now: datetime) -> str:
    """Why a certificate should be made anew; empty: it should not."""
    lacking = [host for host in hosts if not certificates.covers(certificate, host)]
    if lacking:
        return f"it was not for {', '.join(lacking)}"
    last = certificates.expires(certificate)
    return f"it ends on {last:%Y-%m-%d}" if last < min(now + RENEWED, end) else ""


def _check_private(addresses: Sequence[str], host: str) -> None:
    check_loopback([parse_address(address) for address in addresses])
    if not is_loopback(host):
        raise UserError(
            f"without TLS a server may listen on 127.0.0.1 only, not on {host}; leave out the host or use TLS"
        )


def _files(identity: Identity) -> dict[str, str]:
    files = {"ca.pem": identity.ca, "server.pem": identity.certificate, "server.key": identity.key}
    return files | ({"ca.key": identity.ca_key} if identity.ca_key else {})


def _hosts(addresses: Sequence[str]) -> list[str]:
    return [parse_address(address).host for address in addresses]


def _stored(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}. Put a copy back, or make a new folder and invite "
            "every client anew"
        ) from error
