"""Whether teacher and student can be told what the other says: the same tokens, words and classes."""

from collections.abc import Sequence
from typing import Any

from fedloom.errors import UserError


def check_alike(student: Any, teacher: Any) -> None:
    """Rows are turned into tokens once, so both models must read the same ones.

    Args:
        student: its tokenizer.
        teacher: its tokenizer.

    Raises:
        UserError: they do not.
    """
    sample = "A short text, with 3 numbers (1.5 %) and ümläuts."
    if student.get_vocab() != teacher.get_vocab() or student(sample).input_ids != teacher(sample).input_ids:
        raise UserError(
            "algorithm.teacher: teacher and model have different tokenizers, so that neither can be told what the "
            "other says of a text; take two models of one family"
        )


def check_vocabularies(student: int, teacher: int) -> None:
    """Language models must choose from the same words.

    Raises:
        UserError: one of them knows more.
    """
    if student != teacher:
        raise UserError(
            f"algorithm.teacher: the model chooses from {student} words and the teacher from {teacher}; take two "
            "models of one family"
        )


def check_labels(student: Sequence[str] | None, teacher: Sequence[str] | None) -> None:
    """A teacher that was trained before must know the same classes.

    Args:
        student: the run's classes, in the order of the head's outputs.
        teacher: those the teacher's head was saved with; None: it has no head yet.

    Raises:
        UserError: it knows others, or in another order.
    """
    if teacher is not None and student is not None and tuple(teacher) != tuple(student):
        raise UserError(
            f"algorithm.teacher: its head tells apart {', '.join(teacher)}, and this run's classes are "
            f"{', '.join(student)}, in this order; name the teacher's in objective.labels, or train another teacher "
            "(fedloom pretrain-teacher)"
        )


def vocabulary(module: Any) -> int:
    """Words a language model chooses from."""
    return int(module.config.get_text_config().vocab_size)
