"""The blocks an owner keeps reach no client: not in the artefact, nor in anything that is said in a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import hidden_blocks
import test_plugging as offsite
import tiny
from fedloom import experiment
from fedloom.runtime import loopback
from fedloom.runtime.wire import read_frame, write_frame

DROPPED = [2, 3]


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tmp_path_factory.mktemp("owner"), "llama", num_hidden_layers=6)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every frame between the server's process and that of the clients: heads as text, and bodies."""
    frames = list[bytes]()

    def write(stream: Any, head: dict[str, Any], data: bytes = b"") -> None:
        frames.extend([repr(head).encode(), bytes(data)])
        write_frame(stream, head, data)

    def read(stream: Any) -> tuple[dict[str, Any], bytes]:
        head, data = read_frame(stream)
        frames.extend([repr(head).encode(), bytes(data)])
        return head, data

    monkeypatch.setattr(loopback, "write_frame", write)
    monkeypatch.setattr(loopback, "read_frame", read)
    return frames


def test_no_piece_of_them_is_in_the_artefact(owner: Path, tmp_path: Path) -> None:
    folder = offsite.artefact(owner, tmp_path / "emulator")
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert hidden_blocks.seen(hidden_blocks.kept_back(owner, DROPPED), files) == []
    given = hidden_blocks.kept_back(owner, [0, 1, 4, 5])
    float32 = {name for name in given if "float32" in name}
    assert set(hidden_blocks.seen(given, files)) == float32, "those that are given are all found"


@pytest.mark.parametrize("more", [(), offsite.FULL, ("algorithm=ditto",)], ids=["lora", "full", "ditto"])
def test_no_piece_of_them_is_in_a_message(owner: Path, tmp_path: Path, said: list[bytes], more: Sequence[str]) -> None:
    folder = offsite.artefact(owner, tmp_path / "emulator")
    cfg = offsite.config(tmp_path, owner, "runtime=loopback", f"offsite.emulator={folder}", *more)
    run = experiment.run(cfg).folder
    assert sum(map(len, said)) > 10_000
    assert hidden_blocks.seen(hidden_blocks.kept_back(owner, range(1, 5)), said) == []
    if not more:  # the search would find what is there
        tensors = load_file(run / "checkpoints" / "round-0003" / "state.safetensors")
        vector = max(tensors.values(), key=lambda one: one.numel())
        assert hidden_blocks.seen({"trained": vector.numpy().tobytes()[:256]}, said)
