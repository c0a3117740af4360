"""Where a server is reached: `host:port`, with IPv6 in brackets as in `[2001:db8::1]:9092`."""

import ipaddress
import re
from dataclasses import dataclass

from fedloom.errors import UserError

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_NAME = 253  # characters, RFC 1035
_EXAMPLE = "fl.example.org:9092"


@dataclass(frozen=True)
class Address:
    """A host and a TCP port; `str` gives what `parse_address` reads."""

    host: str
    """A DNS name in lower case, or an IP address without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether it is this very machine, whichever that is."""
        return is_loopback(self.host)


def parse_address(text: str, port: int | None = None) -> Address:
    """Read an address.

    Args:
        text: such as `fl.example.org:9092`, `192.0.2.7:9092`, `[2001:db8::7]:9092`.
        port: used when `text` names none; None: it must name one.

    Raises:
        UserError: nobody could connect to that.
    """
    if "/" in text:
        raise UserError(f"{text!r} is no address of a server: write host and port alone, such as {_EXAMPLE}")
    host, digits = _split(text.strip().lower())
    if digits is None and port is None:
        raise UserError(f"{text!r} names no port; write it behind the host, such as {_EXAMPLE}")
    return Address(_checked_host(host, text), _port(digits, text) if digits is not None else port or 0)


def is_loopback(host: str) -> bool:
    """Whether a name or IP address means the machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _split(text: str) -> tuple[str, str | None]:
    """Host and the port's digits; None if there is no port."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if bracket and (not rest or rest.startswith(":")):
            return host, rest[1:] if rest else None
        return text, None
    if text.count(":") > 1:  # IPv6 without brackets
        return text, None
    host, colon, digits = text.partition(":")
    return host, digits if colon else None


def _port(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdigit() and 1 <= int(digits[:6]) <= 65535):
        raise UserError(f"{text!r}: the port is {digits!r}; ports are whole numbers from 1 to 65535")
    return int(digits)


def _checked_host(host: str, text: str) -> str:
    host = host.removesuffix(".")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return _checked_name(host, text)
    if ip.is_unspecified:
        raise UserError(
            f"{text!r} is where a server listens, not where it is reached; name its host, such as {_EXAMPLE}"
        )
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id:
        raise UserError(f"{text!r} means another network card on every machine; use an address without %{ip.scope_id}")
    return str(ip)


def _checked_name(host: str, text: str) -> str:
    if not host.isascii():
        raise UserError(f"{text!r}: write the host in its ASCII form (it begins with xn--)")
    if len(host) > _LONGEST_NAME or not _NAME.fullmatch(host):
        raise UserError(f"{text!r}: {host!r} is no host name and no IP address; an address looks like {_EXAMPLE}")
    if host.rpartition(".")[2].isdigit():
        raise UserError(f"{text!r}: {host!r} is no IP address; IPv4 has four numbers from 0 to 255")
    return host
