"""The same recipe on a server and on a client: one layout, one start, rows only where they belong."""

import json
from pathlib import Path

import pytest
import torch

from fedloom.assembly import Parts
from fedloom.config import parse
from fedloom.errors import UserError
from fedloom.sides import Leading, Taking

RECIPE = """
algorithm: flexlora
data: {source: "each client's own", max_length: 64, test: 0.25}
partition: {method: natural}
clients: {1: {rank: 2}}
local: {steps: 1, batch_size: 2}
engine: {name: slots, slots: 1}
model: {dtype: float32}
evaluate: {metrics: [loss]}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [json.dumps({"instruction": f"say {i}", "output": f"it is {i}"}) for i in range(8)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return tmp_path / "mine.jsonl"


def test_server_and_client_agree_on_every_layout(rows: Path) -> None:
    server = Parts(parse(RECIPE), side=Leading(["a", "b", "c"]))
    client = Parts(parse(RECIPE), side=Taking(3, {1: ("b", rows)}))
    assert server.adapted.layout == client.adapted.layout
    assert torch.equal(server.adapted.start, client.adapted.start)
    assert server.profile(1).layout == client.profile(1).layout
    assert server.profile(1).layout.size < server.profile(0).layout.size


def test_a_server_has_no_weights_no_rows_and_no_task_that_hands_models_over() -> None:
    server = Parts(parse(RECIPE), side=Leading(["a", "b"]))
    assert server.base.skeleton
    assert server.chosen is None
    assert server.handing is None
    with pytest.raises(UserError, match="on its own machine"):
        server.data.clients[0].rows("train")


def test_a_client_has_its_rows_alone(rows: Path) -> None:
    client = Parts(parse(RECIPE), side=Taking(3, {1: ("b", rows)}))
    assert client.data.clients[1].sizes["train"] == 6
    assert [one.here for one in client.data.clients] == [False, True, False]
    assert client.data.clients[0].name == "client 0"
    with pytest.raises(ValueError, match="own"):
        client.tasks.get("own")


def test_a_server_that_evaluates_holds_the_model(rows: Path) -> None:
    config = parse(RECIPE, [f"evaluate.global_source={rows}"])
    server = Parts(config, side=Leading(["a", "b"]))
    assert not server.base.skeleton
    assert server.everybody is not None


def test_a_resting_adapter_wakes_when_it_is_written() -> None:
    server = Parts(parse(RECIPE), side=Leading(["a", "b"]))
    start = server.adapted.start.clone()
    server.adapted.rest()
    assert server.adapted.start.numel() == 0
    assert server.adapted.w.numel() == 0
    server.adapted.load(start)
    assert torch.equal(server.adapted.read(), start)
