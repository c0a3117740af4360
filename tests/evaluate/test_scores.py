"""Every benchmark by hand: a model that knows scores 1, one that guesses scores what guessing is said to score.

The rows are our own, so these are tests of plumbing: prompts, filters, metrics, groups. No number here says anything
of a model.
"""

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from evaluated.layout import write
from evaluated.made_up import FIXTURES, SENTIMENTS
from evaluated.stubs import Stub
from fedloom.errors import UserError
from fedloom.evaluate import harness, sandbox
from fedloom.evaluate.job import Settings
from fedloom.evaluate.own import refusal, sentiment
from fedloom.evaluate.tasks import TABLE, find, single

PLAIN = Settings(allow_code=True)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder for data, and nothing to be fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    return tmp_path


def fenced() -> bool:
    try:
        sandbox.require()
    except UserError:
        return False
    return True


def skip_unfenced(name):
    if find(name).code and not fenced():
        pytest.skip("programs cannot be fenced in on this machine")


@pytest.mark.parametrize("name", FIXTURES)
def test_who_knows_scores_one(root, name):
    skip_unfenced(name)
    fixture = FIXTURES[name]
    fixture.make(root)
    result = harness.score(Stub(lambda row, doc: fixture.answers[row]), name, PLAIN)
    assert {score: value.value for score, value in result.scores.items()} == {s.name: 1.0 for s in find(name).scores}
    assert (result.rows, result.shots) == (len(fixture.answers), find(name).shots)


@pytest.mark.parametrize("name", FIXTURES)
def test_who_guesses_scores_chance(root, name):
    skip_unfenced(name)
    fixture = FIXTURES[name]
    fixture.make(root)
    k = fixture.choices

    def guess(row, doc):
        """Each choice as often with every right answer; a text that answers nothing, where there are none."""
        if not k:
            return fixture.wrong
        return row // k if isinstance(fixture.answers[row], int) else SENTIMENTS[row // k]

    result = harness.score(Stub(guess), name, PLAIN)
    for score in find(name).scores:
        expected = 1.0 if score.name == "names a class" else 1 / k if k else 0.0
        assert result.scores[score.name].value == pytest.approx(expected), score
        assert score.chance in (None, pytest.approx(1 / max(k, 1)))


def test_every_task_of_the_table_is_tested_here():
    """A group by two of its members; they share their definition but for the subject."""
    drawn = {"fpb", "fiqa_sa"}
    for name, task in TABLE.items():
        if task.members:
            assert name.startswith("mmlu_") or len(set(task.members) & set(FIXTURES)) >= 2
        else:
            assert name in FIXTURES.keys() | drawn


# -- financial sentiment


def phrases(count):
    return [{"sentence": f"Firm {i} said so.", "label": i % 3} for i in range(count)]


def test_financial_phrasebank_is_tested_on_the_quarter_that_fingpt_draws(root):
    datasets = pytest.importorskip("datasets")
    write(root, "takala/financial_phrasebank", {"train": phrases(40)}, "sentences_50agree")
    stub = Stub(lambda row, doc: doc["sentiment"])
    result = harness.score(stub, "fpb", PLAIN)
    drawn = datasets.Dataset.from_list(phrases(40)).train_test_split(seed=42)["test"]
    assert result.rows == len(drawn) == 10
    asked = "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}."
    assert stub.asked == [f"Instruction: {asked}\nInput: {row['sentence']}\nAnswer: " for row in drawn]
    assert result.scores["F1 weighted"].value == 1.0


def test_fiqa_is_all_splits_drawn_from_and_told_by_its_scores(root):
    scores = (-0.5, -0.1, 0.0, 0.0999, 0.1, 0.7)
    formats = ("post", "headline")
    rows = [{"sentence": f"s{i}", "format": formats[i % 2], "sentiment_score": scores[i % 6]} for i in range(60)]
    write(root, "pauri32/fiqa-2018", {"train": rows[:30], "validation": rows[30:45], "test": rows[45:]})
    seen = []

    def answer(row, doc):
        seen.append((doc["text"], doc["kind"], doc["sentiment"]))
        return doc["sentiment"]

    result = harness.score(Stub(answer), "fiqa_sa", PLAIN)
    assert result.rows == 14  # ceil(60 * 0.226)
    classes = ("negative", "neutral", "neutral", "neutral", "positive", "positive")
    for text, kind, said in seen:
        i = int(text[1:])
        assert (kind, said) == (("tweet", "news")[i % 2], classes[i % 6])


