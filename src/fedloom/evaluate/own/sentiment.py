"""Sentiment of financial texts, asked and scored as FinGPT's benchmark does.

Source: FinGPT (Yang et al. 2023), `fingpt/FinGPT_Benchmark/benchmarks/{fpb,fiqa,tfns,nwgi}.py` of
https://github.com/AI4Finance-Foundation/FinGPT (MIT). Prompts, the draw of test rows, thresholds and the reading of
answers are theirs: an answer that contains "positive" is positive, else one that contains "negative" is negative, and
*everything else is neutral*, so a model that writes nonsense gets the neutral rows right. `named` says how many answers
named a class at all.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedloom.metrics import classes

CLASSES: Final = ("negative", "neutral", "positive")
_TFNS: Final = ("negative", "positive", "neutral")
_NWGI: Final[Mapping[str, str]] = {
    "strong negative": "negative",
    "moderately negative": "negative",
    "mildly negative": "neutral",
    "neutral": "neutral",
    "mildly positive": "neutral",
    "moderately positive": "positive",
    "strong positive": "positive",
}


def read(answer: str) -> str:
    """The class FinGPT reads in an answer."""
    for word in ("positive", "negative"):
        if word in answer or word.capitalize() in answer:
            return word
    return "neutral"


# -- rows: each becomes {"text", "kind": news or tweet, "sentiment"}


def fpb(rows: Any) -> Any:
    """The quarter of Financial PhraseBank that FinGPT tests on."""
    test = rows.train_test_split(seed=42)["test"]
    return _rows(test, lambda row: ("news", row["sentence"], CLASSES[row["label"]]))


def fiqa(**_: object) -> Any:
    """FiQA's three splits one after the other, of which FinGPT tests on 22.6 %."""
    import datasets

    parts = datasets.load_dataset("pauri32/fiqa-2018")
    whole = datasets.concatenate_datasets([parts[split] for split in ("train", "validation", "test")])
    test = whole.train_test_split(0.226, seed=42)["test"]
    return {"test": _rows(test, _of_fiqa)}


def tfns(rows: Any) -> Any:
    """Twitter financial news sentiment."""
    return _rows(rows, lambda row: ("tweet", row["text"], _TFNS[row["label"]]))


def nwgi(rows: Any) -> Any:
    """News labelled by GPT with one of seven degrees; the mild ones count as neutral."""
    return _rows(rows, lambda row: ("news", row["news"], _NWGI[row["label"]]))


def _of_fiqa(row: Mapping[str, Any]) -> tuple[str, str, str]:
    score = float(row["sentiment_score"])
    sentiment = "negative" if score < -0.1 else "neutral" if score < 0.1 else "positive"
    return "tweet" if row["format"] == "post" else "news", row["sentence"], sentiment


def _rows(rows: Any, read_row: Any) -> Any:
    def one(row: Mapping[str, Any]) -> dict[str, str]:
        kind, text, sentiment = read_row(row)
        return {"kind": kind, "text": text, "sentiment": sentiment}

    return rows.map(one, remove_columns=rows.column_names)


# -- scores


def process_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, Any]:
    """What one answer counts for: right or not, named a class or not, and the pair the F1s are made of."""
    said = read(results[0])
    pair = (CLASSES.index(doc["sentiment"]), CLASSES.index(said))
    named = any(word in results[0].lower() for word in CLASSES)
    right = float(pair[0] == pair[1])
    return {"acc": right, "f1_weighted": pair, "f1_macro": pair, "f1_micro": pair, "named": float(named)}


def f1_weighted(pairs: Sequence[tuple[int, int]]) -> float:
    """F1 by the rows of each class, the number FinGPT and BloombergGPT report."""
    return classes.score("f1_weighted", _confusion(pairs))


def f1_macro(pairs: Sequence[tuple[int, int]]) -> float:
    """F1, the mean over classes."""
    return classes.score("f1", _confusion(pairs))


def f1_micro(pairs: Sequence[tuple[int, int]]) -> float:
    """F1 of all decisions together."""
    return classes.score("f1_micro", _confusion(pairs))


def _confusion(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((truth, said, rows) for (truth, said), rows in sorted(Counter(map(tuple, pairs)).items()))
