"""Which column means what, and rows from records."""

import pytest

from fedloom.data.columns import present_in, resolve
from fedloom.data.config import ColumnsConfig
from fedloom.data.files import OWNER
from fedloom.data.records import answers, made
from fedloom.data.rows import Row, Turn
from fedloom.errors import UserError


def read(records, **config):
    columns = resolve(ColumnsConfig(**config), present_in(records), "toy", owned=any(OWNER in r for r in records))
    rows, notes = made(records, columns, "toy", answers)
    return rows, [*columns.notes, *notes]


def test_default_names_need_no_note():
    rows, notes = read([{"instruction": "i", "input": "x", "output": "o", "category": "c", "other": 1}])
    assert rows == [Row("i", "x", "o", "c")]
    assert notes == []


@pytest.mark.parametrize("asked", ["prompt", "question", "query", "problem", "Question"])
@pytest.mark.parametrize("told", ["response", "answer", "completion", "target", "label_text", "label"])
def test_common_other_names_are_detected_and_reported(asked, told):
    rows, notes = read([{asked: "i", told: "o", "type": "c", "site": "s"}])
    assert rows == [Row("i", "", "o", "c", "s")]
    assert {f"column {asked} is read as instruction", "column type is read as category"} <= set(notes)
    assert any(note.startswith(f"column {told} is read as output") for note in notes)


def test_label_is_the_category_where_there_is_another_output():
    rows, _ = read([{"prompt": "i", "response": "o", "label": 3}])
    assert rows == [Row("i", "", "o", "3")]


def test_input_alone_is_the_instruction():
    rows, notes = read([{"input": "i", "output": "o"}])
    assert rows == [Row("i", "", "o")]
    assert "column input is read as instruction, as there is no other" in notes


def test_configured_names_go_first_and_may_share_a_column():
    rows, _ = read(
        [{"prompt": "p", "question": "q", "lang": "py", "output": "o"}],
        instruction="question",
        input="lang",
        category="lang",
    )
    assert rows == [Row("q", "py", "o", "py")]


@pytest.mark.parametrize(
    "record,config,says",
    [
        ({"prompt": "p", "question": "q", "output": "o"}, {}, ["prompt and question", "columns are: prompt, question"]),
        ({"instruction": "i", "answer": "a", "target": "t"}, {}, ["answer and target could each be the output"]),
        (
            {"a": 1, "b": 2},
            {},
            ["no column instruction and no column output", "its columns are: a, b", "data.columns.output"],
        ),
        ({"instruction": "i", "b": 2}, {}, ["no column output", "its columns are: instruction, b"]),
        (
            {"instruction": "i", "output": 2},
            {"input": "ctx"},
            ["data.columns.input=ctx", "columns are: instruction, output"],
        ),
        (
            {"instruction": "i", "output": "o", "messages": []},
            {"instruction": "instruction", "messages": "messages"},
            ["stands in place of"],
        ),
        ({"instruction": "i", "output": ["o"]}, {}, ["row 1", "column output holds a list"]),
        ({"instruction": {"a": 1}, "output": "o"}, {}, ["column instruction holds an object"]),
    ],
)
def test_unclear_and_missing_columns_are_errors_that_list_what_there_is(record, config, says):
    with pytest.raises(UserError) as error:
        read([record], **config)
    for words in says:
        assert words in str(error.value)


def test_two_possible_categories_are_left_out_and_reported():
    rows, notes = read([{"instruction": "i", "output": "o", "type": "a", "task": "b"}])
    assert rows == [Row("i", "", "o")]
    assert "type and task could each be the category" in notes[0]


def test_values_become_text_and_nothing_becomes_None():
    records = [
        {"instruction": 1, "input": None, "output": 2.5, "category": 7},
        {"instruction": True, "output": "", "category": ""},
        {"instruction": "i", "input": float("nan"), "output": "o", "category": None},
    ]
    rows, _ = read(records)
    assert rows == [Row("1", "", "2.5", "7"), Row("true", "", "", None), Row("i", "", "o", None)]


def test_rows_without_a_text_are_skipped_and_counted():
    records = [
        {"question": "q", "answer": None},
        {"question": None, "answer": "a"},
        {"question": "q", "answer": "a"},
        {"question": "q"},
    ]
    rows, notes = read(records)
    assert rows == [None, None, Row("q", "", "a"), None]
    assert "2 of 4 rows skipped: no answer" in notes
    assert "1 of 4 rows skipped: no question" in notes


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "bye"}],
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        '[{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}]',
    ],
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_conversations_in_their_usual_forms(turns, name):
    rows, _ = read([{name: turns, "user": "u7"}])
    assert rows == [Row("q", "", "a", None, "u7", (Turn("user", "q"), Turn("assistant", "a")))]


def test_a_conversation_without_an_answer_is_skipped_and_counted():
    rows, notes = read([{"messages": [{"role": "user", "content": "q"}]}, {"messages": None}])
    assert rows == [None, None]
    assert "2 of 2 rows skipped: no assistant turn" in notes


@pytest.mark.parametrize("turns", ["hello", 3, [1], [{"role": "user"}], [{"role": "user", "content": ["x"]}]])
def test_malformed_conversations_are_errors_with_the_row(turns):
    with pytest.raises(UserError, match="toy, row 1"):
        read([{"messages": turns}])


def test_own_text_columns_put_conversations_aside():
    rows, _ = read([{"prompt": "p", "answer": "a", "messages": []}], instruction="prompt")
    assert rows == [Row("p", "", "a")]


def test_files_that_are_clients_go_before_a_column_unless_it_is_named():
    records = [{"instruction": "i", "output": "o", "user": "u", OWNER: "site-1"}]
    assert read(records)[0][0].client == "site-1"
    assert read(records, client="user")[0][0].client == "u"
