"""The web page of a running server: it only looks, and only from this machine.

It is bound to 127.0.0.1. Another web site a person has open cannot read it: it has no CORS headers, and requests under
any other host name (DNS rebinding) are refused. Other users of this machine can read it; it holds names and numbers.
"""

import base64
import hashlib
import json
import threading
import time
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedloom.deployment import phrases
from fedloom.deployment.board import Board
from fedloom.deployment.picture import Picture
from fedloom.errors import UserError
from fedloom.version import __version__

HOST: Final = "127.0.0.1"
_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PATIENCE: Final = 10.0
"""Seconds a browser may take for its request."""


def serve(board: Board, port: int = 0) -> str:
    """Show the board at the returned address, `http://127.0.0.1:PORT/`, as long as this process lives.

    Args:
        board: what is shown, as it is at each request.
        port: 0: one that is free.

    Raises:
        UserError: the port is taken or not ours to use.
    """
    handler = type("Looking", (_Handler,), {"board": board})
    try:
        server = _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the status page cannot use port {port} of {HOST} ({reason}); choose another, or 0") from None
    threading.Thread(target=server.serve_forever, name="fedloom page", daemon=True).start()
    return f"http://{HOST}:{server.server_address[1]}/"


def render(picture: Picture, now: float) -> str:
    """The page.

    Args:
        picture: of a board.
        now: the time of day, in seconds since 1970; ages are counted from it.
    """
    run, number = picture["run"], picture["round"]["number"]
    done, begun = phrases.done(picture)
    return _template().render(
        picture=picture,
        title=f"{number}/{run['rounds']} {run['name']}" if run else "server",
        heading=run["name"] if run else "No run yet",
        about=[run["algorithm"], run["model"], run["folder"]] if run else [],
        words=picture["words"][:1].upper() + picture["words"][1:],
        done=done,
        begun=begun,
        facts=phrases.facts(picture),
        scores=phrases.scores(picture),
        rows=phrases.rows(picture, now),
        columns=phrases.COLUMNS,
        notes=[{**note, "time": _clock(note["time"])} for note in reversed(picture["notes"])],
        started=phrases.moment(picture["started"]),
        written=phrases.moment(picture["written"]),
        style=Markup(_style()),
        script=Markup(_text("deployment", "status.js")),
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is nobody's business."""


class _Handler(BaseHTTPRequestHandler):
    board: Board
    server_version = f"fedloom/{__version__}"
    sys_version = ""
    timeout = _PATIENCE

    def parse_request(self) -> bool:
        """Refuse what is no GET from this machine's own address before anything else is looked at."""
        if not super().parse_request():
            return False
        if not _own(self.headers.get_all("Host", [])):
            self._refuse(HTTPStatus.FORBIDDEN, f"open this page as http://{HOST}")
        elif self.command != "GET":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "this page can only be looked at")
        else:
            return True
        return False

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/":
            page = render(self.board.picture(), time.time())
            self._answer(HTTPStatus.OK, "text/html", page)
        elif path == "/status.json":
            self._answer(HTTPStatus.OK, "application/json", json.dumps(self.board.picture(), ensure_ascii=False))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there are / and /status.json")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Not the library's page: nothing of the request comes back."""
        self._refuse(HTTPStatus(code), HTTPStatus(code).description)

    def log_message(self, format: str, *args: Any) -> None:
        """Who looks is not written down."""

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._answer(status, "text/plain", f"{status.phrase}: {why}\n")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        for name, value in _headers().items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _own(hosts: list[str]) -> bool:
    """Whether a request names this machine, once: the port does not matter, and nor does upper case."""
    if len(hosts) != 1:
        return False
    try:
        return (urlsplit(f"//{hosts[0]}").hostname or "") in _NAMES and "@" not in hosts[0]
    except ValueError:
        return False


@cache
def _headers() -> dict[str, str]:
    """What every answer carries: nothing is kept, framed, guessed or loaded from elsewhere; only our script runs."""
    style, script = _hash(_style()), _hash(_text("deployment", "status.js"))
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


@cache
def _style() -> str:
    """The report's look and what only this page has."""
    return _text("report", "style.css") + _text("deployment", "status.css")


@cache
def _template() -> Any:
    loader = PackageLoader("fedloom", "deployment")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("status.html")


def _text(room: str, name: str) -> str:
    return resources.files(f"fedloom.{room}").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
