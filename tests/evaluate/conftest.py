"""Runs that several files evaluate, each made when first asked for."""

from pathlib import Path

import pytest

from evaluated.runs import ran


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of every kind; nobody writes into it but below `evaluation`."""
    made: dict[str, Path] = {}

    def run(kind):
        if kind not in made:
            made[kind] = ran(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return run
