"""Before an adapter is merged into its base by peft."""

from typing import Any

import torch


def untie(module: Any) -> None:
    """Give an adapted output layer its own weights: merged into tied ones, the adapter would change the input too.

    Args:
        module: a causal model inside peft's wrapper.
    """
    inner = module.get_base_model()
    head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
    if hasattr(head, "lora_A") and head.base_layer.weight is embedding.weight:
        head.base_layer.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        inner.config.tie_word_embeddings = False
