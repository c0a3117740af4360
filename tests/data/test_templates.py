"""Wording of the templates, and the pieces they are made of."""

import pytest

from fedloom.data.rows import Row, Turn
from fedloom.data.templates import Piece, chat_pieces, split_guarded, template_named
from fedloom.errors import UserError

ROW, WITH_INPUT = Row("Name a fruit.", "", "apple"), Row("Translate.", "Haus", "house")


def pieces(name, row, system=None):
    return template_named(name, None, system, None).render(row)


def test_alpaca_is_stanfords_wording():
    assert pieces("alpaca", ROW) == [
        Piece(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nName a fruit.\n\n### Response:"
        ),
        Piece("apple", learned=True, closes=True),
    ]
    assert pieces("alpaca", WITH_INPUT)[0].text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nHaus\n\n"
        "### Response:"
    )


def test_plain_is_lines():
    assert pieces("plain", ROW)[0].text == "Name a fruit.\n"
    assert pieces("plain", WITH_INPUT)[0].text == "Translate.\nHaus\n"


def test_vicuna_learns_every_answer_and_ends_it():
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    assert pieces("vicuna", Row("a", "", "d", messages=turns), "Be brief.") == [
        Piece("Be brief. USER: a ASSISTANT:"),
        Piece(" b", True, True),
        Piece("USER: c ASSISTANT:"),
        Piece(" d", True, True),
    ]
    first = pieces("vicuna", WITH_INPUT)[0].text
    assert first.startswith("A chat between a curious user and an artificial intelligence assistant. ")
    assert first.endswith(" USER: Translate.\n\nHaus ASSISTANT:")


def test_own_text_is_filled_in_one_pass():
    """Braces in a row's text are not places, and other braces in the template stay."""
    text = 'T {"x": 1} {instruction}|{input}|{system}'
    assert pieces(text, Row("{input}", "{instruction}", "o"), "S")[0].text == 'T {"x": 1} {input}|{instruction}|S'


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "plain", "{instruction} {input}:"])
@pytest.mark.parametrize("row", [ROW, WITH_INPUT])
def test_no_prompt_contains_the_word_none(name, row):
    assert all("None" not in piece.text for piece in pieces(name, row))


def test_auto_takes_the_sets_own_then_chat_then_alpaca():
    chat = lambda row: []  # noqa: E731
    assert template_named("auto", "alpaca", None, chat).name == "alpaca"
    assert template_named("auto", None, None, chat).name == "chat"
    assert template_named("auto", None, None, None).name == "alpaca"
    assert template_named("vicuna", "alpaca", None, chat).name == "vicuna"


@pytest.mark.parametrize(
    "name,system,says",
    [
        ("alpacca", None, "Did you mean alpaca?"),
        ("Q: {input}", None, r"lacks \{instruction\}"),
        ("{instruction} {output}", None, "the answer always follows"),
        ("chat", None, "no chat template"),
        ("alpaca", "Be brief.", "no place for it"),
        ("{instruction}", "Be brief.", "no place for it"),
    ],
)
def test_templates_that_cannot_work_are_errors(name, system, says):
    with pytest.raises(UserError, match=says):
        template_named(name, None, system, None)


def told(text):
    return [{"role": role, "content": content} for role, content in text]


def test_chat_pieces_are_differences_of_prefixes():
    def text_of(turns, ask):
        body = "".join(f"<{t['role'][0]}>{t['content']}</>\n" for t in turns)
        return body + ("<a>" if ask else "")

    conversation = told([("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4 ")])
    assert chat_pieces(conversation, text_of) == [
        Piece("<u>1</>\n<a>"),
        Piece("2</>", learned=True),
        Piece("\n<u>3</>\n<a>"),
        Piece("4 </>", learned=True, closes=True),
    ]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    def text_of(turns, ask):
        return "".join(t["content"].upper() if t is not turns[-1] else t["content"] for t in turns)

    with pytest.raises(UserError, match="rewrites earlier turns"):
        chat_pieces(told([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]), text_of)


def test_guarded_text_comes_apart():
    assert split_guarded("plain") == [("plain", True)]
    assert split_guarded("a\ue0f0<s>\ue0f1b") == [("a", True), ("<s>", False), ("b", True)]
