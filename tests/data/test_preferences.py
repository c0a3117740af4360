"""Rows of preferences: prompts and answers in columns, messages, or transcripts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data.config import DataConfig
from fedloom.data.rows import Row, Turn
from fedloom.data.sources import load
from fedloom.errors import UserError


def read(tmp_path, records, kind="pairs", **columns):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    table = load(DataConfig(source=str(path), columns=columns), 0, kind)
    return table.rows, [note for note in table.notes if "skipped" in note]


def said(*texts):
    """Turns of user and assistant in turn, as messages."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def transcript(*texts):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(texts))


def turns(*texts):
    return tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


QUESTION = Row("q", "", "good", rejected="bad")
TALK = Row("a", "", "good", messages=turns("a", "b", "c", "good"), rejected="bad")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": said("q"), "chosen": said("", "good")[1:], "rejected": said("", "bad")[1:]},
        {"prompt": "q", "chosen": said("", "good")[1:], "rejected": said("", "bad")[1:]},
        {"prompt": said("q"), "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": said("q", "good"), "rejected": said("q", "bad")},  # the prompt twice
        {"chosen": said("q", "good"), "rejected": said("q", "bad"), "score_chosen": 1.0, "messages": said("q", "good")},
        {"chosen": transcript("q", "good"), "rejected": transcript("q", "bad")},
        {"prompt": transcript("q", ""), "chosen": " good", "rejected": " bad"},
    ],
)
def test_a_question_in_every_form(tmp_path, record):
    rows, skipped = read(tmp_path, [record])
    assert [(r.instruction, r.output.strip(), (r.rejected or "").strip(), r.messages) for r in rows] == [
        ("q", "good", "bad", ())
    ]
    assert not skipped


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": said("a", "b", "c"), "chosen": "good", "rejected": "bad"},
        {"chosen": said("a", "b", "c", "good"), "rejected": said("a", "b", "c", "bad")},
        {"chosen": transcript("a", "b", "c", "good"), "rejected": transcript("a", "b", "c", "bad")},
        {"prompt": transcript("a", "b", "c", ""), "chosen": "good", "rejected": "bad"},
    ],
)
def test_a_conversation_in_every_form(tmp_path, record):
    assert read(tmp_path, [record])[0] == (TALK,)


def test_words_that_both_answers_begin_with_stay_in_both(tmp_path):
    """A common prefix of the texts would end within the answers: `yes` and `no` are what it leaves."""
    record = {"chosen": transcript("q", "I think yes"), "rejected": transcript("q", "I think no")}
    assert read(tmp_path, [record])[0] == (Row("q", "", "I think yes", rejected="I think no"),)


