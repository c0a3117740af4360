"""Virtual tokens: what prefix, prompt and p-tuning put before every text.

They take positions of the model, so texts and answers have fewer left. A model that holds them needs texts without
filling on their left: its code counts positions over all that stands before a word, and filling between the virtual
tokens and the text would move them apart.
"""

from typing import Any


def tokens(module: Any) -> int:
    """How many virtual tokens a model puts before every text; 0 for one that is not in peft's wrapper."""
    settings = getattr(module, "peft_config", None) or {}
    found: Any = next(iter(settings.values()), None)
    return int(found.num_virtual_tokens) if getattr(found, "is_prompt_learning", False) else 0
