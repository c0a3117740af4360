"""Laws of classification and preference tuning that a user relies on, tried on made-up inputs."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from data.tiny_tokenizers import byte_tokenizer
from fedloom.config.load import load as load_config
from fedloom.contracts import HOME, Missing, TooFewReplies
from fedloom.data.config import DataConfig
from fedloom.data.encoders import encoder_of
from fedloom.data.labelled import LabelEncoder, Labelled, class_notes, labels_of
from fedloom.data.pairs import Pair
from fedloom.data.rows import Row
from fedloom.data.sources import load
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError
from fedloom.metrics.classes import score
from fedloom.objectives import preference_losses as losses
from fedloom.runtime.station import _hint

TEXT = st.text(max_size=40)
WORDS = st.text("ab\u00e9\u4e2d \U0001f600<|>[]/\n", min_size=1, max_size=60)
REWARDS = st.floats(-1e5, 1e5)


def rows_of(path, records, kind):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load(DataConfig(source=str(path)), 0, kind).rows


# -- classes


@pytest.mark.parametrize("forms", [[0, 1], [0.0, 1.0], ["0", "1"], [" 0 ", "1"]], ids=str)
def test_a_label_is_its_value_however_it_is_written(tmp_path, forms):
    records = [{"text": f"t{i}", "label": forms[i % 2]} for i in range(12)]
    rows = rows_of(tmp_path / "a.jsonl", records, "labels")
    assert labels_of(rows) == ("0", "1")
    assert [row.output for row in rows] == ["0", "1"] * 6


@given(st.lists(st.integers(-1000, 1000), min_size=2, unique=True), st.randoms())
def test_number_labels_are_in_the_order_of_numbers(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    assert labels_of(Row("t", "", str(n)) for n in shuffled) == tuple(map(str, sorted(numbers)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_scores_of_counts_are_those_of_the_rows(pairs):
    """Merged counts of clients, in any order, give what scikit-learn says of all rows at once."""
    truth, said = zip(*pairs, strict=True)
    counts = tuple((t, s, pairs.count((t, s))) for t, s in sorted(set(pairs), reverse=True))
    assert score("accuracy", counts) == pytest.approx(sklearn.accuracy_score(truth, said))
    assert score("f1", counts) == pytest.approx(sklearn.f1_score(truth, said, average="macro", zero_division=0.0))
    assert score("f1_micro", counts) == pytest.approx(score("accuracy", counts))
    expected = sklearn.matthews_corrcoef(truth, said) if len(set(truth)) > 1 and len(set(said)) > 1 else 0.0
    assert score("matthews", counts) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(TEXT, TEXT, st.integers(4, 12), st.sampled_from(["drop", "cut"]))
def test_any_text_is_fitted_or_left_out_with_a_reason(one, two, longest, overlong):
    made = LabelEncoder(byte_tokenizer(), DataConfig(max_length=longest, overlong=overlong), ("a", "b"))
    (row,) = made.encode_all([Row(one, two, "b")])
    if isinstance(row, str):
        assert row in {"empty text", "overlong"}
        assert (row == "empty text") == (not one.strip() and not two.strip())
        assert overlong == "drop" or row == "empty text"
    else:
        assert isinstance(row, Labelled)
        assert 1 <= row.size <= longest
        assert row.label == 1


@given(WORDS, WORDS)
@settings(deadline=None)
def test_a_texts_tokens_do_not_depend_on_its_neighbours(one, two):
    made = LabelEncoder(byte_tokenizer(), DataConfig(max_length=512), ("a", "b"))
    alone = [made.encode_all([Row(text, "", "a")])[0] for text in (one, two)]
    assert made.encode_all([Row(one, "", "a"), Row(two, "", "a")]) == alone


@given(st.dictionaries(st.text(max_size=5), st.lists(st.sampled_from("abc"), max_size=4), max_size=5))
def test_notes_on_classes_count_rightly(held):
    notes = class_notes("abc", {name: [Row("t", "", c) for c in classes] for name, classes in held.items()})
    single = sum(len(set(classes)) == 1 for classes in held.values())
    unseen = 3 - len({c for classes in held.values() for c in classes})
    assert any(note.startswith(f"{single} of {len(held)} clients train on") for note in notes) == (single > 0)
    assert any(note.startswith(f"{unseen} of 3 classes have no row") for note in notes) == (unseen > 0)


# -- preferences


@settings(deadline=None, max_examples=200)
@given(WORDS, WORDS, WORDS, st.integers(8, 200), st.sampled_from(["drop", "cut"]))
def test_any_pair_is_fitted_or_left_out_with_a_reason(prompt, chosen, rejected, longest, overlong):
    """Answers are never cut: a pair without its answers' ends would teach to go on for ever."""
    encoder = encoder_of(byte_tokenizer(), DataConfig(max_length=longest, overlong=overlong), Wanted("pairs"))
    whole = encoder_of(byte_tokenizer(), DataConfig(max_length=4096), Wanted("pairs"))
    row = Row(prompt, "", chosen, rejected=rejected)
    (made,), (free,) = encoder.encode_all([row]), whole.encode_all([row])
    if isinstance(made, str):
        too_long = "overlong" if overlong == "drop" else "answer too long"
        assert made in {too_long, "empty answer", "chosen equals rejected"}
        assert made in (too_long, free)
        return
    assert isinstance(made, Pair)
    assert isinstance(free, Pair)
    for short, long in ((made.chosen, free.chosen), (made.rejected, free.rejected)):
        assert len(short.ids) <= longest
        answer = len(long.ids) - len(free.prompt)
        assert tuple(short.ids[-answer:]) == tuple(long.ids[-answer:])


