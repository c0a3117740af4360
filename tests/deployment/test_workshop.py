"""A client's own machine: what it builds of the recipe it is sent."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from fedloom.config import parse
from fedloom.deployment import agreed
from fedloom.deployment.client import Place, Workshop
from fedloom.errors import UserError
from fedloom.runtime.letters import Recipe
from fedloom.version import __version__

CLASSIFY = """
objective: {name: classify, labels: [no, yes]}
data: {source: rows, max_length: 32, test: 0.25}
partition: {method: natural}
deploy: {clients: 2}
engine: {name: reference}
"""


def recipe(text: str, client: int) -> Recipe:
    sent = agreed.sendable(parse(text), {"a": 0, "b": 1}, cohort=2)
    return Recipe("run", "ticket", __version__, sent, client, 2, "ab"[client])


def place(folder: Path, name: str) -> Place:
    rows = [{"text": f"{name} {i}", "label": "yes" if i % 2 else "no"} for i in range(8)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Place(cast(Any, None), folder / f"{name}.jsonl", folder)


def test_the_second_client_of_a_process_reads_rows_as_the_first_does(tmp_path: Path) -> None:
    workshop = Workshop()
    for client, name in enumerate("ab"):
        workshop.build(place(tmp_path, name), recipe(CLASSIFY, client), tmp_path / name)
    parts = workshop._parts
    assert parts is not None
    first, second = (client.get("train") for client in parts.data.clients)
    assert [type(one) for one in first] == [type(one) for one in second]
    assert {one.label for one in second} == {0, 1}


def test_an_emulator_that_nobody_named_is_asked_for(tmp_path: Path) -> None:
    text = "offsite: {emulator: /srv/private/emulator}\ndata: {source: rows}\npartition: {method: natural}\n"
    sent = recipe(text + "deploy: {clients: 2}\n", 0)
    assert "private" not in sent.text
    with pytest.raises(UserError, match=r"--set offsite\.emulator=FOLDER"):
        Workshop().build(place(tmp_path, "a"), sent, tmp_path / "a")
