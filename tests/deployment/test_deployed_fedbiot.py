"""FedBiOT between real processes: the owner's server aligns with its own model and rows, clients have the artefact."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deployment.processes import free_port, write_rows
from deployment.test_deployed_offsite import NAMES, Offsite, _nothing_hidden_was_said, simulated, state


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Offsite]:
    made = Offsite(tmp_path, NAMES, port=free_port())
    made.prepare()
    yield made
    made.end()
    made.wire.listening.close()


@pytest.mark.slow
def test_the_server_aligns_with_what_only_it_has(federation: Offsite) -> None:
    """The bits of the simulation; no block that was left out is in any byte clients see."""
    root = federation.root
    write_rows(root / "public", ["rows"], 12)
    public = root / "public" / "rows.jsonl"
    federation.settings = (
        "algorithm={name: fedbiot, prealign_steps: 3, align_steps: 2, batch_size: 4}", f"data.public_source={public}",
    )  # fmt: skip
    wanted = simulated(federation)
    federation.start_server()
    for name in NAMES:
        federation.start_apart(name)
    assert federation.wait() == 0, federation.said()
    for process in federation.clients.values():
        assert process.wait(60) == 0, federation.said()
    run = federation.run()
    assert state(run) == state(wanted), federation.said()
    for part in ("adapters/final", "adapters/emulator"):
        ours, theirs = (load_file(one / part / "adapter_model.safetensors") for one in (run, wanted))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    _nothing_hidden_was_said(federation)
