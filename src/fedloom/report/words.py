"""Numbers as a person reads them: percent, bytes, durations, and the names of metrics and splits."""

import math

NBSP = "\u00a0"
SHARES = frozenset({"exact_match", "rouge_l", "accuracy", "f1", "f1_weighted", "f1_micro", "preference_accuracy"})
"""Metrics between 0 and 1, shown in percent."""
CURVES = ("exact_match", "rouge_l", "accuracy", "f1", "matthews", "preference_accuracy", "margin")
"""Metrics with a picture of their own beside the loss; the others are too near to one of these."""
METRICS = {
    "loss": "Loss",
    "perplexity": "Perplexity",
    "exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "accuracy": "Accuracy",
    "f1": "F1 (macro)",
    "f1_weighted": "F1 (weighted)",
    "f1_micro": "F1 (micro)",
    "matthews": "Matthews correlation",
    "preference_accuracy": "Preference accuracy",
    "margin": "Reward margin",
    "reward_chosen": "Reward of better answers",
    "reward_rejected": "Reward of worse answers",
}
SPLITS = {
    "test": "the clients’ test rows",
    "validation": "the clients’ validation rows",
    "personal": "each client’s own model on its own rows",
    "global": "the global rows",
    "emulator": "the clients’ rows, by the emulator alone",
}
REASONS = {
    "silent": "no answer came",
    "late": "the answer came after the deadline",
    "failed": "training failed at the client",
    "nonfinite": "the answer held numbers that are not finite",
    "refused": "the answer did not fit what was asked",
}


def metric_name(metric: str) -> str:
    """A metric's name at the start of a sentence."""
    return METRICS.get(metric, metric)


def split_name(split: str) -> str:
    """Whose rows a split holds, for the middle of a sentence."""
    return SPLITS.get(split, split)


def value(metric: str, number: float | None) -> str:
    """A metric's value: shares in percent, others with about four digits."""
    if number is None:
        return "–"
    if math.isnan(number):
        return "not a number"
    if math.isinf(number):
        return "∞"
    return f"{100 * number:.1f}{NBSP}%" if metric in SHARES else plain(number)


def plain(number: float) -> str:
    """About four digits, without an exponent where one can do without."""
    size = abs(number)
    if size >= 1e7 or 0 < size < 5e-4:
        return f"{number:.2e}"
    return f"{number:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}"


def share(number: float) -> str:
    """A share in percent with two digits, whatever its size."""
    percent = 100 * number
    digits = 0 if percent == 0 or abs(percent) >= 10 else 1 - math.floor(math.log10(abs(percent)))
    shown = f"{percent:,.{digits}f}"
    return f"{shown.rstrip('0').rstrip('.') if '.' in shown else shown}{NBSP}%"


def times(number: float) -> str:
    """A factor with two digits."""
    size = abs(number)
    return f"{number:,.{0 if size >= 10 else 1 if size >= 1 else 2}f}{NBSP}times"


def count(number: float, one: str, many: str) -> str:
    """A whole number with its noun."""
    return f"{number:,.0f}{NBSP}{one if number == 1 else many}"


def scale(largest: float) -> tuple[float, str]:
    """The decimal unit in which so many bytes are read best: its size in bytes and its name."""
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, name
    return 1.0, "B"


def amount(num_bytes: float) -> str:
    """A number of bytes with three digits."""
    size, name = scale(num_bytes)
    shown = num_bytes / size
    digits = 0 if name == "B" or shown >= 100 else 1 if shown >= 10 else 2
    return f"{shown:.{digits}f}{NBSP}{name}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60}{NBSP}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}{NBSP}h {minutes % 60}{NBSP}min"
    hours = round(seconds / 3600)
    return f"{hours // 24}{NBSP}d {hours % 24}{NBSP}h"


def shorten(text: str, length: int = 24) -> str:
    """The text, its middle left out where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head - length + 1 :]}"
