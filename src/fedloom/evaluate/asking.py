"""lm-eval's own class for a loaded model, with the prompt written as in training where that is wanted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM


class Asking(HFLM):  # type: ignore[misc]  # lm-eval is looked at untyped
    """HFLM whose questions may be written by a template of ours.

    lm-eval asks `apply_chat_template` to write a conversation; where examples come first, they stand in its one user
    turn.
    """

    write: Callable[[str], str] | None = None
    """From a question to the prompt; None: the tokenizer's chat template."""

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation of one user turn, perhaps with the beginning of the answer."""
        if self.write is None:
            return str(super().apply_chat_template(list(chat_history), add_generation_prompt))
        asked = "\n\n".join(turn["content"] for turn in chat_history if turn["role"] != "assistant")
        begun = "".join(turn["content"] for turn in chat_history if turn["role"] == "assistant")
        return f"{self.write(asked)}{begun}"


def asking(
    module: Any, tokenizer: Any, batch_size: int, max_length: int | None, write: Callable[[str], str] | None
) -> Asking:
    """The model for lm-eval.

    Args:
        module: a causal model of transformers, or peft's wrapper around one.
        tokenizer: its tokenizer.
        batch_size: prompts in one forward pass.
        max_length: tokens of prompt and answer; None: as the model's configuration says.
        write: how a question is written, where not by the tokenizer's chat template.
    """
    module.tie_weights = _as_loaded  # HFLM ties weights once more, which an adapted output layer does not survive
    lm = Asking(pretrained=module, tokenizer=tokenizer, backend="causal", batch_size=batch_size, max_length=max_length)
    lm.write = write
    return lm


def _as_loaded(**_: Any) -> None:
    """Whatever the model ties was tied when it was loaded."""