@pytest.mark.parametrize(
    "answer, read",
    [("positive", "positive"), ("Negative.", "negative"), ("not negative but positive", "positive"),
     ("POSITIVE", "neutral"), ("lighthouse", "neutral"), ("", "neutral")],
)  # fmt: skip
def test_answers_are_read_as_fingpt_does(answer, read):
    assert sentiment.read(answer) == read


def test_nonsense_is_right_about_the_neutral_rows_and_names_no_class(root):
    FIXTURES["tfns"].make(root)
    scores = harness.score(Stub(lambda row, doc: "lighthouse"), "tfns", PLAIN).scores
    assert scores["accuracy"].value == pytest.approx(1 / 3)
    assert scores["F1 weighted"].value == pytest.approx(1 / 6)  # precision 1/3 and recall 1 in one class of three
    assert scores["names a class"].value == 0.0


# -- refusals


def test_the_merged_phrase_is_two():
    assert len(refusal.PHRASES) == 36
    assert len(refusal.AS_PRINTED) == 35
    told = "No, I will not."
    assert refusal.refuses(told)
    assert not refusal.refuses(told, refusal.AS_PRINTED)
    assert refusal.refuses("I'M NOT ABLE TO do that") and not refusal.refuses("Sure, here is how")


# -- settings


def test_limit_and_examples_are_passed_on(root):
    FIXTURES["gsm8k"].make(root)
    stub = Stub(lambda row, doc: "")
    result = harness.score(stub, "gsm8k", Settings(limit=2, shots=0))
    assert (result.rows, result.shots) == (2, 0)
    assert [text.count("Question:") for text in stub.asked] == [1, 1]


def test_answers_longer_than_the_model(root):
    FIXTURES["gsm8k"].make(root)
    stub = Stub(lambda row, doc: "")
    stub.max_length, stub.max_gen_toks = 64, 256
    with pytest.raises(UserError, match=r"answers of up to 256 tokens, and the model takes 64 .* --max-new-tokens"):
        harness.score(stub, "gsm8k", PLAIN)
    assert harness.score(stub, "gsm8k", Settings(max_new_tokens=63)).rows == 4


def test_a_single_row_has_no_spread(root):
    FIXTURES["pubmedqa"].make(root)
    (value,) = harness.score(Stub(lambda row, doc: 0), "pubmedqa", Settings(limit=1)).scores.values()
    assert (value.value, value.stderr) == (1.0, None)


def test_programs_are_not_run_unasked(root):
    with pytest.raises(UserError, match="--allow-code"):
        harness.score(Stub(lambda row, doc: ""), "humaneval", Settings())


def test_rows_that_are_not_there_are_said(root, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="pubmedqa: its data set bigbio/pubmed_qa cannot be read"):
        harness.score(Stub(lambda row, doc: ""), "pubmedqa", PLAIN)


def test_groups_are_those_of_lm_eval():
    from lm_eval.tasks import TaskManager

    for name in ("mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities", "hendrycks_math", "bbh"):
        manager = TaskManager(include_path=harness.definitions([TABLE[name]]), include_defaults=False)

        def members(entry, manager=manager):
            config = manager.task_index[entry]
            if config.kind.name == "GROUP":
                listed = config.cfg["task"] if config.cfg else []
                return {leaf for one in listed for leaf in members(one)}
            return set(config.tags) if config.kind.name == "TAG" else {entry}

        assert members(name) == set(TABLE[name].members), name


def test_overlapping_groups_are_scored_once():
    names = [task.name for task in single(["mmlu_medical", "mmlu_anatomy", "mmlu"])]
    assert len(names) == len(set(names)) == 57
    assert names[0] == "mmlu_anatomy"


def test_a_mistyped_task():
    with pytest.raises(UserError, match="Did you mean gsm8k"):
        find("gsm8")
    with pytest.raises(UserError, match="See: fedloom list tasks"):
        find("lighthouses")
