"""Models for lm-eval that compute nothing: one that knows every answer, one that guesses evenly, one that is lost."""

from collections.abc import Callable, Sequence

from lm_eval.api.model import LM


class Stub(LM):
    """Answers by a function of the row: the place of a choice, or a text."""

    def __init__(self, answer: Callable[[int, dict], int | str]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[str] = []

    def loglikelihood(self, requests: Sequence) -> list[tuple[float, bool]]:
        """The chosen option is likely, all others are not."""
        self.asked += [request.args[0] for request in requests]
        chosen = [request.idx == self.answer(request.doc_id, request.doc) for request in requests]
        return [(0.0 if one else -100.0, False) for one in chosen]

    def loglikelihood_rolling(self, requests: Sequence) -> list[float]:
        """Nothing asks for it."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence) -> list[str]:
        """The text."""
        self.asked += [request.args[0] for request in requests]
        return [str(self.answer(request.doc_id, request.doc)) for request in requests]
