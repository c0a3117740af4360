"""One example of a data set: an instruction with its answer, or a conversation."""

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
Kind: TypeAlias = Literal["answers", "labels", "pairs", "judged"]
"""What is learned from a row: an answer, a class, which of two answers is better, or whether one answer is good."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    """system, user, assistant, or another role the tokenizer's chat template knows."""
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One example; texts are as in the source, without any template."""

    instruction: str
    input: str
    """Further context of the instruction; empty where there is none."""
    output: str
    """The answer to learn; of a conversation, the last assistant turn."""
    category: str | None = None
    client: str | None = None
    """Who the row belongs to, where the source says so."""
    messages: tuple[Turn, ...] = ()
    """The whole conversation, ending with an assistant turn; empty for rows made of instruction and output."""
    rejected: str | None = None
    """The worse answer, where rows are pairs; `output` is the better one."""
    good: bool | None = None
    """Whether the answer is a good one, where rows are judged."""

    @property
    def length(self) -> int:
        """Characters of all its texts."""
        if self.messages:
            return sum(len(turn.content) for turn in self.messages) + len(self.rejected or "")
        return len(self.instruction) + len(self.input) + len(self.output) + len(self.rejected or "")

    def answered(self, answer: str) -> "Row":
        """The same example with another answer to learn."""
        messages = (*self.messages[:-1], replace(self.messages[-1], content=answer)) if self.messages else ()
        return replace(self, output=answer, messages=messages)
