"""The page: whole for every state of a run, self-contained, deterministic, and safe."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from fedloom.errors import UserError
from fedloom.report import figures, page
from fedloom.report.canvas import COLOURS
from fedloom.report.facts import Spread
from fedloom.report.figures import Line

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(HTMLParser):
    """Checks that elements nest, and collects what the page refers to and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href"}:
                self.references.append(value)
            if name == "aria-label":
                self.labels.append(value)
            assert not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def outline(path):
    return Outline(path.read_text(encoding="utf-8"))


def told(found):
    """All text, white space made one; a no-break space is part of a number."""
    return re.sub(r"[ \n]+", " ", " ".join(found.words))


STATES = {
    "finished": {},
    "interrupted": {"status": "interrupted", "done": 3},
    "killed": {"status": None, "done": 1},
    "before the first round": {"status": None, "done": 0},
    "without evaluations": {"every": None},
    "nothing at all": {"status": None, "done": 0, "every": None},
    "one client, one round": {"clients": ["only"], "rounds": 1, "done": 1, "every": 1},
    "many clients": {"clients": [f"client {i}" for i in range(200)]},
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_run_has_a_whole_page_that_loads_nothing(make_run, state):
    folder = make_run(**STATES[state])
    out = page.write([folder])
    assert out == folder / "report.html"
    found = outline(out)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert all(reference.startswith("#") for reference in found.references)
    used = {reference[1:] for reference in found.references} | set(re.findall(r"url\(#([^)]*)\)", out.read_text()))
    assert used <= set(found.ids)
    assert not re.search(r"url\((?!#)|@import", out.read_text())
    assert "nan" not in "".join(found.words).lower().split()


def test_what_is_said(make_run, missing):
    found = outline(page.write([make_run(extra=[missing])]))
    said = told(found)
    for words in ("demo", "finished", "Exact match", "2.5\u00a0%", "22.5\u00a0%", "24.0\u00a0kB"):
        assert words in said
    assert "the answer came after the deadline" in said
    assert "fedloom run config.yaml" in said and "rounds: 4" in said
    assert any(label.startswith("Loss. Loss over rounds. training: 3.000 at round 1") for label in found.labels)


def test_metrics_of_other_objectives_are_said_in_words(make_run):
    """Shares in percent; every metric worth a picture has one."""
    names = ("loss", "accuracy", "f1", "matthews")
    said = told(outline(page.write([make_run("classes", names=names)])))
    for text in ("Accuracy", "75.0\u00a0%", "F1 (macro)", "73.3\u00a0%", "Matthews correlation", "0.577"):
        assert text in said
    names = ("loss", "preference_accuracy", "margin")
    runs = [make_run(name, names=names) for name in ("one", "other")]
    found = outline(page.write(runs, runs[0] / "both.html"))
    assert "Preference accuracy" in told(found) and "62.5\u00a0%" in told(found)
    assert any(label.startswith("Reward margin over rounds") or "Reward margin" in label for label in found.labels)


def test_the_same_run_gives_the_same_bytes(make_run, tmp_path):
    folder = make_run()
    first, second = page.write([folder], tmp_path / "a.html"), page.write([folder], tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()


def test_text_of_a_run_is_escaped(make_run):
    evil = '<script>alert("x")</script>'
    folder = make_run(
        clients=[evil, "a & b", "$x_{1$"], config={"run": {"name": evil}, "note": "</pre><b>bold"}, done=0, status=None
    )
    found = outline(page.write([folder]))
    assert not found.tags & {"script", "b"}
    assert evil in found.words


def test_several_runs(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [
        make_run("slow", done=2, status="interrupted", config={"local": {"lr": 0.001}}),
        make_run("quick", config={"local": {"lr": 0.1}}),
        make_run("blank<", config={"local": {"lr": 0.1}}),
    ]
    out = page.write(runs)
    assert out.resolve() == tmp_path / "report.html"
    found = outline(out)
    said = told(found)
    assert said.index("quick") < said.index("slow")
    assert "local.lr" in said and "2 of 4" in said
    assert "quick and blank< end alike" in said
    assert "federation.rounds" not in said and "run.name" not in said


def test_several_runs_that_share_no_metric(make_run, tmp_path):
    runs = [make_run("blind", every=None), make_run("seen")]
    said = " ".join(outline(page.write(runs, tmp_path / "x.html")).words)
    assert "share no evaluated metric" in said and "In the order given" in said


def test_runs_of_one_name_are_told_apart(make_run, tmp_path):
    runs = [make_run("x", place="a", config={"run": {"name": "same"}}), make_run("y", config={"run": {"name": "same"}})]
    said = outline(page.write([*runs, runs[0]], tmp_path / "x.html")).words
    assert "2 runs compared" in said and "x" in said and "y" in said


def test_wrong_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="none was given"):
        page.write([])
    with pytest.raises(UserError, match="not a run folder"):
        page.write([tmp_path])


def test_a_chart_is_well_formed_and_follows_the_page():
    picture = figures.curves("Loss <&>", "loss", [Line('a "b" $c', ((0, 2.0), (1, 1.0)), COLOURS[0])])
    root = ET.fromstring(picture.svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'Loss <&>. Loss <&> over rounds. a "b" $c: 2.000 at round 0, 1.000 at round 1.'
    assert 'a "b" $c' in "".join(root.itertext())
    assert "var(--c0)" in picture.svg and COLOURS[0] not in picture.svg


def test_the_best_client_is_on_top_for_losses_and_shares():
    """SVG text in the order of the axis, bottom to top."""
    for metric, order in (("loss", ["bad", "good"]), ("exact_match", ["good", "bad"])):
        values = {"good": 0.1, "bad": 0.9}
        svg = figures.spread(Spread(metric, "test", 0, values, 1, values)).svg
        texts = [text for text in ET.fromstring(svg).itertext() if text in values]
        assert texts == order


def test_running_sums():
    assert figures.running(((1, 2.0), (2, 3.0), (3, 0.5))) == ((1, 2.0), (2, 5.0), (3, 5.5))


def test_looks_do_not_repeat_soon():
    assert len({figures.run_look(i) for i in range(32)}) == 32
