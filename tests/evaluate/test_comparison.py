"""From results to the table, by hand."""

import json

import pytest

from fedloom.evaluate.comparison import as_json, cells, pooled, verdict
from fedloom.evaluate.job import Entrant, Result, Value
from fedloom.evaluate.tasks import Score, Task
from fedloom.models.config import ModelConfig

ACCURACY = Score("accuracy", "acc,none", 0.25)
ONE = Task("one", "", "", "", (ACCURACY, Score("F1", "f1,none")), None, "")
GROUP = Task("both", "", "", "", (ACCURACY,), None, "", members=("one", "two"))


def entrant(column, who=""):
    return Entrant(column=column, who=who, base=ModelConfig(), home="")


def result(task, value, stderr=None, rows=100):
    scores = {"accuracy": Value(value=value, stderr=stderr), "F1": Value(value=value / 2)}
    return Result(task=task, scores=scores, rows=rows, shots=0, version="1", seconds=1.0, batch_size=8)


def test_a_group_is_the_mean_over_rows():
    """(0.5 * 10 + 0.2 * 30) / 40 = 0.275; variance (9 * 10 * 0.01 + 29 * 30 * 0.0025) / 38 / 40 = 0.00202."""
    found = pooled([(Value(value=0.5, stderr=0.1), 10), (Value(value=0.2, stderr=0.05), 30)])
    assert found.value == pytest.approx(0.275)
    assert found.stderr == pytest.approx(0.0020230263**0.5)


def test_pooling_is_lm_evals():
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="needs the extra `eval`")
    values, errors, sizes = [0.5, 0.25, 1.0], [0.1, 0.04, 0.0], [10, 33, 7]
    parts = [(Value(value=v, stderr=e), n) for v, e, n in zip(values, errors, sizes, strict=True)]
    found = pooled(parts)
    assert found.value == metrics.aggregate_subtask_metrics(values, sizes, True)
    assert found.stderr == pytest.approx(metrics.pooled_sample_stderr(errors, sizes))


def test_what_cannot_be_pooled_has_no_error():
    assert pooled([(Value(value=0.5), 2), (Value(value=1.0, stderr=0.1), 2)]) == Value(value=0.75)
    assert pooled([(Value(value=0.0, stderr=0.0), 1), (Value(value=1.0, stderr=0.0), 1)]) == Value(value=0.5)


@pytest.mark.parametrize(
    "value, stderr, said",
    [(0.24, 0.01, "below chance"), (0.25, 0.0, ""), (0.26, 0.01, "like chance"), (0.2701, 0.01, ""),
     (0.26, None, ""), (0.0, None, "below chance")],
)  # fmt: skip
def test_what_is_no_better_than_guessing(value, stderr, said):
    assert verdict(Value(value=value, stderr=stderr), ACCURACY) == said
    assert verdict(Value(value=value, stderr=stderr), Score("free", "x,none")) == ""


def test_the_table_of_a_run_and_clients():
    models = [entrant("before"), entrant("own", "a"), entrant("own", "b"), entrant("own", "c")]
    values = {"before": 0.3, "own/a": 0.4, "own/b": 0.1, "own/c": 0.7}
    results = {(label, "one"): result("one", value, 0.01) for label, value in values.items()}
    found = [(c.column, c.score.name, c.value, c.verdict, c.who) for c in cells(models, [ONE], results)]
    mean = pytest.approx(0.4)
    assert found == [
        ("before", "accuracy", 0.3, "", ""),
        ("own mean", "accuracy", mean, "", ""),
        ("own worst", "accuracy", 0.1, "below chance", "b"),
        ("before", "F1", 0.15, "", ""),
        ("own mean", "F1", pytest.approx(0.2), "", ""),
        ("own worst", "F1", 0.05, "", "b"),
    ]


def test_the_file_holds_members_and_clients_too():
    models = [entrant("x")]
    results = {("x", "one"): result("one", 0.5, rows=10), ("x", "two"): result("two", 0.2, rows=30)}
    written = json.loads(json.dumps(as_json(models, [GROUP], results, {"limit": 5})))
    (line,) = written["table"]
    assert (line["task"], line["rows"], line["value"], line["chance"]) == ("both", 40, pytest.approx(0.275), 0.25)
    assert [one["task"] for one in written["results"]] == ["one", "two"]
    assert (written["models"][0]["label"], written["settings"], written["format"]) == ("x", {"limit": 5}, 1)
