"""Which models stand in the table; what is not there is an error and never the base."""

import json
import shutil

import pytest

from fedloom.errors import UserError
from fedloom.evaluate.columns import entrants
from fedloom.finish import export
from fedloom.models.load import NANO


def labels(found):
    return [one.label for one in found]


def test_a_run_is_its_base_and_its_final_model(finished, tmp_path):
    run = finished("shared")
    before, final = entrants(str(run), None, [], tmp_path)
    assert (before.label, before.adapter, before.base.name) == ("before", None, "nano")
    assert (final.label, final.adapter) == ("final", str(run / "adapters" / "final"))
    assert before.home == final.home == str(run / "evaluation")
    assert final.template.name == "chat"


def test_columns_come_in_the_order_they_are_named(finished, tmp_path):
    found = entrants(str(finished("shared")), ["best", "before"], [], tmp_path)
    assert labels(found) == ["best", "before"]
    assert found[0].adapter.endswith("checkpoints/best")


def test_clients_own_models(finished, tmp_path):
    run = finished("local")
    found = entrants(str(run), None, [], tmp_path)
    assert labels(found) == ["before", "personal/client-000", "personal/client-001"]
    assert found[2].adapter == str(run / "adapters" / "clients" / "client-001")
    with pytest.raises(UserError, match="no final model: its clients share none"):
        entrants(str(run), ["final"], [], tmp_path)


def test_other_runs_stand_beside_it(finished, tmp_path):
    shared, local = str(finished("shared")), str(finished("local"))
    found = entrants(shared, None, [f"alone={local}", f"again={shared}"], tmp_path)
    assert labels(found) == ["before", "final", "alone/client-000", "alone/client-001", "again"]
    assert found[3].home == str(finished("local") / "evaluation")
    assert labels(entrants(shared, ["before"], [shared], tmp_path)) == ["before", "quickstart"]
    with pytest.raises(UserError, match="two columns are called final"):
        entrants(shared, None, [f"final={local}"], tmp_path)
    with pytest.raises(UserError, match="two columns are called x"):
        entrants(shared, None, [f"x={local}", f"x={shared}"], tmp_path)


def test_a_fully_tuned_model_is_a_model(finished, tmp_path):
    run = finished("full")
    before, final = entrants(str(run), None, [], tmp_path)
    assert (before.base.name, final.base.name, final.adapter) == ("nano", str(run / "adapters" / "final"), None)


def test_folders_of_peft_and_transformers(finished, tmp_path):
    adapter = finished("shared") / "adapters" / "final"
    before, final = entrants(str(adapter), None, [], tmp_path)
    assert (before.adapter, final.adapter) == (None, str(adapter))
    assert before.base == final.base
    assert before.base.name == str(NANO)
    merged = export(finished("shared"), tmp_path / "merged", True)
    (one,) = entrants(str(merged), None, [], tmp_path)
    assert (one.label, one.base.name, one.home, one.template) == ("model", str(merged), str(tmp_path), None)
    found = entrants(str(finished("shared")), ["before"], [f"a={adapter}", f"m={merged}", "h=owner/name"], tmp_path)
    assert labels(found) == ["before", "a", "m", "h"]


# -- what is not there


@pytest.mark.parametrize(
    "wanted, message",
    [
        (["fnal"], "no column 'fnal'. Did you mean final?"),
        (["centralized"], "--beside centralized=RUN"),
        (["personal"], "no models of its clients' own"),
    ],
)
def test_a_column_a_run_lacks(finished, tmp_path, wanted, message):
    with pytest.raises(UserError) as error:
        entrants(str(finished("shared")), wanted, [], tmp_path)
    assert message in str(error.value)


def test_an_unfinished_run_has_no_final_model(finished, tmp_path):
    run = shutil.copytree(finished("shared"), tmp_path / "run")
    shutil.rmtree(run / "adapters")
    with pytest.raises(UserError, match="has no final model: finish the run with fedloom resume"):
        entrants(str(run), None, [], tmp_path)
    (run / "adapters" / "final").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no adapter: adapter_config\.json"):
        entrants(str(run), None, [], tmp_path)
    shutil.rmtree(run / "checkpoints" / "best")
    with pytest.raises(UserError, match=r"has no best model: checkpoints/best"):
        entrants(str(run), ["best"], [], tmp_path)


def test_a_folder_that_is_nothing(tmp_path):
    with pytest.raises(UserError, match=r"neither a run .* nor an adapter .* nor a model"):
        entrants(str(tmp_path), None, [], tmp_path)
    with pytest.raises(UserError, match="is no run and has no 'final'"):
        entrants("nano", ["final"], [], tmp_path)


def test_classifiers_write_no_text(finished, tmp_path):
    for source in (finished("shared") / "adapters" / "final", export(finished("shared"), tmp_path / "merged", True)):
        folder = shutil.copytree(source, tmp_path / f"classifier-{source.name}")
        (folder / "head.json").write_text("{}")
        with pytest.raises(UserError, match="holds a classifier"):
            entrants(str(folder), None, [], tmp_path)


def test_a_damaged_adapter_is_said(finished, tmp_path):
    folder = shutil.copytree(finished("shared") / "adapters" / "final", tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        entrants(str(folder), None, [], tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(NANO)}))
    assert entrants(str(folder), None, [], tmp_path)