@given(
    prompt=st.lists(st.text("ab I:", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=1, max_size=5),
    answers=st.tuples(*[st.text("abI think", min_size=1, max_size=9).map(str.strip).filter(bool)] * 2),
)
def test_transcripts_are_read_back_whole(tmp_path_factory, prompt, answers):
    if len(prompt) % 2 == 0:
        prompt = prompt[1:]
    if answers[0] == answers[1]:
        return
    record = {"chosen": transcript(*prompt, answers[0]), "rejected": transcript(*prompt, answers[1])}
    (row,), _ = read(tmp_path_factory.mktemp("t"), [record])
    assert (row.output, row.rejected) == answers
    assert row.messages == (turns(*prompt, answers[0]) if len(prompt) > 1 else ())
    assert row.instruction == prompt[0]


def test_turns_of_one_speaker_in_a_row_are_one(tmp_path):
    chosen = "\n\nHuman: q\n\nAssistant: well\n\nAssistant: yes"
    rejected = "\n\nHuman: q\n\nAssistant: no"
    assert read(tmp_path, [{"chosen": chosen, "rejected": rejected}])[0] == (
        Row("q", "", "well\n\nyes", rejected="no"),
    )


@pytest.mark.parametrize(
    "record,why",
    [
        (
            {"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "x", "c", "e")},
            "part before the last",
        ),
        ({"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "e")}, "part before the last"),
        ({"chosen": transcript("a", "b"), "rejected": transcript("a", "b", "c")}, "does not end with the assistant"),
        ({"chosen": transcript("a", ""), "rejected": transcript("a", "b")}, "empty chosen"),
        ({"chosen": transcript("a", "b"), "rejected": transcript("a", " ")}, "empty rejected"),
        ({"chosen": transcript("a", "b"), "rejected": transcript("a", " b\n")}, "chosen equals rejected"),
        ({"chosen": transcript("a", "b"), "rejected": None}, "no rejected"),
        ({"chosen": "b", "rejected": "c"}, "no prompt: chosen does not begin with a Human's"),
        ({"chosen": "\n\nAssistant: b", "rejected": "\n\nAssistant: c"}, "no prompt"),
    ],
)
def test_what_is_left_out_is_counted_and_named(tmp_path, record, why):
    fine = {"chosen": transcript("q", "good"), "rejected": transcript("q", "bad")}
    rows, skipped = read(tmp_path, [record, fine])
    assert rows == (QUESTION,)
    assert len(skipped) == 1
    assert skipped[0].startswith("1 of 2 rows skipped:")
    assert why in skipped[0]


def test_an_input_goes_with_the_question(tmp_path):
    record = {"prompt": "q", "context": "x", "chosen": "good", "rejected": "bad", "task": "c"}
    assert read(tmp_path, [record])[0] == (Row("q", "x", "good", "c", rejected="bad"),)
    talk = {"prompt": said("a", "b", "c"), "input": "x", "chosen": "good", "rejected": "bad"}
    assert read(tmp_path, [talk])[0][0].messages == turns("a", "b", "c\n\nx", "good")


@pytest.mark.parametrize(
    "record,columns,says",
    [
        ({"prompt": "q", "chosen": "a"}, {}, "has no column rejected"),
        ({"prompt": "q", "output": "a"}, {}, "has no column chosen and no column rejected"),
        ({"prompt": "q", "question": "q", "chosen": "a", "rejected": "b"}, {}, "could each be the instruction"),
        ({"prompt": "q", "chosen": {"a": 1}, "rejected": "b"}, {}, "row 1: column chosen holds an object"),
        ({"prompt": "q", "chosen": [1], "rejected": "b"}, {}, "row 1, column chosen: messages must be a list"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "x": "y"}, {"output": "x"}, "nothing to objective=dpo"),
    ],
)
def test_columns_that_are_missing_or_unclear_are_refused(tmp_path, record, columns, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, [record], **columns)


def test_sft_does_not_read_columns_of_preferences(tmp_path):
    with pytest.raises(UserError, match=r"data.columns.chosen=a means nothing to objective=sft"):
        read(tmp_path, [{"instruction": "q", "output": "a", "a": "b"}], "answers", chosen="a")


@pytest.mark.parametrize("value,good", [(True, True), (0, False), ("good", True), ("No", False), (1.0, True)])
@pytest.mark.parametrize("column", ["label", "good"])
def test_judged_answers(tmp_path, value, good, column):
    rows, _ = read(tmp_path, [{"prompt": "q", "completion": "a", column: value}], "judged")
    assert rows == (Row("q", "", "a", good=good),)


def test_judged_messages(tmp_path):
    record = {"prompt": said("a", "b", "c"), "completion": said("", "d")[1:], "label": True}
    assert read(tmp_path, [record], "judged")[0] == (Row("a", "", "d", messages=turns("a", "b", "c", "d"), good=True),)


def test_judged_conversations_are_found_by_the_usual_name(tmp_path):
    rows, _ = read(tmp_path, [{"messages": said("a", "b"), "label": 0}], "judged")
    assert rows == (Row("a", "", "b", good=False),)


def test_judgements_that_are_none(tmp_path):
    fine = {"prompt": "q", "completion": "a", "label": True}
    rows, skipped = read(tmp_path, [fine, {**fine, "label": None}, {**fine, "completion": ""}], "judged")
    assert len(rows) == 1
    assert skipped == ["1 of 3 rows skipped: empty completion", "1 of 3 rows skipped: no label"]
    with pytest.raises(UserError, match=r"column label holds '0.7', and must say whether the answer is good"):
        read(tmp_path, [{**fine, "label": 0.7}], "judged")


def test_a_named_set_of_another_kind_says_which_objective_it_is_for(tmp_path):
    with pytest.raises(
        UserError, match="hh_rlhf holds pairs of answers, which objective=dpo learns from; objective=sft"
    ):
        load(DataConfig(source="hh_rlhf", root=str(tmp_path)), 0)
    with pytest.raises(UserError, match="objective=classify learns from; objective=dpo needs pairs"):
        load(DataConfig(source="sst2", root=str(tmp_path)), 0, "pairs")
