"""What is known of a running server as a plain JSON object, which `status.json` holds and page and terminal show.

Times are seconds since 1970, lengths of time seconds, sizes bytes. Numbers that are not finite stand as the texts
"inf", "-inf" and "nan", since JSON has none. Of clients there are names and counts, never their words.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict

from fedloom.errors import UserError

FORMAT: Final = 1
FILE: Final = "status.json"
STOP: Final = "stop"
"""A file of this name in the server's folder asks the server to stop after its round."""
LONGEST: Final = 400
"""Characters of a note or a refusal that are kept."""

State: TypeAlias = Literal["invited", "joined", "working", "idle", "away", "refused", "revoked"]
Phase: TypeAlias = Literal["starting", "waiting", "round", "evaluating", "finished", "stopped"]
ENDED: Final = frozenset({"finished", "stopped"})
Picture: TypeAlias = dict[str, Any]
"""What `Board.picture` returns and `read` reads."""


@dataclass
class Member:
    """One invited client, as the server knows it."""

    name: str
    number: int | None = None
    """The client's number in the run, once it has one."""
    state: State = "invited"
    seen: float | None = None
    rounds: int = 0
    """Rounds in which a reply counted, since this server process started."""
    missing: dict[str, int] = field(default_factory=dict)
    """How often a reply did not count, by reason."""
    bytes_down: int = 0
    bytes_up: int = 0
    loss: float | None = None
    refusal: str = ""
    """Why it was turned away, in the server's words."""


class Changes(TypedDict, total=False):
    """What can be told of a member; the sizes are totals, not additions."""

    number: int
    state: State
    seen: float
    bytes_down: int
    bytes_up: int
    refusal: str


@dataclass
class Note:
    """Something a person should know, with its time."""

    time: float
    level: str
    message: str


def clean(text: str) -> str:
    """The text on one line, without control characters, cut at LONGEST characters."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def plain(value: Any) -> Any:
    """The value with what JSON cannot hold (infinite numbers, NaN) as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def read(home: Path) -> Picture | None:
    """The last picture a server left in its folder, or None where there is none yet.

    Raises:
        UserError: the folder does not exist, or the file is damaged or of another version of fedloom.
    """
    if not home.is_dir():
        raise UserError(f"{home} is no folder; name the folder of the server with --home, as for `fedloom server`")
    path = home / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); a running server writes it again within seconds") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} was written by another version of fedloom; use that one, or start the server again")
    return found
