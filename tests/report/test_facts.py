"""What is drawn from a run folder, and what is said of it."""

import pytest

from fedloom.events import Evaluated, Noted, RoundStarted
from fedloom.folder import RunFolder
from fedloom.report import story
from fedloom.report.facts import Change, differences, read
from report.made_up import evaluation, finished


def facts_of(folder):
    return read(RunFolder(folder), "demo")


def test_headline_is_exact_match_of_the_clients(make_run):
    """Two clients with 20 answers each: right 0 and 1 at round 0, 4 and 5 at round 4."""
    extra = [Evaluated(0, "global", {"loss": 9.0}, {}, 1.0)]
    facts = facts_of(make_run(extra=[evaluation(0, ["a", "b"]), *extra]))
    change = facts.headline()
    assert (change.metric, change.split) == ("exact_match", "test")
    assert change.first == (0, 1 / 40) and change.last == (4, 9 / 40)
    assert facts.splits == ["test", "global"]
    assert facts.seconds == 4 * 2.0 + 5 * 1.0


def test_without_answers_the_loss_speaks(make_run):
    facts = facts_of(make_run(names=("loss",)))
    assert facts.headline().metric == "loss"
    assert facts.spread().metric == "loss"
    assert facts.spread().last == {"a": 3 / 5, "b": 4 / 5}


def test_the_global_rows_have_no_worst_tenth(make_run):
    of_clients = facts_of(make_run())
    assert of_clients.worst_tenth(of_clients.headline()) == ((0, 0.0), (2, 0.1), (4, 0.2))
    facts = facts_of(make_run("global", every=None, extra=[evaluation(0, ["all rows"], split="global")]))
    assert facts.headline().split == "global"
    assert facts.worst_tenth(facts.headline()) == ()


def test_values_that_are_not_finite_are_no_points(make_run):
    clients = {"a": {"examples": 1, "tokens": 1, "loss": float("nan")}}
    extra = [
        evaluation(0, ["a"], names=("loss",)),
        Evaluated(1, "test", {"loss": float("inf")}, clients, 1.0),
    ]
    facts = facts_of(make_run(every=None, extra=extra))
    assert facts.curve("loss", "test") == ((0, 3.0),)
    assert facts.spread().last_round == 0


def test_best_is_the_earliest_of_equals():
    change = Change("loss", "test", ((0, 3.0), (2, 1.0), (4, 1.0), (6, 2.0)))
    assert change.best == (2, 1.0)


def test_verdict_says_before_after_and_which_way(make_run):
    verdict = story.verdict(facts_of(make_run()))
    assert verdict.metric == "Exact match"
    assert verdict.sentence.endswith("before training and after round 4. Better.")


def test_verdict_of_a_run_without_evaluations_is_its_training_loss(make_run):
    verdict = story.verdict(facts_of(make_run(every=None)))
    assert (verdict.metric, verdict.before, verdict.after) == ("Training loss", "3.000", "0.750")
    assert "No evaluation" in verdict.sentence


def test_verdict_of_nothing(make_run):
    facts = facts_of(make_run(every=None, done=0, status=None))
    assert story.verdict(facts).metric == "Nothing measured"
    assert facts.headline() is None and facts.spread() is None


@pytest.mark.parametrize(
    "options, said",
    [
        ({"status": "interrupted", "done": 3}, "interrupted after round 3 of 4"),
        ({"status": None, "done": 0}, "has not ended: it is going on, or was killed before the first round ended"),
        ({"status": "early_stopped", "done": 2}, "stopped early after round 2 of 4"),
        ({"status": "interrupted", "done": 3}, "after round 2, 1 before the last finished round"),
        ({"extra": [Noted("mind the gap", "warning")]}, "mind the gap"),
        ({"extra": [finished(9, 2, loss=None)]}, "1\u00a0round has no finite training loss"),
        ({"extra": [evaluation(19, ["a", "b"])]}, "best"),
    ],
)
def test_remarks(make_run, options, said):
    if said == "best":
        options["extra"].append(evaluation(20, [f"c{i}" for i in range(2)]))
        options["extra"].append(Evaluated(30, "test", {"exact_match": 0.25}, {}, 1.0))
    assert any(said in remark for remark in story.remarks(facts_of(make_run(**options))))


def test_a_good_run_has_no_remarks(make_run):
    assert story.remarks(facts_of(make_run())) == []


def test_spread_table_by_hand(make_run):
    """Twenty clients: right 0..19 of 20, then two more each. Worst tenth: two clients; median (9 + 10) / 2 of 20."""
    facts = facts_of(make_run(clients=[f"c{i}" for i in range(20)], every=4))
    table = {name: (first, last) for name, first, last in story.spread_table(facts.spread())}
    assert table["Worst client"] == ("0.0\u00a0%", "20.0\u00a0%")
    assert table["Mean of the worst tenth"] == ("2.5\u00a0%", "22.5\u00a0%")
    assert table["Median"][0] == "47.5\u00a0%"
    assert table["Best client"] == ("95.0\u00a0%", "100.0\u00a0%")


def test_replies_that_did_not_count(make_run, missing):
    extra = [missing, missing, RoundStarted(1, (0,), attempt=1), finished(9, 2, skipped=3)]
    found = {tile.name: tile.value for tile in story.replies(facts_of(make_run(extra=extra)))}
    assert found == {"late": "2\u00a0replies", "skipped": "3\u00a0steps", "begun again": "1\u00a0round"}
    assert story.replies(facts_of(make_run("other"))) == []


def test_differences_are_only_what_differs():
    first = {"seed": 1, "local": {"lr": 0.1, "steps": 10}, "clients": {}, "flag": True}
    second = {"seed": 1, "local": {"lr": 0.2, "steps": 10}, "clients": {}, "flag": 1, "run": {"name": "b"}}
    assert differences([first, second], ["run.name"]) == {"flag": [True, 1], "local.lr": [0.1, 0.2]}
