"""Seeds and scalars between real processes: the bits of the simulation, and bytes that do not grow with the model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deployment.processes import Federation, write_rows
from deployment.test_deployed_runs import NAMES, RECIPE, last, simulated
from fedloom.recorder import read_csv

KIB = 1024
WAYS = {
    "fedmezo": ("algorithm={name: fedmezo, rate: round_wise, spread: 1e-4}",),
    "fedkseed": ("algorithm={name: fedkseed, pool: 64}", "local.lr=1e-4"),
    "fedkseed-pro": ("algorithm={name: fedkseed, pool: 64, pro: true, draws: server}", "local.lr=1e-4"),
    "decomfl": ("algorithm={name: decomfl, steps: 2, log: 2}", "local.lr=1e-4", "federation.cohort=2"),
    "ferret": ("algorithm={name: ferret, bases: 64, server_lr: 0.01, log: 2}", "federation.cohort=2"),
}
"""Two of three clients a round: somebody misses one, and replays it."""
WHOLE = (
    "adapter={kind: full}", "engine={name: reference, threads: 1}", "local.lr=1e-6", "local.steps=2",
    "evaluate.every=0", "federation.rounds=2",
)  # fmt: skip
MOST = {
    "fedkseed": (("algorithm={name: fedkseed, pool: 4096}",), 18, 18),
    "fedkseed-pro": (("algorithm={name: fedkseed, pool: 4096, pro: true}",), 34, 18),
    "ferret": (("algorithm={name: ferret, bases: 4096, server_lr: 1e-3}", "local.lr=1e-3"), 34, 18),
}
"""Most KiB down and up of one client's round; Ferret's clients may have missed one."""


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, NAMES)
    (tmp_path / "my.yaml").write_text(RECIPE)
    write_rows(tmp_path / "data", NAMES, 30)
    yield made
    made.end()


def deployed(federation: Federation, settings: Sequence[str]) -> Path:
    """The run folder of a deployment."""
    federation.settings = settings
    federation.invite()
    federation.start_server()
    federation.start_clients(["site-a"], ["site-b", "site-c"])
    assert federation.wait() == 0, federation.said()
    return federation.run()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_seeds_and_scalars_have_the_bits_of_the_simulation(federation: Federation, way: str) -> None:
    run = deployed(federation, WAYS[way])
    assert last(run) == last(simulated(federation)), federation.said()


@pytest.mark.slow
@pytest.mark.parametrize("way", MOST)
def test_a_whole_model_is_tuned_by_kilobytes(federation: Federation, way: str) -> None:
    """1.8 million numbers: what the links counted, by client and round."""
    settings, down, up = MOST[way]
    run = deployed(federation, (*WHOLE, *settings))
    assert last(run, 2) == last(simulated(federation), 2), federation.said()
    rows = read_csv(run / "rounds.csv")
    assert len(rows) == 2
    for row in rows:
        assert 0 < row["bytes_down"] / 3 <= down * KIB
        assert 0 < row["bytes_up"] / 3 <= up * KIB
