"""The second process of the loopback runtime: reads frames from its input, writes frames to its output.

Everything else that is printed goes to the error stream, so that no library can disturb the frames.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import IO, Any

from fedloom.runtime.site import Dispatch, Site
from fedloom.runtime.wire import Marshal, WireClosed, read_frame, write_frame


def main() -> int:
    """Serve one server until it stops or is gone."""
    source = sys.stdin.buffer
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        head, _ = read_frame(source)
        module, _, function = head["function"].partition(":")
        site, marshal = getattr(importlib.import_module(module), function)(**head["arguments"])
        write_frame(sink, {"what": "built"})
        Worker(site, marshal, source, sink).serve()
    except WireClosed:
        return 1
    except Exception as error:
        traceback.print_exc()
        notes = "; ".join(getattr(error, "__notes__", []))
        write_frame(sink, {"what": "error", "message": f"{type(error).__name__}: {error} {notes}".strip()})
        return 1
    return 0


class Worker:
    """One site at the end of a pipe."""

    def __init__(self, site: Site, marshal: Marshal, source: IO[bytes], sink: IO[bytes]) -> None:
        self.site, self.marshal, self.source, self.sink = site, marshal, source, sink

    def serve(self) -> None:
        """Until told to stop."""
        while True:
            head, _ = read_frame(self.source)
            if head["what"] == "stop":
                return
            if head["what"] == "ask":
                for reply in self.site.run(self._dispatches(head["count"])):
                    write_frame(self.sink, *self.marshal.reply_frame(reply))
            else:
                self._notice(head)

    def _dispatches(self, count: int) -> Iterator[Dispatch]:
        """The next tasks; what the server says of earlier replies may stand between them."""
        while count:
            head, data = read_frame(self.source)
            if head["what"] == "task":
                count -= 1
                yield self.marshal.dispatch(head, data)
            else:
                self._notice(head)

    def _notice(self, head: dict[str, Any]) -> None:
        match head["what"]:
            case "settle":
                self.site.settle(head["client"], head["round"], head["counted"])
            case "commit":
                self.site.commit(*head["rounds"])
            case "rewind":
                self.site.rewind(head["round"])
            case other:
                raise ValueError(f"the server said {other!r}, which means nothing here")


if __name__ == "__main__":
    sys.exit(main())
