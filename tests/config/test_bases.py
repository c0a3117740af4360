"""What a quantised base does not go with."""

import pytest

from fedloom.config import load
from fedloom.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["adapter={kind: full}"], "trains the weights themselves"),
        (["offsite={}"], "offsite tuning takes blocks out"),
        (["model.quantize=int3"], "int8"),
    ],
)
def test_what_cannot_be_quantised_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load("quickstart", ["model.quantize=nf4", *changes])
