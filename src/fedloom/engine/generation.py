"""Greedy answers to many prompts, in batches of similar lengths, filled up on the left."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def answers(
    module: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """The text after each prompt (token ids), up to a stop token, in the order of the prompts."""
    module.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [""] * len(prompts)
    for i in range(0, len(order), batch_size):
        chosen = order[i : i + batch_size]
        for j, ids in zip(
            chosen, _continue(module, tokenizer, [prompts[j] for j in chosen], stop_ids, max_new_tokens), strict=True
        ):
            found[j] = tokenizer.decode(ids, skip_special_tokens=True)
    return found


def _continue(
    module: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    device = next(module.parameters()).device
    width, pad = max(len(prompt) for prompt in prompts), int(tokenizer.pad_token_id)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    out = module.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad,
        eos_token_id=list(stop_ids),
    )
    stops = set(stop_ids)
    return [_until(row, stops) for row in out[:, width:].tolist()]


def _until(ids: list[int], stops: set[int]) -> list[int]:
    for i, token in enumerate(ids):
        if token in stops:
            return ids[:i]
    return ids
