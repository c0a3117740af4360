"""A further process of a run: reads from its input what to call, calls it, and ends when its input closes.

What goes wrong everywhere, or elsewhere, is said by process 0; only what goes wrong here is printed here.
"""

import importlib
import os
import signal
import sys
import threading
import traceback

from fedloom.errors import RunStopped, UserError
from fedloom.runtime.place import Elsewhere
from fedloom.runtime.wire import WireClosed, read_frame


def main() -> int:
    """Take part in one run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; process 0 decides what it means
    source = sys.stdin.buffer
    try:
        head, _ = read_frame(source)
        threading.Thread(target=_end_with, args=(source.fileno(),), daemon=True).start()
        module, _, function = head["function"].partition(":")
        getattr(importlib.import_module(module), function)(*head["arguments"])
    except (WireClosed, UserError, RunStopped, Elsewhere):
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _end_with(source: int) -> None:
    """End this process, whatever it is doing, when process 0 is gone."""
    while os.read(source, 1):  # not through sys.stdin, whose lock would be held while this process ends by itself
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
