"""Whole runs whose model is seeds and scalars: every client holds the same one, whatever computes it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedloom import checkpoint, experiment
from fedloom.adapters.adapted import Adapted
from fedloom.algorithms.decomfl import DeComFl
from fedloom.algorithms.fedkseed import FedKSeed, State
from fedloom.algorithms.seeded import History
from fedloom.assembly import Parts
from fedloom.config import Config, load
from fedloom.drift import Drift, moved, pool
from test_experiment import TINY

KINDS: dict[str, tuple[str, type]] = {
    "fedkseed": ("algorithm={name: fedkseed, pool: 48, pro: true}", State),
    "decomfl": ("algorithm={name: decomfl, directions: 2, log: 20}", History),
    "ferret": ("algorithm={name: ferret, bases: 32, server_lr: 0.01, log: 5}", History),
}


PLAIN = ["aggregate.server_optimizer.lr=1", "aggregate.server_optimizer.momentum=0"]


def config(tmp_path: Path, *overrides: str) -> Config:
    given = [*TINY, f"run.folder={tmp_path}", "federation.cohort=2", "evaluate.every=0", "local.lr=1e-3", *PLAIN]
    return load("quickstart", [*given, *overrides])


@pytest.mark.parametrize("kind", KINDS)
def test_after_fifty_rounds_everybody_has_the_model_that_is_rebuilt_from_the_start(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the run's models went on from the one before; a fresh one goes the whole way at once: the same bits."""
    stood = list[tuple[Drift, torch.Tensor]]()
    beside = Adapted.beside

    def watched(self: Adapted, drift: Drift, layout: Any) -> Any:
        found = beside(self, drift, layout)
        stood.append((drift, found[0].clone()))
        return found

    monkeypatch.setattr(Adapted, "beside", watched)
    algorithm, state = KINDS[kind]
    cfg = config(tmp_path, algorithm, "federation.rounds=50", "local.steps=1", "engine={name: slots, threads: 1}")
    run = experiment.run(cfg).folder
    monkeypatch.undo()
    parts = Parts(cfg)
    start, layout = parts.adapted.start, parts.adapted.layout
    last = checkpoint.load(checkpoint.found(run / "checkpoints")[-1], state)
    assert last.progress.round == 50
    page: Any = parts.algorithm
    drift = page.model(last.state).drift
    rebuilt = moved(start, layout, drift)
    assert len(stood) >= 100
    for one, w in [*stood[:4], *stood[-4:]]:  # clients of the first and of the last rounds
        assert torch.equal(w.cpu(), moved(start, layout, one))
    exported = load_file(run / "adapters" / "final" / "adapter_model.safetensors")
    ours = {t.reshape(-1).numpy().tobytes() for t in layout.views(rebuilt).values()}
    assert ours == {t.reshape(-1).numpy().tobytes() for t in exported.values()}
    assert not torch.equal(rebuilt, moved(start, layout, Drift(1, torch.zeros(1))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_runs_directions_are_the_same_whatever_the_base_and_the_threads(
    dtype: str, threads: int, tmp_path: Path
) -> None:
    """All directions a run of FedKSeed, and of DeComFL, can take: the model they lead to, to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        adapted = Parts(config(tmp_path, f"model.dtype={dtype}", KINDS["fedkseed"][0])).adapted
        layout = adapted.layout
        pages = FedKSeed(layout, 5, pool=48), DeComFl(layout, 5, directions=2, log=20, noise="rademacher")
        amounts = 1e-3 * torch.linspace(-1, 1, 48)
        found = [adapted.beside(page.drift(amounts), layout)[0] for page in pages]
        again = [moved(adapted.start, layout, page.drift(amounts)) for page in pages]
    finally:
        torch.set_num_threads(before)
    assert found[0].dtype == torch.float32
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other)
    start = torch.zeros(layout.size)
    table = {pool(5, k): float(amount) for k, amount in enumerate(amounts)}
    whole = moved(start, layout, Drift(torch.tensor(list(table)), amounts))
    digest = int((whole.view(torch.int32).long() * torch.arange(len(whole))).sum())
    assert DIGESTS.setdefault("gaussian", digest) == digest
    ended = int((found[0].view(torch.int32).long() * torch.arange(len(whole))).sum())
    assert DIGESTS.setdefault("run", ended) == ended


DIGESTS = dict[str, int]()
"""What the first of them found; the others must find the same."""
