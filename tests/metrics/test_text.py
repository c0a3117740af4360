"""Exact match and ROUGE-L on pairs small enough to check by hand."""

import pytest

from fedloom.metrics.text import exact_match, rouge_l


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("42", "42", True),
        ("  42\n", "42", True),
        ("forty two", "forty  two", False),
        ("Yes", "yes", False),
        ("", "  ", True),
        ("42", "", False),
    ],
)
def test_exact_match_ignores_only_space_at_the_ends(prediction, reference, expected):
    assert exact_match(prediction, reference) is expected


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    """LCS of "the cat sat" and "the dog sat down" is "the sat": P = 2/3, R = 2/4, F1 = 2 P R / (P + R) = 4/7."""
    assert rouge_l("the cat sat", "the dog sat down") == pytest.approx(4 / 7)
    assert rouge_l("the dog sat down", "the cat sat") == pytest.approx(4 / 7)


def test_rouge_l_does_not_stem_and_ignores_case():
    assert rouge_l("running", "run") == 0.0
    assert rouge_l("RUN", "run") == 1.0


@pytest.mark.parametrize("prediction, reference", [("", ""), ("", "word"), ("word", ""), ("?!", "?!")])
def test_rouge_l_of_texts_without_words_is_zero(prediction, reference):
    assert rouge_l(prediction, reference) == 0.0
