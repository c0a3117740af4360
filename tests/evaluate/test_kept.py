"""A result is used again exactly where nothing it depends on has changed."""

import shutil

import pytest

from evaluated.layout import write
from fedloom.errors import UserError
from fedloom.evaluate import kept as room
from fedloom.evaluate.columns import entrants
from fedloom.evaluate.job import Result, Settings, Value
from fedloom.evaluate.kept import Kept, digest
from fedloom.evaluate.tasks import find

pytest.importorskip("lm_eval", reason="needs the extra `eval`")
TASK = find("pubmedqa")
RESULT = Result(
    task="pubmedqa", scores={"accuracy": Value(value=1 / 3, stderr=0.1)}, rows=3, shots=0, version="1.0", seconds=2.5,
    batch_size=8,
)  # fmt: skip


@pytest.fixture
def place(finished, tmp_path):
    """A copy of a run, rows, and the run's final model."""
    run = shutil.copytree(finished("shared"), tmp_path / "run")
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    write(tmp_path, TASK.data, {"test": [{"QUESTION": "?"}]})
    return tmp_path, entrants(str(run), ["final"], [], tmp_path)[0]


def test_it_is_read_as_it_was_written(place):
    root, entrant = place
    kept = Kept(Settings(limit=3), root)
    assert kept.find(entrant, TASK) is None
    kept.put(entrant, TASK, RESULT)
    assert kept.find(entrant, TASK) == RESULT
    (path,) = (root / "run" / "evaluation" / "results").iterdir()
    assert path.name.startswith("pubmedqa-")


@pytest.mark.parametrize("change", ["batch_size", "device", "allow_code"])
def test_what_changes_nothing(place, change):
    root, entrant = place
    Kept(Settings(), root).put(entrant, TASK, RESULT)
    other = {"batch_size": 2, "device": "cpu", "allow_code": True}[change]
    assert Kept(Settings.model_validate({change: other}), root).find(entrant, TASK) == RESULT


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 3}, {"max_length": 64}, {"max_new_tokens": 5}, {"shots": 1}, {"template": "own"},
        {"dtype": "bfloat16"}, {"merge": True},
    ],
)  # fmt: skip
def test_settings_that_count(place, change):
    root, entrant = place
    Kept(Settings(), root).put(entrant, TASK, RESULT)
    assert Kept(Settings.model_validate(change), root).find(entrant, TASK) is None


def test_other_models_rows_and_tasks(place, finished):
    root, entrant = place
    Kept(Settings(), root).put(entrant, TASK, RESULT)

    def found(one=entrant, task=TASK, where=root):
        return Kept(Settings(), where).find(one, task)

    assert found()
    assert found(entrant.model_copy(update={"adapter": None})) is None
    assert found(entrant.model_copy(update={"base": entrant.base.model_copy(update={"layers": [0]})})) is None
    assert found(task=find("medqa_4options"), where=None) is None
    assert found(where=None) is None
    weights = root / "run" / "adapters" / "final" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert found() is None
    weights.write_bytes(before)
    assert found()
    write(root, TASK.data, {"test": [{"QUESTION": "!"}]})
    assert found() is None


def test_a_damaged_file_is_said(place):
    root, entrant = place
    Kept(Settings(), root).put(entrant, TASK, RESULT)
    (path,) = (root / "run" / "evaluation" / "results").iterdir()
    path.write_text("{")
    with pytest.raises(UserError, match=r"is damaged .* remove it"):
        Kept(Settings(), root).find(entrant, TASK)


def test_large_files_are_sampled_from_beginning_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_WHOLE", 0)
    monkeypatch.setattr(room, "_PIECE", 4)
    monkeypatch.setattr(room, "_PIECES", 3)
    file = tmp_path / "model.safetensors"
    seen = set()
    for text in (b"0123456789abcdef", b"1123456789abcdef", b"0123456x89abcdef", b"0123456789abcdeg"):
        file.write_bytes(text)
        seen.add(digest(tmp_path))
    assert len(seen) == 4
    file.write_bytes(b"01234x6789abcdef")  # between two pieces: the price of not reading gigabytes
    assert digest(tmp_path) in seen
