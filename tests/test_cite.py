"""Every choice has its papers or is known to have none; what comes out is BibTeX."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from typer.testing import CliRunner

import fedloom
from fedloom import cite
from fedloom.algorithms import config as algorithms
from fedloom.cite import uses
from fedloom.cite.papers import PAPERS
from fedloom.cli.main import app
from fedloom.config import Config, dump, load, shape
from fedloom.config.presets import PRESETS
from fedloom.data.named import NAMED
from fedloom.objectives.config import DpoConfig

SECTIONS = {
    "algorithm": uses.ALGORITHMS,
    "aggregate.space": uses.SPACES,
    "aggregate.rule": uses.RULES,
    "attack": uses.ATTACKS,
    "federation.sampling": uses.SAMPLINGS,
    "adapter": uses.ADAPTERS,
    "partition": uses.PARTITIONS,
    "objective": uses.OBJECTIVES,
}
NOBODYS = {
    "algorithm": {"local", "centralized"},
    "aggregate.space": set(),
    "aggregate.rule": {"mean"},
    "attack": {"none"},
    "federation.sampling": {"uniform", "fixed", "cyclic", "trace", "poisson"},
    "adapter": {"full"},
    "partition": {"iid", "natural"},
    "objective": {"sft", "classify"},
}
PRESET_PAPERS = {
    "fedavgm": "hsu2019fedavgm", "fedadagrad": "reddi2021adaptive", "fedyogi": "reddi2021adaptive",
    "fedadam": "reddi2021adaptive", "diloco": "douillard2023diloco", "fedit": "zhang2023fedit", "ffa": "sun2024ffa",
    "rolora": "chen2025rolora", "flexlora": "bai2024flexlora", "raflora": "wu2026raflora", "flora": "wang2024flora",
    "fedex": "singhal2025fedex", "fedsvd": "lee2025fedsvd", "slora": "babakniya2023slora", "fedsa": "guo2024fedsa",
}  # fmt: skip


def keys(config):
    return [one.key for one in cite.citations(config)]


def made(*overrides):
    return load("my-data", ["data.source=playground", *overrides])


def parse(text):
    """Entries by key: {field: text}; everything must be an entry or a remark, and braces must match."""
    found, rest = {}, text
    while rest.strip():
        rest = rest.lstrip()
        if rest.startswith("%"):
            line, _, rest = rest.partition("\n")
            assert "@" not in line
            continue
        head = re.match(r"@misc\{([a-z0-9_]+),\n", rest)
        assert head, rest[:80]
        assert head[1] not in found
        rest, fields = rest[head.end() :], {}
        while not rest.startswith("}"):
            field = re.match(r"  ([a-z]+) = \{", rest)
            assert field, rest[:80]
            depth, end = 1, field.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(rest[end], 0)
                end += 1
            fields[field[1]] = rest[field.end() : end - 1]
            assert rest[end : end + 2] == ",\n"
            rest = rest[end + 2 :]
        found[head[1]], rest = fields, rest[1:]
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_every_choice_has_its_papers_or_is_listed_as_having_none(section):
    (field,) = shape.fields_at(tuple(section.split(".")))
    known = {value for one in shape.variants(field.annotation) for value in shape.tag_values(one)}
    table = SECTIONS[section]
    assert table.keys() == known
    assert {name for name, papers in table.items() if not papers} == NOBODYS[section]


def test_server_optimisers_metrics_templates_and_sources_are_all_known():
    (server,) = shape.fields_at(("aggregate", "server_optimizer"))
    names = {value for one in shape.variants(server.annotation) for value in shape.tag_values(one)}
    assert uses.SERVERS.keys() == names | {"momentum", "nesterov"}
    assert uses.METRICS.keys() == set(fedloom.metrics.summary.METRICS)
    assert uses.SOURCES.keys() == {"playground", *NAMED}
    assert uses.LOSSES.keys() == set(get_args(DpoConfig.model_fields["loss"].annotation))
    assert {one.template for one in NAMED.values()} <= uses.TEMPLATES.keys()


def test_every_paper_is_used_and_every_use_has_its_paper():
    tables = [*SECTIONS.values(), uses.LOSSES, uses.SERVERS, uses.ENCODINGS, uses.METRICS, uses.TEMPLATES, uses.SOURCES]
    used = {key for table in tables for papers in table.values() for key in papers}
    assert used | {"guo2024fedsa", "kalajdzievski2023rslora", "sun2024ffa", "xiao2023offsite"} == PAPERS.keys()
    places = [place for _, _, _, place in PAPERS.values()]
    assert len(set(places)) == len(places)
    for key, (author, year, title, place) in PAPERS.items():
        family = re.sub(r"[^a-z]", "", author.partition(",")[0].partition(" and ")[0].lower())
        assert key.startswith(f"{family}{year}"), key
        assert re.fullmatch(r"\d{4}\.\d{4,5}|https://\S+", place)
        assert title.count("{") == title.count("}") == 0 and "&" not in title and "%" not in title


def test_arxiv_numbers_are_those_of_the_code():
    """Where the configuration names a paper by its number, the same number is printed."""
    said = " ".join(one.summary for one in PRESETS.values())
    said += " ".join(kind.__doc__ for kind in vars(algorithms).values() if isinstance(kind, type) and kind.__doc__)
    for number in re.findall(r"arXiv (\d{4}\.\d{4,5})", said):
        assert number in [place for _, _, _, place in PAPERS.values()]


def test_years_are_those_of_the_page_of_papers():
    page = (Path(__file__).parents[1] / "docs" / "papers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]*?(\d{4}), [^|]*\[(\d{4}\.\d{4,5})\]", page, flags=re.MULTILINE)
    listed = {number: int(year) for year, number in rows}
    cited = {place: year for _, year, _, place in PAPERS.values()}
    assert len(listed.keys() & cited.keys()) > 20
    assert {number: year for number, year in cited.items() if listed.get(number, year) != year} == {}


def test_every_preset_is_cited():
    assert PRESET_PAPERS.keys() == PRESETS.keys()
    for preset, paper in PRESET_PAPERS.items():
        assert paper in keys(made(f"algorithm={preset}")), preset


def test_plain_fedavg():
    assert keys(Config()) == ["fedloom", "mcmahan2017fedavg", "zhang2023fedit", "hu2021lora", "kuang2023fsllm"]
    fully = made("adapter=full", "partition=iid", "evaluate.metrics=[loss]", "data.template=plain")
    assert keys(fully) == ["fedloom", "mcmahan2017fedavg"]


@pytest.mark.parametrize(
    "overrides, paper, there",
    [
        (["algorithm=local"], "zhang2023fedit", False),
        (["algorithm=fedper", "algorithm.private=['*.A']"], "guo2024fedsa", False),
        (["algorithm=fedper", "algorithm.private=['*.A']"], "arivazhagan2019fedper", True),
        (["offsite={}"], "xiao2023offsite", True),
        (["adapter.rslora=true"], "kalajdzievski2023rslora", True),
        (["adapter={kind: dora, rslora: true}"], "kalajdzievski2023rslora", True),
        (["adapter=vera"], "kopiczko2023vera", True),
        (["adapter=vera"], "hu2021lora", False),
        (["adapter=vera"], "zhang2023fedit", False),
        (["aggregate.rule=krum", "partition.clients=6"], "blanchard2017krum", True),
        (["attack=scaled"], "bagdasaryan2020backdoor", True),
        (["federation.sampling=size"], "efraimidis2006sampling", True),
        (["partition=dirichlet"], "hsu2019fedavgm", True),
        (["evaluate.metrics=[loss, rouge_l]"], "lin2004rouge", True),
        (["data.template=vicuna"], "zheng2023vicuna", True),
        (["algorithm=flexlora", "adapter.ranks=uniform"], "bai2024flexlora", True),
        (["data.source=gsm8k", "partition=iid"], "cobbe2021gsm8k", True),
        (["data.source=gsm8k", "partition=iid"], "taori2023alpaca", True),
    ],
)
def test_single_settings(overrides, paper, there):
    assert (paper in keys(made(*overrides))) == there


def test_a_paper_that_counts_twice_is_printed_once_with_both_reasons():
    (one,) = [c for c in cite.citations(made("partition=shards")) if c.key == "mcmahan2017fedavg"]
    assert one.used == ("algorithm=fedavg", "partition=shards")


def test_what_is_not_known_is_named():
    assert cite.unknown(Config()) == []
    config = made("data.source=some/set@v2", "model.name=some/model", "partition=iid", "evaluate.global_source=x.json")
    assert cite.unknown(config) == [
        "data.source=some/set@v2", "evaluate.global_source=x.json", "model.name=some/model",
    ]  # fmt: skip
    text = cite.bibtex(config)
    assert text.splitlines()[-1] == "% not known here, look up whom to cite: model.name=some/model"
    assert "set(at)v2" in text and parse(text)
    assert cite.unknown(made("data.source=finance_alpaca", "partition=iid"))[0].startswith("data.source=finance_alpaca")


def test_all_entries_together_are_bibtex():
    entries = [cite._paper(key, ("a",)) for key in PAPERS] + [cite.fedloom_itself()]
    found = parse("\n\n".join(one.bibtex() for one in entries))
    assert found.keys() == {*PAPERS, "fedloom"}
    for fields in found.values():
        assert {"title", "author", "year", "url"} <= fields.keys()
        assert re.fullmatch(r"\{.*\}", fields["title"]) and re.fullmatch(r"\d{4}", fields["year"])
        assert ("eprint" in fields) == (fields.get("archiveprefix") == "arXiv")


def test_a_run_folder_is_cited_in_the_version_that_made_it(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(made("algorithm=rolora", "attack=sign_flip")))
    (folder / "env.json").write_text('{"format": 1, "fedloom": "0.0.7"}')
    done = CliRunner().invoke(app, ["cite", str(folder)])
    assert done.exit_code == 0, done.stderr
    found = parse(done.stdout)
    assert list(found)[:3] == ["fedloom", "mcmahan2017fedavg", "chen2025rolora"]
    assert found["fedloom"]["note"] == "Version 0.0.7"
    assert "li2019rsa" in found
    assert "% aggregate.space=turns\n" in done.stdout


def test_a_run_this_version_cannot_read_is_an_error(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"algorithm": {"name": "of tomorrow"}}))
    (tmp_path / "env.json").write_text('{"format": 1}')
    done = CliRunner().invoke(app, ["cite", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert CliRunner().invoke(app, ["cite", str(tmp_path / "nowhere")]).exit_code == 2
