"""The process that holds everybody's mailbox: Flower's SuperLink, behind a guard.

    python -m fedloom.runtime.flower.mailroom      # settings as one line of JSON on its input; ends when that closes

Mailboxes are in memory; what must last is in the run folder, and clients register anew with every start.
"""

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from fedloom.runtime.flower.guard import Guard

LINES = 600
"""Lines the log takes in a minute: a flood of refusals must not fill the disk."""


@dataclass(frozen=True)
class Settings:
    """What the process is told."""

    host: str
    port: int
    token: str
    certificate: str | None = None
    """Path of the server's certificate chain; None: without TLS."""
    key: str | None = None

    def line(self) -> bytes:
        """As the process reads them."""
        return json.dumps(asdict(self)).encode() + b"\n"


def application(settings: Settings) -> Any:
    """Flower's application behind the guard."""
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        control_address="", health_server_address=None, host=settings.host, port=settings.port,
        insecure=settings.certificate is None, certificates=None, superexec_auth_secret=None,
        authn_plugin=load_control_authn_plugin(), event_log_plugin=None, fleet_event_log_plugin=None,
        enable_event_log=False, artifact_provider=None, enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE, fleet_api_address=None, simulation=False, ssl_ca_certfile=None,
        ssl_certfile=settings.certificate, ssl_keyfile=settings.key, database=FLWR_IN_MEMORY_DB_NAME,
        isolation=ISOLATION_MODE_PROCESS, runtime_dependency_install=False,
    )  # fmt: skip
    return Guard(create_app(config, SuperLinkLifespan), settings.token)


def main() -> int:
    """Serve until the input closes."""
    import uvicorn

    _log()
    _many_connections()
    logging.getLogger("flwr").handlers.clear()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    settings = Settings(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with, args=(sys.stdin.buffer.fileno(),), daemon=True).start()
    uvicorn.run(
        application(settings), host=settings.host, port=settings.port, ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key, log_config=None, log_level="warning", access_log=False, server_header=False,
        ws="none", lifespan="on", timeout_graceful_shutdown=2,
    )  # fmt: skip
    return 0


class Sparing(logging.Filter):
    """Lets so many lines through in a minute, and says how many it kept back."""

    def __init__(self, most: int = LINES) -> None:
        super().__init__()
        self.most, self._minute, self._count = most, 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        now = time.monotonic()
        if now - self._minute > 60:
            kept_back, self._minute, self._count = self._count - self.most, now, 0
            if kept_back > 0:
                record.msg = f"({kept_back} lines of the last minute were left out) {record.msg}"
        self._count += 1
        return self._count <= self.most


def _log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    handler.addFilter(Sparing())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def _many_connections() -> None:
    """As many open files as this system lets a process have."""
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _end_with(source: int) -> None:
    """End this process when the one that started it is gone."""
    while os.read(source, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
