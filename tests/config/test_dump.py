"""What is dumped loads back to an equal configuration, here and in any other YAML reader."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import fedloom
from fedloom import recipes
from fedloom.config import Config, dump, load
from fedloom.engine.config import LocalConfig, OptimizerConfig
from fedloom.models.config import ModelConfig

SHIPPED = sorted(Path(fedloom.__file__).parent.joinpath("recipes").glob("*.y*ml"), key=lambda path: path.stem)


def again(config, tmp_path, **how):
    path = tmp_path / "config.yaml"
    path.write_text(dump(config, **how), encoding="utf-8")
    return load(path)


def test_all_shipped_recipes_are_known():
    assert len(SHIPPED) == 30
    assert [path.stem for path in SHIPPED] == recipes.names()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_commented_and_make_the_round_trip(path, tmp_path):
    config = load(path)
    assert config == load(path.stem)
    assert again(config, tmp_path) == config
    assert again(config, tmp_path, comments=True) == config
    assert config.run.name == path.stem
    assert len(recipes.summary(path.stem)) > 20
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("name", ["local", "centralized"])
def test_baselines_are_the_quickstart_but_for_the_algorithm(name):
    ours = load("quickstart", [f"algorithm={name}", f"run.name=quickstart-{name}"])
    assert load(f"quickstart-{name}") == ours


def test_the_default_configuration_and_clients_make_the_round_trip(tmp_path):
    assert again(Config(), tmp_path) == Config()
    config = load("quickstart", ["clients.0-3.lr=1e-5", "clients.no.steps=3", "evaluate.early_stop.patience=2"])
    assert again(config, tmp_path) == config


def test_comments_say_what_every_key_means():
    text = dump(Config(), comments=True)
    assert "# Learning rate of the first round.\n  lr: 0.001" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_tag_stands_first():
    lines = dump(Config()).splitlines()
    assert lines[lines.index("partition:") + 1] == "  method: category"


@pytest.mark.parametrize(
    "text", ["1e3", "0o17", "on", "null", "", " x", "a: b", "# x", "é\n\n  b\n", "1:30", "'", "- x"]
)
def test_text_stays_text(text, tmp_path):
    config = Config(model=ModelConfig(name=text))
    assert again(config, tmp_path) == config
    assert yaml.safe_load(dump(config))["model"]["name"] == text


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029\ufeff")),
    st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False, exclude_min=True),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("aé1e-: #'\"\n[]", max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1.", min_size=1), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_any_value_makes_the_round_trip(text, number, argument):
    optimizer = OptimizerConfig(args={"x": argument})
    config = Config(model=ModelConfig(name=text), local=LocalConfig(lr=number, optimizer=optimizer))
    with tempfile.TemporaryDirectory() as folder:
        assert again(config, Path(folder)) == config
