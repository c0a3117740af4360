"""Drift and aggregation error: which charts there are, on which scale, and what is said of them."""

import re

import pytest

from fedloom.events import RunStarted
from fedloom.folder import RunFolder
from fedloom.report import drift, page
from fedloom.report.facts import read
from report.made_up import finished, started


def facts_of(folder, label="demo"):
    return read(RunFolder(folder), label)


def ticks(picture):
    """What stands at the chart's axes."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg)


FALLING = {"drift": [2.0, 2.5, 2.75, 2.86], "aggregation_error": [0.2, 0.05, 0.02, 0.013]}


def test_both_are_drawn_and_said_in_a_sentence(make_run):
    found = drift.one(facts_of(make_run(figures=FALLING)))
    assert [picture.title for picture in found.pictures] == [drift.APART, drift.LOST]
    assert found.pictures[0].caption == (
        "In the last round the clients ended 2.9\u00a0times as far from their mean as that mean had moved."
    )
    assert found.pictures[1].caption == (
        "In the last round the average of factors missed 1.3\u00a0% of the average of products."
    )
    assert found.said == ""


@pytest.mark.parametrize(
    "aggregate, said",
    [
        ({"space": {"name": "products"}}, "In the last round the result missed 1.3\u00a0% of the average of products."),
        (
            {"rule": {"name": "krum"}},
            "In the last round the result of krum was 1.3\u00a0% away from the average",
        ),
    ],
)
def test_what_missed_depends_on_what_is_averaged(make_run, aggregate, said):
    facts = facts_of(make_run(figures=FALLING, config={"aggregate": aggregate}))
    assert drift.one(facts).pictures[1].caption.startswith(said)


def test_scales_are_their_own_and_logarithmic_only_where_values_differ_much(make_run):
    errors = {"aggregation_error": [0.5, 0.05, 0.005, 0.0005]}
    steep, flat = (
        drift.one(facts_of(make_run(name, figures={**FALLING, **more}))) for name, more in (("a", errors), ("b", {}))
    )
    assert {"0.1\u00a0%", "1\u00a0%", "10\u00a0%"} <= set(ticks(steep.pictures[1]))
    assert "logarithmic" in steep.pictures[1].svg and "logarithmic" not in steep.pictures[0].svg
    assert {"0\u00a0%", "5\u00a0%", "10\u00a0%"} <= set(ticks(flat.pictures[1]))
    assert {"0", "1", "2"} <= set(ticks(flat.pictures[0]))


def test_rounding_is_said_and_not_drawn(make_run):
    found = drift.one(facts_of(make_run(figures={**FALLING, "aggregation_error": [0.0, 3e-7, 1e-7, 2e-7]})))
    assert [picture.title for picture in found.pictures] == [drift.APART]
    assert found.said.startswith("Nothing beyond rounding")


@pytest.mark.parametrize("adapter", [{"kind": "full"}, {"kind": "lora", "freeze": "A"}])
def test_without_products_nothing_is_said_of_them(make_run, adapter):
    figures = {**FALLING, "aggregation_error": [0.0] * 4}
    found = drift.one(facts_of(make_run(figures=figures, config={"adapter": adapter})))
    assert ([picture.title for picture in found.pictures], found.said) == ([drift.APART], "")


def test_what_is_absent_is_left_out(make_run, tmp_path):
    assert drift.one(facts_of(make_run())) == drift.Drift([])
    endless = {"drift": [float("inf")] * 4, "aggregation_error": [float("nan")] * 4}
    assert drift.one(facts_of(make_run("b", figures=endless))) == drift.Drift([])
    text = page.write([make_run("c")], tmp_path / "x.html").read_text()
    assert "drift" not in text and "Noted by the algorithm" not in text


def test_nobody_moved(make_run):
    """All figures 0 are points like others, on a scale from 0."""
    found = drift.one(facts_of(make_run(figures={"drift": [0.0] * 4, "aggregation_error": [0.5, 0.0, 0.0, 0.0]})))
    assert found.pictures[0].caption.startswith("In the last round the clients ended 0.00\u00a0times")
    assert found.pictures[1].caption.endswith("The lowest line is the rounding of float32 numbers.")


def test_several_runs_lie_over_each_other(make_run):
    exact = {**FALLING, "aggregation_error": [1e-7] * 4}
    runs = [
        facts_of(make_run("a", figures=FALLING), "a"),
        facts_of(make_run("b", figures=exact), "b"),
        facts_of(make_run("c"), "c"),
    ]
    apart, lost = drift.several(runs)
    assert apart.caption.endswith("in the last round: a 2.9\u00a0times, b 2.9\u00a0times.")
    assert "of products: a 1.3\u00a0%, b nothing." in lost.caption
    assert drift.several(runs[2:]) == []
    assert [picture.title for picture in drift.several(runs[1:])] == [drift.APART]


def test_of_many_runs_the_ends_are_named(make_run):
    runs = [facts_of(make_run(name, figures={"drift": [0.1 * (i + 1)] * 4}), name) for i, name in enumerate("abcdef")]
    (apart,) = drift.several(runs)
    assert apart.caption.endswith("in the last round: from 0.10\u00a0times (a) to 0.60\u00a0times (f).")


def test_other_figures_have_a_chart_each(make_run, tmp_path):
    figures = {"staleness": [0.0, 1.0, 1.5, 1.2], "too_old": [0.0] * 4, "my_own": [1.0, -2.0, -3.0, -2.0]}
    folder = make_run(figures=figures)
    found = drift.noted(facts_of(folder))
    assert [picture.title for picture in found] == ["Age of updates", "my own"]
    assert {"\u22123", "0", "1"} <= set(ticks(found[1]))
    assert "Noted by the algorithm" in page.write([folder], tmp_path / "x.html").read_text()


def test_rounds_done_over_count_once(make_run):
    """Rounds 3 and 4 were done, then the run was resumed after round 2 and came to round 3 only."""
    again: RunStarted = started("demo", 2, 4)
    extra = [finished(round, 2, figures={"rank": 8.0 - round}) for round in (1, 2, 3, 4)]
    extra += [RunStarted(**{**vars(again), "first_round": 2}), finished(3, 2, figures={"rank": 4.0})]
    facts = facts_of(make_run(done=0, every=None, extra=extra))
    assert facts.figures["rank"] == ((1, 7.0), (2, 6.0), (3, 4.0))


def test_the_pages_have_the_section_once(make_run, tmp_path):
    runs = [make_run("a", figures=FALLING), make_run("b", figures=FALLING)]
    for folders in (runs[:1], runs):
        assert page.write(folders, tmp_path / "x.html").read_text().count(f"<h2>{drift.HEADING}</h2>") == 1
