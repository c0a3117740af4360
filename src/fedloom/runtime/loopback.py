"""All clients in a second process of this machine, which gets only bytes and the recipe.

The same code path as a deployment, without a network: what is not in a message or in the recipe does not cross. The
worker is `python -m fedloom.runtime.worker`; it builds its site with the function that is named to it.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedloom.contracts import ClientId
from fedloom.errors import RunStopped
from fedloom.runtime.link import Near
from fedloom.runtime.site import Dispatch, Reply
from fedloom.runtime.wire import Marshal, WireClosed, read_frame, write_frame


class SecondProcess(Near):
    """The link to a worker process."""

    def __init__(self, build: str, arguments: Mapping[str, Any], marshal: Marshal) -> None:
        """Start the worker.

        Args:
            build: `module:function` that makes the worker's site from the arguments.
            arguments: plain values: the recipe, and where things lie on disk.
            marshal: how messages become bytes.
        """
        self._marshal = marshal
        command = [sys.executable, "-m", "fedloom.runtime.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._lock = threading.Lock()
        self._tell({"what": "build", "function": build, "arguments": dict(arguments)})
        self._hear("built")

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        """Send all from a thread of its own, so that neither side ever waits for the other to read."""
        waiting = {dispatch.client: dispatch for dispatch in dispatches}
        self._tell({"what": "ask", "count": len(dispatches)})
        sender = threading.Thread(target=self._send, args=(dispatches,), daemon=True)
        sender.start()
        while waiting:
            head, data = self._hear("reply")
            yield self._marshal.reply(head, data, waiting.pop(head["client"]))
        sender.join()

    def settle(self, client: ClientId, round: int, counted: bool) -> None:
        """Tell the worker."""
        self._tell({"what": "settle", "client": client, "round": round, "counted": counted})

    def commit(self, *rounds: int) -> None:
        """Tell the worker."""
        self._tell({"what": "commit", "rounds": rounds})

    def rewind(self, round: int) -> None:
        """Tell the worker."""
        self._tell({"what": "rewind", "round": round})

    def close(self) -> None:
        """End the worker and wait for it."""
        if self._process.poll() is None:
            try:
                self._tell({"what": "stop"})
            except RunStopped:
                self._process.kill()
        self._process.wait()
        self._input.close()
        self._output.close()

    def _send(self, dispatches: Sequence[Dispatch]) -> None:
        try:
            for dispatch in dispatches:
                self._tell(*self._marshal.dispatch_frame(dispatch))
        except RunStopped:
            return  # the reader finds the pipe closed too and says so

    def _tell(self, head: dict[str, Any], data: bytes = b"") -> None:
        with self._lock:
            try:
                write_frame(self._input, head, data)
            except (BrokenPipeError, OSError):
                raise self._gone() from None

    def _hear(self, what: str) -> tuple[dict[str, Any], bytes]:
        try:
            head, data = read_frame(self._output)
        except WireClosed:
            raise self._gone() from None
        if head["what"] == "error":
            raise RuntimeError(f"in the worker process: {head['message']}")
        if head["what"] != what:
            raise RuntimeError(f"the worker process said {head['what']!r} where {what!r} was expected")
        return head, data

    def _gone(self) -> RunStopped:
        code = self._process.poll()
        return RunStopped(f"the worker process ended (exit code {code}); the last checkpoint is whole, resume from it")
