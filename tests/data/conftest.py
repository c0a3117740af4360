"""Where public data sets lie on this machine, if they do."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def public_data() -> Path:
    folder = os.environ.get("FEDLOOM_DATA")
    if not folder:
        pytest.skip("set FEDLOOM_DATA to a folder of public data sets to run this test")
    return Path(folder)
