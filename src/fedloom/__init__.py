"""fedloom: federated fine-tuning of language models on data that stays where it is.

    import fedloom

    run = fedloom.run(fedloom.load("quickstart", ["federation.rounds=5"]))
    print(run.folder, run.metrics)

The names below are the public interface; importing them costs nothing until they are used.
"""

from typing import TYPE_CHECKING, Any

from fedloom.version import __version__

if TYPE_CHECKING:
    from fedloom.config.load import load
    from fedloom.config.schema import Config
    from fedloom.experiment import Run, resume, run

__all__ = ["Config", "Run", "__version__", "load", "resume", "run"]

_HOME = {
    "Config": "fedloom.config",
    "load": "fedloom.config",
    "Run": "fedloom.experiment",
    "resume": "fedloom.experiment",
    "run": "fedloom.experiment",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `fedloom --help` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'fedloom' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
