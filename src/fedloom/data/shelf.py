"""Encoded examples that were used last, within a budget of tokens."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from fedloom.data.encoders import Example
from fedloom.data.rows import Split

_SHELF_TOKENS: Final = 16_000_000


class Shelf:
    """Keeps encoded examples until they hold more than `budget` tokens; the least recently used go first."""

    def __init__(self, budget: int = _SHELF_TOKENS) -> None:
        self._budget, self._tokens = budget, 0
        self._kept: OrderedDict[tuple[str, Split], list[Any]] = OrderedDict()

    def get(self, key: tuple[str, Split]) -> list[Any] | None:
        """What is kept under the key, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: tuple[str, Split], examples: list[Any]) -> None:
        """Keep examples; the newest stay even where they alone are more than the budget."""
        self._tokens += _tokens(examples) - _tokens(self._kept.get(key, ()))
        self._kept[key] = examples
        while self._tokens > self._budget and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._tokens -= _tokens(gone)


def _tokens(examples: Iterable[Example]) -> int:
    return sum(one.size for one in examples)
