"""Texts with a class: columns, the label map, and tokens with the tokenizer's own special tokens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data.tiny_tokenizers import byte_tokenizer
from fedloom.data.config import DataConfig, DirichletConfig, IidConfig
from fedloom.data.federated import build, build_own, build_rows
from fedloom.data.labelled import LabelEncoder, Labelled, labels_of
from fedloom.data.rows import Row
from fedloom.data.sources import load
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError

LABELS = Wanted("labels")


def bert_tokenizer(side="right"):
    """One token per word; [CLS] 1 text [SEP] 2, and a second text with its own [SEP]."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]",
        truncation_side=side,
    )  # fmt: skip


def source(tmp_path, records, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(tmp_path, records, **columns):
    table = load(DataConfig(source=source(tmp_path, records), columns=columns), 0, "labels")
    return table.rows, table.notes


def encoder(labels=("no", "yes"), **data):
    return LabelEncoder(bert_tokenizer(), DataConfig(**data), labels)


@pytest.mark.parametrize("text", ["instruction", "sentence", "text", "content", "premise", "question1"])
@pytest.mark.parametrize("label", ["label", "labels", "target", "class", "sentiment"])
def test_common_names_are_found(tmp_path, text, label):
    rows, notes = read(tmp_path, [{text: "t", label: "x"}, {text: "u", label: "y"}])
    assert rows == (Row("t", "", "x", "x"), Row("u", "", "y", "y"))
    assert len(notes) == (text != "instruction") + (label != "label")


@pytest.mark.parametrize(
    "value,label",
    [(1, "1"), (True, "true"), (2.0, "2"), (" good ", "good"), ("0", "0")],
)
def test_numbers_and_truth_values_become_text(tmp_path, value, label):
    rows, _ = read(tmp_path, [{"text": "t", "label": value}])
    assert rows[0].output == rows[0].category == label


def test_a_second_text_and_a_category_of_ones_own(tmp_path):
    records = [{"premise": "p", "hypothesis": "h", "label": 0, "genre": "fiction"}]
    rows, _ = read(tmp_path, records, category="genre")
    assert rows == (Row("p", "h", "0", "fiction"),)


def test_rows_without_text_or_label_are_counted(tmp_path):
    rows, notes = read(tmp_path, [{"text": "t", "label": None}, {"text": None, "label": 1}, {"text": "t", "label": 1}])
    assert len(rows) == 1
    assert {"1 of 3 rows skipped: no label", "1 of 3 rows skipped: no text"} <= set(notes)


@pytest.mark.parametrize(
    "records,columns,says",
    [
        ([{"text": "t"}], {}, "has no column label .* data.columns.label=NAME"),
        ([{"label": 1}], {}, "has no column instruction"),
        ([{"question": "q", "sentence": "s", "label": 1}], {}, "question and sentence could each be the instruction"),
        ([{"text": "t", "label": 0.25}], {}, "holds 0.25, a number with a fraction"),
        ([{"text": "t", "label": [1]}], {}, "row 1: column label holds a list, and a row has one class"),
        ([{"text": "t", "label": {"a": 1}}], {}, "holds an object"),
        ([{"text": "t", "label": f"{i}"} for i in range(60)], {}, "60 different values in 60 rows"),
        ([{"text": "t", "label": 1, "output": "o"}], {"output": "output"}, "means nothing to objective=classify"),
        ([{"text": "t", "label": 1}], {"label": "lable"}, "data.columns.label=lable is not a column"),
    ],
)
def test_what_cannot_be_a_class_is_refused_in_words(tmp_path, records, columns, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, records, **columns)


def test_labels_are_in_the_order_of_numbers_or_letters():
    rows = [Row("t", "", label) for label in ("10", "9", "-1", "")]
    assert labels_of(rows) == ("-1", "9", "10")
    assert labels_of([*rows, Row("t", "", "b")]) == ("-1", "10", "9", "b")


def test_special_tokens_stand_around_one_text_and_two():
    rows = [Row("a b", "", "yes", "yes"), Row("a", "b c", "no", "no"), Row("[SEP]", "", "no", "no")]
    made = encoder().encode_all(rows)
    assert made[:2] == [Labelled((1, 4, 5, 2), 1, "yes"), Labelled((1, 4, 2, 5, 6, 2), 0, "no")]
    assert 2 not in made[2].ids[1:-1]  # what a user wrote is text
    assert made[0].size == 4


def test_tokenizers_without_special_tokens_put_a_line_break_between_texts():
    tokenizer = byte_tokenizer()
    made = LabelEncoder(tokenizer, DataConfig(), ("0", "1")).encode_all([Row("a", "", "0"), Row("a", "b", "1")])
    assert [tokenizer.decode(one.ids) for one in made] == ["a", "a\nb"]


def test_long_texts_are_dropped_or_cut_from_the_right():
    row = Row("a b c d", "", "yes")
    assert encoder(max_length=5).encode_all([row]) == ["overlong"]
    assert encoder(max_length=5, overlong="cut").encode_all([row])[0].ids == (1, 4, 5, 6, 2)
    left = LabelEncoder(bert_tokenizer("left"), DataConfig(max_length=5, overlong="cut"), ("no", "yes"))
    assert left.encode_all([row])[0].ids == (1, 4, 5, 6, 2)
    with pytest.raises(UserError, match="leaves no room for text"):
        encoder(max_length=3)


@given(st.lists(st.text("abcdefgh ", max_size=12), max_size=8), st.integers(4, 12))
def test_neighbours_change_nothing_and_nothing_is_too_long(texts, longest):
    made = encoder(max_length=longest, overlong="cut")
    rows = [Row(text, "", "yes") for text in texts]
    together = made.encode_all(rows)
    assert together == [made.encode_all([row])[0] for row in rows]
    for row, one in zip(rows, together, strict=True):
        if isinstance(one, str):
            assert one == "empty text"
            assert not row.instruction.strip()
        else:
            assert 3 <= one.size <= longest
            assert (one.ids[0], one.ids[-1]) == (1, 2)


def test_a_label_outside_the_map_is_named_and_counted():
    rows = [Row("a", "", "yes"), Row("a", "", "maybe"), Row("b", "", "maybe"), Row("a", "", "")]
    with pytest.raises(
        UserError, match=r"2 of 4 rows have the label 'maybe', which is not in the label map \(no, yes\)"
    ):
        encoder().check(rows)
    assert encoder().encode_all(rows[:1] + rows[3:])[1] == "no label"


@pytest.mark.parametrize("template", ["chat", "alpaca", "vicuna", "plain", "alpca"])
def test_templates_that_ask_for_an_answer_are_refused(template):
    with pytest.raises(UserError, match="classification reads the text as it is"):
        encoder(template=template)


def test_a_text_of_ones_own_around_the_row():
    made = encoder(template="a {instruction} b {input}")
    assert made.template_name == "own"
    assert made.encode_all([Row("c", "d", "yes")])[0].ids == (1, 4, 6, 5, 7, 2)
    with pytest.raises(UserError, match=r"1 of 1 rows have a second text, and data.template has no \{input\}"):
        encoder(template="a {instruction}").check([Row("c", "d", "yes")])
    with pytest.raises(UserError, match=r"data.system has no place"):
        encoder(system="s")


@pytest.mark.parametrize("labels,says", [(("a", "a", "b"), "names a more than once"), (("a",), "and there is a")])
def test_labels_must_be_two_different_ones_at_least(labels, says):
    with pytest.raises(UserError, match=says):
        encoder(labels)


def test_dirichlet_deals_by_label_and_clients_of_one_class_are_named(tmp_path):
    records = [{"text": f"a b {i}", "label": "xyz"[i % 3]} for i in range(90)]
    config = DataConfig(source=source(tmp_path, records))
    data = build(config, DirichletConfig(clients=3, alpha=0.01), 1, bert_tokenizer(), LABELS)
    assert data.labels == ("x", "y", "z")
    assert set().union(*(held["categories"] for held in data.holdings)) == {"x", "y", "z"}
    single = [client.name for client in data.clients if len({e.label for e in client.get("train")}) == 1]
    assert single
    assert any(note.startswith(f"{len(single)} of 3 clients train on rows of one class only") for note in data.notes)


def test_classes_that_nobody_trains_on_are_named(tmp_path):
    """A class of the test split alone, and one that is only named, widen the head; that is said."""
    splits = tmp_path / "splits"
    splits.mkdir()
    for name, classes in (("train", "xy"), ("test", "xq")):
        rows = [{"text": f"a {i}", "label": classes[i % 2]} for i in range(20)]
        (splits / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(source=str(splits), test_split="test")
    found = build(config, IidConfig(clients=2), 0, bert_tokenizer(), LABELS)
    assert found.labels == ("q", "x", "y")
    assert "1 of 3 classes have no row to train on (q)" in found.notes
    named = build(config, IidConfig(clients=2), 0, bert_tokenizer(), Wanted("labels", ("x", "y", "q", "w")))
    assert "2 of 4 classes have no row to train on (q, w)" in named.notes


def test_named_labels_set_the_order_and_strangers_are_refused(tmp_path):
    path = source(tmp_path, [{"text": "a", "label": "xy"[i % 2]} for i in range(20)])
    data = build(DataConfig(source=path), IidConfig(clients=2), 0, bert_tokenizer(), Wanted("labels", ("y", "x", "z")))
    assert {(e.category, e.label) for client in data.clients for e in client.get("train")} == {("x", 1), ("y", 0)}
    with pytest.raises(UserError, match=r"have the label 'y', which is not in the label map \(x, z\)"):
        build(DataConfig(source=path), IidConfig(clients=2), 0, bert_tokenizer(), Wanted("labels", ("x", "z")))
    with pytest.raises(UserError, match="have the label 'q'"):
        build_rows([Row("a", "", "q")], data.encoder, "global")


def test_a_client_alone_needs_the_labels_named(tmp_path):
    config = DataConfig(source=source(tmp_path, [{"text": "a", "label": "x"}] * 10))
    with pytest.raises(UserError, match=r"objective.labels is not set"):
        build_own(config, 0, bert_tokenizer(), "site", 0, LABELS)
    own = build_own(config, 0, bert_tokenizer(), "site", 0, Wanted("labels", ("w", "x")))
    assert {example.label for example in own.get("train")} == {1}  # a single class is allowed


def test_the_playground_has_no_classes():
    with pytest.raises(UserError, match="no texts with classes"):
        load(DataConfig(), 0, "labels")
