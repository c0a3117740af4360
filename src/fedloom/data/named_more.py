"""Named sets for other objectives than instruction tuning: texts with a class, and pairs of answers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fedloom.data.config import ColumnsConfig
from fedloom.data.files import Record, TableForm
from fedloom.data.named_set import LocalCopy, NamedSet
from fedloom.errors import UserError

_SENTIMENT: Final = ("negative", "neutral", "positive")
_SENTENCE: Final = ColumnsConfig(instruction="sentence", label="label")
_COLA: Final = TableForm(header=("source", "label", "mark", "sentence"), quoted=False)
_NEUTRAL: Final = 0.1
"""Scores from -0.1 to below 0.1 are neutral."""


def sentiments(record: Record) -> list[Record]:
    """A record for each opinion of a sentence of FiQA, its score made one of three classes.

    Below -0.1 negative, below 0.1 neutral, else positive, as the benchmarks of FinGPT have it.

    Raises:
        UserError: a score is no number.
    """
    opinions = record.get("info", [record])
    found = []
    for opinion in opinions:
        said = opinion.get("sentiment_score")
        try:
            score = float(said)
        except (TypeError, ValueError):
            raise UserError(f"fiqa: the sentiment_score {said!r} is no number; check the file") from None
        label = _SENTIMENT[0] if score < -_NEUTRAL else _SENTIMENT[1] if score < _NEUTRAL else _SENTIMENT[2]
        found.append({"sentence": record.get("sentence"), "target": opinion.get("target"), "label": label})
    return found


CLASSES: Final[Mapping[str, NamedSet]] = MappingProxyType(
    {
        "sst2": NamedSet(
            "Stanford Sentiment Treebank as in GLUE: phrases of film reviews, two classes (Socher et al. 2013)",
            "nyu-mll/glue",
            "none stated",
            _SENTENCE,
            (LocalCopy({"train": ("sst2/train.tsv",), "validation": ("sst2/dev.tsv",)}, form=TableForm(quoted=False)),),
            subset="sst2",
            note="GLUE's test split has no labels: data.test_split=validation, or a share of train (data.test)",
            kind="labels",
            labels=("negative", "positive"),
            classes={"0": "negative", "1": "positive"},
        ),
        "cola": NamedSet(
            "Corpus of Linguistic Acceptability as in GLUE, two classes (Warstadt et al. 2019, arXiv 1805.12471)",
            "nyu-mll/glue",
            "none stated; sentences from published works, research use",
            _SENTENCE,
            (
                LocalCopy(
                    {"train": ("cola/in_domain_train.tsv",), "validation": ("cola/in_domain_dev.tsv",)}, form=_COLA
                ),
            ),
            subset="cola",
            note="GLUE's test split has no labels: data.test_split=validation, or a share of train (data.test)",
            kind="labels",
            labels=("unacceptable", "acceptable"),
            classes={"0": "unacceptable", "1": "acceptable"},
        ),
        "fpb": NamedSet(
            "Financial PhraseBank: sentences of financial news, three classes (Malo et al. 2014, arXiv 1307.5336)",
            "takala/financial_phrasebank",
            "CC BY-NC-SA 3.0",
            _SENTENCE,
            (LocalCopy({"train": ("financial_phrasebank/all.jsonl",)}),),
            subset="sentences_50agree",
            note="the hub's copy is a program, which newer versions of datasets do not run; put a copy below data.root",
            kind="labels",
            labels=_SENTIMENT,
        ),
        "fiqa": NamedSet(
            "FiQA 2018, task 1: sentiment of financial headlines and posts (Maia et al. 2018); a row for each opinion",
            "pauri32/fiqa-2018",
            "none stated for the data",
            _SENTENCE,
            (
                LocalCopy(
                    {
                        "train": ("fiqa/headline_train.jsonl", "fiqa/post_train.jsonl"),
                        "test": ("fiqa/headline_test.jsonl", "fiqa/post_test.jsonl"),
                    }
                ),
            ),
            note="scores below -0.1 are negative, below 0.1 neutral, else positive",
            kind="labels",
            labels=_SENTIMENT,
            raw=("sentence", "target", "sentiment_score"),
            records=sentiments,
        ),
    }
)
"""Sets for objective classify."""

_PAIRS: Final = ColumnsConfig(chosen="chosen", rejected="rejected")

PREFERENCES: Final[Mapping[str, NamedSet]] = MappingProxyType(
    {
        "hh_rlhf": NamedSet(
            "Anthropic's pairs of helpful and harmless answers (Bai et al. 2022, arXiv 2204.05862); offensive texts",
            "Anthropic/hh-rlhf",
            "MIT",
            _PAIRS,
            (
                LocalCopy({"train": ("hh_rlhf/train.jsonl",), "test": ("hh_rlhf/test.jsonl",)}),
                LocalCopy({"train": ("hh_rlhf/harmless_base_train.jsonl",)}),
                LocalCopy({"test": ("hh_rlhf/harmless_base_test.jsonl",)}),
            ),
            template="vicuna",
            note="transcripts: the turns that both share are the prompt",
            kind="pairs",
        ),
        "ultrafeedback": NamedSet(
            "UltraFeedback, the best and another answer to a prompt by GPT-4's scores (Cui et al. 2023, "
            "arXiv 2310.01377)",
            "trl-lib/ultrafeedback_binarized",
            "MIT",
            _PAIRS,
            (
                LocalCopy(
                    {"train": ("ultrafeedback/train.jsonl",), "test": ("ultrafeedback/eval.jsonl",)},
                    ColumnsConfig(instruction="prompt", chosen="chosen", rejected="rejected"),
                ),
            ),
            template="vicuna",
            kind="pairs",
        ),
    }
)
"""Sets for objective dpo."""
