"""The way from here to a server, step by step: name, port, TLS, clock. Nothing raises; every step gives a row."""

import contextlib
import http.client
import math
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from fedloom.deployment.addresses import Address, parse_address
from fedloom.errors import UserError

TIMEOUT: Final = 10.0
"""Seconds for one step."""
SOON: Final = 30
"""Days before a certificate ends that are worth a warning."""
AHEAD: Final = 5.0
"""Seconds our clock may be ahead of the server's: what a client signs carries its time."""
BEHIND: Final = 300.0
"""Seconds it may be behind."""
_NEAR: Final = 0.4
"""The share of that from which on it is worth a warning."""


@dataclass(frozen=True)
class Check:
    """One row."""

    name: str
    state: Literal["ok", "warn", "fail"]
    words: str
    """What is, and what to do if it is not well."""


def look(address: str, ca: str) -> list[Check]:
    """All steps to one address, until one fails.

    Args:
        address: `host:port`.
        ca: PEM of the authority to trust; empty: no TLS.
    """
    try:
        where = parse_address(address)
    except UserError as error:
        return [Check("address", "fail", str(error))]
    rows = []
    for step in _steps(where, ca):
        rows.append(step)
        if step.state == "fail":
            break
    return rows


def resolve(host: str) -> tuple[list[str], Check]:
    """The IP addresses of a host, and the row about them."""
    try:
        found = sorted({str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        words = f"{host} has no IP address here ({why}): check its spelling, the name server, the network"
        return [], Check("address", "fail", words)
    return found, Check("address", "ok", host if found == [host] else f"{host} is {', '.join(found)}")


def connect(host: str, port: int) -> tuple[float | None, str]:
    """Seconds it takes to connect, or None and why it does not work."""
    begun = time.perf_counter()
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT):
            return time.perf_counter() - begun, ""
    except TimeoutError:
        return None, f"no answer within {TIMEOUT:.0f} s; a firewall may be in between"
    except OSError as error:
        return None, error.strerror or str(error)


def free(host: str, port: int) -> Check:
    """Whether a server could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        words = f"{host}:{port} cannot be used ({why}); end what uses it, or choose another port"
        return Check("port", "fail", words)
    return Check("port", "ok", f"{port} is free")


def dates(name: str, begins: datetime, ends: datetime, now: datetime, what: str) -> Check:
    """How long a certificate is still good."""
    days = math.floor((ends - now).total_seconds() / 86400)
    if now < begins:
        return Check(name, "fail", f"{what} is good from {begins:%Y-%m-%d %H:%M} UTC on only; is this clock right?")
    if days < 0:
        return Check(name, "fail", f"{what} ended on {ends:%Y-%m-%d}; {_RENEW}")
    words = f"{what} is good until {ends:%Y-%m-%d}, {days} days"
    return Check(name, "warn", f"{words}; {_RENEW}") if days < SOON else Check(name, "ok", words)


def clock(ours: float, theirs: datetime) -> Check:
    """Our time of day (seconds since 1970) against an HTTP date, which leaves out the parts of a second."""
    ahead = ours - (theirs.timestamp() + 0.5)
    words = f"this clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if abs(ahead) < 1.5:
        words = "this clock and the server's agree"
    share = ahead / AHEAD if ahead > 0 else -ahead / BEHIND
    if share > 1:
        limits = f"more than {AHEAD:.0f} s ahead or {BEHIND:.0f} s behind is turned away"
        return Check("clock", "fail", f"{words}; {limits}: set the clock, best by NTP on both machines")
    return Check("clock", "warn" if share > _NEAR else "ok", words + ("; set it by NTP" if share > _NEAR else ""))


_RENEW: Final = "a server with an authority of its own makes a new one when it is started; else get one"


def _steps(where: Address, ca: str) -> Iterator[Check]:
    yield resolve(where.host)[1]
    took, why = connect(where.host, where.port)
    if took is None:
        yield Check("port", "fail", f"{where}: {why}. Does the server run, and may this machine connect to that port?")
        return
    yield Check("port", "ok", f"{where} answers after {1000 * took:.0f} ms")
    context = None
    if ca:
        try:
            context = trusting(ca)
        except ssl.SSLError as error:
            yield Check("certificate", "fail", f"the CA in the join file cannot be used ({error}); ask for a new file")
            return
        yield _handshake(where, context)
    yield from _health(where, context)


def trusting(ca: str) -> ssl.SSLContext:
    """TLS for one who trusts this authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca)
    return context


def _handshake(where: Address, context: ssl.SSLContext) -> Check:
    """The server's certificate as a client sees it: signed by our authority, for this host, and for how long."""
    try:
        with (
            socket.create_connection((where.host, where.port), timeout=TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=where.host) as secure,
        ):
            shown = secure.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Check("certificate", "fail", _refused(where, error))
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        words = f"no TLS with {where} ({why}); is this fedloom's port, and no other program's or proxy's?"
        return Check("certificate", "fail", words)
    begins, ends = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown[key])), UTC) for key in ("notBefore", "notAfter")
    )
    what = f"the certificate for {where.host}"
    return dates("certificate", begins, ends, datetime.now(UTC), what)


def _refused(where: Address, error: ssl.SSLCertVerificationError) -> str:
    """Why a certificate is not trusted; the numbers are OpenSSL's X509_V_ERR."""
    match error.verify_code:
        case 62 | 64:
            return f"the server's certificate is not for {where.host}: start it with --address {where}"
        case 10:
            return f"the server's certificate has ended (or this clock is wrong); {_RENEW}"
        case 9:
            return "the server's certificate is not good yet: is this clock, or the server's, right?"
        case _:
            return (
                f"the server is not the one of the join file ({error.verify_message}): it has another authority, or "
                "somebody is in between. Ask the server's people for a new join file, and compare fingerprints"
            )


def _health(where: Address, context: ssl.SSLContext | None) -> Iterator[Check]:
    """Whether fedloom's server answers, and its clock."""
    host, port = where.host, where.port
    connection = (
        http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        if context is None
        else http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
    )
    with contextlib.closing(connection):
        try:
            connection.connect()
            before = time.time()
            connection.request("GET", "/health")
            answer = connection.getresponse()
            ours = (before + time.time()) / 2
        except (OSError, http.client.HTTPException) as error:
            yield Check("server", "fail", f"{where} does not answer GET /health: {error or type(error).__name__}")
            return
        if answer.status != http.HTTPStatus.OK:
            yield Check("server", "fail", f"{where} answers {answer.status} to GET /health: no server of fedloom")
            return
        yield Check("server", "ok", f"{where} answers")
        said = answer.getheader("Date", "")
    try:
        yield clock(ours, parsedate_to_datetime(said))
    except (ValueError, TypeError):
        yield Check("clock", "warn", "the server does not say its time; compare the clocks by hand")
