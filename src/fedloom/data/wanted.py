"""What data code is told about the objective: which rows it learns from, and what it says of their encoding."""

from dataclasses import dataclass

from fedloom.data.rows import Kind


@dataclass(frozen=True)
class Wanted:
    """The rows an objective learns from."""

    kind: Kind = "answers"
    labels: tuple[str, ...] | None = None
    """The classes in the order of the head's outputs, for kind labels; None: those of the data, sorted."""
    max_prompt_length: int | None = None
    """Tokens a prompt may have, for kinds pairs and judged; longer ones lose their beginning. None: no limit."""
