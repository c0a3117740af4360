"""home.json: where a server listens, where clients reach it, and whether they speak TLS."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from fedloom import atomic
from fedloom.deployment.addresses import parse_address
from fedloom.deployment.identities import Tls
from fedloom.errors import UserError

FORMAT: Final = 1
NAME: Final = "home.json"


@dataclass(frozen=True)
class Whereabouts:
    """Of one server."""

    addresses: tuple[str, ...]
    """`host:port` as clients use them, each once; written into join files in this order."""
    host: str
    """The network card to listen at; 0.0.0.0 or :: is all."""
    port: int
    tls: Tls


def checked(addresses: Sequence[str], host: str, port: int, tls: Tls) -> Whereabouts:
    """Every address with its port, in one spelling.

    Raises:
        UserError: an address is none, or there is none.
    """
    if not addresses:
        raise UserError("no address is given where clients reach this server; give one: --address fl.example.org:9092")
    if not 1 <= port <= 65535:
        raise UserError(f"a server cannot listen at port {port}; choose one from 1024 to 65535")
    found = tuple(dict.fromkeys(str(parse_address(address, port)) for address in addresses))
    return Whereabouts(found, host, port, tls)


def write(home: Path, whereabouts: Whereabouts) -> None:
    """Replace home.json."""
    text = json.dumps({"format": FORMAT, **asdict(whereabouts)}, indent=1)
    atomic.write_text(home / NAME, text + "\n", mode=0o600)


def read(home: Path) -> Whereabouts:
    """Read home.json.

    Raises:
        UserError: the folder is no server's, or one of another version.
    """
    path = home / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{home} is no server's folder. The server makes it at its first start: fedloom server RECIPE --home {home}"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); it was changed by hand or is damaged") from error
    return _whereabouts(found, path)


def _whereabouts(found: Any, path: Path) -> Whereabouts:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        form = found.get("format") if isinstance(found, dict) else None
        raise UserError(
            f"{path} was written by another version of fedloom (format {form!r}, this version reads {FORMAT}); "
            "use that version"
        )
    try:
        fields = {name: value for name, value in found.items() if name != "format"}
        whereabouts = Whereabouts(**{**fields, "addresses": tuple(fields["addresses"])})
        if whereabouts.tls not in get_args(Tls):
            raise ValueError(f"tls is {whereabouts.tls!r}")
        return checked(whereabouts.addresses, whereabouts.host, whereabouts.port, whereabouts.tls)
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{path} cannot be used ({error}); it was changed by hand or is damaged") from error