LOSSES = {
    "sigmoid": lambda c, r: losses.sigmoid(c - r, 0.1),
    "conservative": lambda c, r: losses.sigmoid(c - r, 0.1, 0.2),
    "robust": lambda c, r: losses.robust(c - r, 0.1, 0.2),
    "ipo": lambda c, r: losses.ipo(c - r, 0.1),
    "hinge": lambda c, r: losses.hinge(c - r, 0.1),
    "slic": lambda c, r: losses.slic(c, r, 0.5, 0.1),
    "simpo": lambda c, r: losses.simpo(c, r, 2.0, 0.5),
    "orpo": lambda c, r: losses.orpo(c, r, 0.1),
}


@pytest.mark.parametrize("name", LOSSES)
@given(better=st.floats(-1e5, 0), worse=st.floats(-1e5, 0))
def test_no_loss_of_any_answers_is_nan(name, better, worse):
    c, r = (torch.tensor(value, dtype=torch.float32, requires_grad=True) for value in (better, worse))
    value = LOSSES[name](c, r)
    value.backward()
    for number in (value, c.grad, r.grad):
        assert number is not None
        assert math.isfinite(number.item())


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "simpo"])
@given(worse=st.floats(-50, 0), gaps=st.lists(st.floats(-20, 20), min_size=2, max_size=2))
def test_a_larger_margin_never_costs_more(name, worse, gaps):
    r = torch.tensor(worse, dtype=torch.float64)
    small, large = (float(LOSSES[name](r + gap, r)) for gap in sorted(gaps))
    assert large <= small + 1e-12


@given(st.lists(REWARDS, min_size=1, max_size=6), st.lists(REWARDS, max_size=4))
def test_a_judged_answer_costs_between_nothing_and_its_weight(rewards, mismatched):
    rho, good = torch.tensor(rewards), torch.tensor([i % 2 == 0 for i in range(len(rewards))])
    cost = losses.kto(rho, good, losses.baseline(torch.tensor(mismatched)), 0.1, 1.0, 2.0)
    assert bool(((cost >= 0) & (cost <= torch.where(good, 1.0, 2.0))).all())


# -- what is said, and to whom


@given(st.text(st.sampled_from("ab ,'\"\\/\n\x1b\u00e9") | st.characters(codec="utf-8"), min_size=3, max_size=50))
def test_no_word_of_a_row_is_told_to_a_server(private):
    """A client whose label column is the wrong one has whole texts for labels; its error quotes one of them."""
    made = LabelEncoder(byte_tokenizer(), DataConfig(), ("a", "b"))
    with pytest.raises(UserError) as caught:
        made.check([Row("t", "", f"a private {private}")])
    told = _hint(caught.value)
    assert "have the label (...), which is not in the label map (a, b)" in told


def test_a_server_whose_teacher_diverged_is_no_client():
    few = TooFewReplies(0, 1, {HOME: Missing("nonfinite", "the teacher alone"), 3: Missing("late", "40 s")})
    assert str(few).endswith("(the server: nonfinite, the teacher alone; client 3: late, 40 s)")


@pytest.mark.parametrize("key", ["objective.labels=[a,a]", "objective.labels=[a]", "objective.labels=[]"])
def test_labels_that_are_no_classes_are_refused_before_anything_is_loaded(key):
    given_ = ["data.source=x.jsonl", "evaluate.forgetting=false", "evaluate.metrics=[loss]", "objective=classify"]
    with pytest.raises(UserError, match=r"objective\.labels"):
        load_config("quickstart", [*given_, key])
