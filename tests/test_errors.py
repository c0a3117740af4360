"""Errors a person can act on: the tree, all problems at once, hints."""

import pytest

from fedloom.errors import ConfigError, FedloomError, RunStopped, UserError, nearest


def test_the_tree():
    """UserError exits with 2, RunStopped does not; neither is the other."""
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, FedloomError)
    assert issubclass(RunStopped, FedloomError)
    assert not issubclass(RunStopped, UserError)
    assert not issubclass(FedloomError, ValueError)


def test_a_config_error_says_all_problems_at_once():
    problems = ["a.yaml:3 first", "a.yaml:9 second"]
    error = ConfigError(problems)
    problems.append("too late")
    assert error.problems == ("a.yaml:3 first", "a.yaml:9 second")
    assert str(error) == "a.yaml:3 first\na.yaml:9 second"


@pytest.mark.parametrize(
    ("word", "choices", "hint"),
    [
        ("fedavgg", ["fedprox", "fedavg", "local"], " Did you mean fedavg?"),
        ("momentun", ["lr", "momentum"], " Did you mean momentum?"),
        ("zzz", ["fedprox", "fedavg"], " Choose one of: fedavg, fedprox."),
        ("", ["b", "a"], " Choose one of: a, b."),
        ("anything", [], ""),
    ],
)
def test_hints(word, choices, hint):
    assert nearest(word, choices) == hint
    assert nearest(word, reversed(choices)) == hint  # not a matter of the order they were declared in


def test_choices_may_be_a_generator():
    assert nearest("lrr", (name for name in ("steps", "lr"))) == " Did you mean lr?"
