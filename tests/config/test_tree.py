"""YAML 1.2 scalars, lines, and the mistakes a parser alone can find."""

import math

import pytest

from fedloom.config.tree import parse


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 0.001),
        ("6.0e-3", 0.006),
        (".5", 0.5),
        ("-3", -3),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-02", "2024-01-02"),
        ("100%", "100%"),
        ("", None),
        ("~", None),
        ("null", None),
        ("'8'", "8"),
        ("-.inf", -math.inf),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse(f"a: {text}")
    assert parsed.problems == ()
    assert parsed.value == {"a": value}
    assert type(parsed.value["a"]) is type(value)


def test_keys_are_text_whatever_they_look_like():
    assert parse("on: 1\n3: {no: 2}\ntrue: 3").value == {"on": 1, "3": {"no": 2}, "true": 3}


def test_lines_are_counted_from_one_and_include_list_items():
    lines = parse("# comment\na:\n  b: 1\n  c:\n    - x\n    - y\n").lines
    assert (lines["a",], lines["a", "b"], lines["a", "c", 1]) == (2, 3, 6)


def test_every_duplicate_is_found_and_the_first_value_kept():
    parsed = parse("a: 1\nb: {x: 1, x: 2}\na: 3\n")
    assert parsed.value == {"a": 1, "b": {"x": 1}}
    assert [line for line, _ in parsed.problems] == [2, 3]
    assert "a is given twice, first on line 1" in parsed.problems[1][1]


def test_anchors_work_but_not_within_themselves():
    assert parse("a: &x {b: 1}\nc: *x").value == {"a": {"b": 1}, "c": {"b": 1}}
    assert "contains itself" in parse("a: &x\n  b: *x").problems[0][1]


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("a: [1", 1, "cannot be read as YAML"),
        ("a: 1\n\tb: 2", 2, "indent with spaces"),
        ("a: b: c", 1, "needs quotes"),
        ("a: 1\n---\nb: 2", 2, "another document"),
        ("a: !!python/name:os.system", 1, "only plain values"),
        ("? [1, 2]\n: 3", 1, "a key must be plain text"),
        ("a: \x01", 1, "special characters"),
    ],
)
def test_what_is_no_plain_yaml_is_named_with_its_line(text, line, said):
    (problem,) = parse(text).problems
    assert problem[0] == line
    assert said in problem[1]
