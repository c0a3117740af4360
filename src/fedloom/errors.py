"""Errors a person can act on.

Fedloom errors form one small tree:

    FedloomError
    ├── UserError        what was asked cannot work; the command line prints it and exits with 2
    │   └── ConfigError  one or several mistakes in the configuration, all at once
    └── RunStopped       the run cannot go on but left a checkpoint; exits with 1
        └── AskedToStop  somebody asked it to; exits with 0

Anything else is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class FedloomError(Exception):
    """Base of the errors fedloom raises on purpose."""


class UserError(FedloomError):
    """What was given cannot work; the message says why and what to do."""


class ConfigError(UserError):
    """Mistakes in a configuration, each with its place."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class RunStopped(FedloomError):
    """The run ended early for a reason outside the program; a checkpoint says where it can go on."""


class AskedToStop(RunStopped):
    """The run ended early because somebody asked for that."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped word: ` Did you mean x?` or the choices; empty when there are none."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Choose one of: {', '.join(known)}." if known else ""
