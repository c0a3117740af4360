"""What is asked of the process that evaluates: one model, its tasks and the settings; and what it answers.

Both travel as JSON, one object a line.
"""

from typing import Literal

from pydantic import Field

from fedloom.data.config import DataConfig
from fedloom.models.config import ModelConfig
from fedloom.settings import Strict


class Template(Strict):
    """How a run wrote its prompts."""

    data: DataConfig
    """The run's section `data`."""
    name: str
    """The template `auto` resolved to."""


class Entrant(Strict):
    """One model that is evaluated: a column of the table, or one client of a column."""

    column: str
    who: str = ""
    """The client it belongs to, where the column is of the clients' own models."""
    base: ModelConfig
    """The model itself, or what the adapter belongs to."""
    adapter: str | None = None
    """Folder of the adapter; None: the model as it is."""
    template: Template | None = None
    """None: it comes from no run."""
    home: str
    """Folder its results are kept in."""

    @property
    def label(self) -> str:
        """Column and client in one word."""
        return f"{self.column}/{self.who}" if self.who else self.column


class Settings(Strict):
    """What every model of an evaluation has in common."""

    limit: int | None = Field(None, ge=1)
    """Rows of each task, from the first one; None: all."""
    batch_size: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=2)
    """Tokens of prompt and answer together; None: as many as the model was built for."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens; None: what each task says."""
    shots: int | None = Field(None, ge=0)
    """Worked examples before each question; None: what each task says."""
    template: Literal["none", "own"] = "none"
    """Whether questions stand alone, as lm-eval asks them, or are written as in training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    merge: bool = False
    """Adapters are added to the weights before, not computed beside them."""
    allow_code: bool = False


class Job(Strict):
    """One model and its tasks."""

    entrant: Entrant
    tasks: tuple[str, ...]
    settings: Settings


class Value(Strict):
    """One score, 0..1, and its standard error over rows where lm-eval has a formula for it."""

    value: float
    stderr: float | None = None


class Result(Strict):
    """What one model reached on one task."""

    task: str
    scores: dict[str, Value]
    """By the names of the table of tasks."""
    rows: int
    shots: int
    version: str
    """Of the task's definition."""
    seconds: float
    batch_size: int


class Answer(Strict):
    """One line of the process that evaluates."""

    result: Result | None = None
    mistake: str | None = None
    """What was asked cannot work."""
